"""Groups: what weighted draws estimate, against the sum over the whole catalogue; what the trainer does with every kind."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from conftest import make_sids
from run_dirs import assert_one_sentence, exit_code, finished_sft_run, flags, run_stage, state
from safetensors.torch import load_file

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.rl import grpo
from sidrec.rl.groups import draw_groups, with_targets
from sidrec.rl.rewards import REWARDS, RewardSources
from sidrec.rl.trainer import first_rows
from sidrec.rl.training_metrics import draw_training, group_figures
from sidrec.sft import train
from sidrec.sft.vocabulary import add_sid_tokens

N, G, SEEDS = 40, 6, 400


@pytest.fixture
def question(tiny_model):
    """(search, π [N]) for one history, of a model with a clear opinion."""
    model, tokenizer = tiny_model
    sids = make_sids(N, [4, 4, 5])
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * N, "codebook", seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)
    recommender = Recommender.build(model, Renderer.build(sids, vocabulary, max_items=8), sids)
    trie, prompt = recommender.trie, recommender.renderer.batch([np.array([3, 1, 7])])
    leaves = recommender.leaf_log_probs([np.array([3, 1, 7])])[0]
    probabilities = torch.zeros(N).scatter_(0, trie.item_of_leaf[torch.arange(N)], leaves.exp())

    def search(rows, width, generators):
        ids, mask = (tensor.expand(len(rows), -1) for tensor in prompt)
        return beam_search(model, ids, mask, vocabulary, trie, width, generators=generators)

    assert 0.02 < probabilities.max() < 0.9
    assert probabilities.sum() == pytest.approx(1)
    return search, probabilities


def value_of(items: torch.Tensor) -> torch.Tensor:
    """Some function of items, of both signs."""
    return torch.sin(3.0 * items.float())


def test_weighted_sums_over_distinct_draws_estimate_sums_over_the_catalogue(question):
    search, probabilities = question
    exact = float((probabilities * value_of(torch.arange(N))).sum())
    groups, _ = draw_groups(search, SEEDS, G, "gumbel", [f"seed {i}" for i in range(SEEDS)])
    assert all(len(set(row)) == G for row in groups.items.tolist())
    estimates = (groups.weights * value_of(groups.items)).sum(1)
    error = float(estimates.std()) / SEEDS**0.5
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * error)
    unweighted = value_of(groups.items).mean(1)
    assert abs(float(unweighted.mean()) - exact) > 3 * float(unweighted.std()) / SEEDS**0.5, (
        "equal weights are biased here"
    )


@pytest.mark.parametrize("target", ["likely", "unlikely"])
def test_with_the_taken_item_in_every_group_they_still_do(question, target):
    search, probabilities = question
    order = probabilities.argsort(descending=True)
    item = order[1] if target == "likely" else order[-3]
    groups, beams = draw_groups(search, SEEDS, G, "gumbel", [f"seed {i}" for i in range(SEEDS)])
    targets = item.expand(SEEDS)
    share_before = float((groups.items == item).any(1).float().mean())
    assert (share_before > 0.5) == (target == "likely")
    groups = with_targets(groups, beams, targets, probabilities[targets])
    assert all(len(set(row)) == G for row in groups.items.tolist())
    assert (groups.items == item).any(1).all()
    torch.testing.assert_close(groups.weights[groups.items == item], probabilities[item].expand(SEEDS))
    exact = float((probabilities * value_of(torch.arange(N))).sum())
    estimates = (groups.weights * value_of(groups.items)).sum(1)
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * float(estimates.std()) / SEEDS**0.5)


def rewards_of(name: str, item: int, probability: float) -> torch.Tensor:
    """What every item earns by a reward's list form, float32 [N]."""
    sources = RewardSources([np.array([0, 1, 1, 2])], np.eye(N, 3, dtype=np.float32), N, lambda: None, hit_k=[5, 20])
    columns = {"items": list(range(N)), "target": [item] * N, "target_prob": [probability] * N}
    codes = [(i // 5, i % 5) for i in range(N)]
    return torch.tensor(REWARDS[name](sources)(**columns, codes=codes, target_codes=[codes[item]] * N))


@pytest.mark.parametrize("name", ["exact_hit", "hit_at_k", "prefix_credit", "novelty", "diversity"])
@pytest.mark.parametrize("injected", [False, True])
def test_the_mean_of_a_group_s_gradient_is_the_exact_gradient(question, name, injected):
    """By the scores of a softmax over items: Σ π(i) r(i) (e_i - π), against Σ w(i) r(i) (e_i - π) over a group's draws."""
    search, probabilities = question
    item = probabilities.argsort(descending=True)[3]
    values = rewards_of(name, int(item), float(probabilities[item]))
    towards = torch.eye(N) - probabilities
    exact = (probabilities * values) @ towards
    groups, beams = draw_groups(search, SEEDS, G, "gumbel", [f"seed {i}" for i in range(SEEDS)])
    if injected:
        groups = with_targets(groups, beams, item.expand(SEEDS), probabilities[item].expand(SEEDS))
    drawn = torch.einsum("sg,sgn->sn", groups.weights * values[groups.items], towards[groups.items])
    error = drawn.std(0) / SEEDS**0.5
    likely = (
        probabilities > 1e-3
    )  # of the others so few are drawn that the spread over groups says nothing of the error
    assert ((drawn.mean(0) - exact).abs() <= 5 * error + 1e-6)[likely].all()
    assert likely.sum() >= 10
    if injected and name in ("exact_hit", "hit_at_k"):
        assert torch.nn.functional.cosine_similarity(drawn.mean(0), exact, dim=0) > 0.999


def test_where_the_taken_item_is_not_known_the_draws_stay(question):
    search, probabilities = question
    drawn, beams = draw_groups(search, 4, G, "gumbel", list("abcd"))
    targets = torch.tensor([-1, 3, -1, 5])
    groups = with_targets(drawn, beams, targets, probabilities[targets.clamp(min=0)])
    assert torch.equal(groups.items[[0, 2]], drawn.items[[0, 2]])
    assert torch.equal(groups.weights[[0, 2]], drawn.weights[[0, 2]])
    assert (groups.items[[1, 3]] == targets[[1, 3], None]).any(1).all()


def test_independent_draws_follow_the_policy_and_beams_are_its_best(question):
    search, probabilities = question
    groups, _ = draw_groups(search, SEEDS, G, "independent", [f"seed {i}" for i in range(SEEDS)])
    assert any(len(set(row)) < G for row in groups.items.tolist()), "draws may repeat"
    assert (groups.weights == 1).all()
    counts = torch.bincount(groups.items.flatten(), minlength=N) / groups.items.numel()
    assert float((counts - probabilities).abs().sum()) / 2 < 0.05, "total variation"
    best, _ = draw_groups(search, 1, N, "beams", [""])
    torch.testing.assert_close(best.weights[0], probabilities[best.items[0]])
    assert best.items[0, 0] == probabilities.argmax()


def test_one_row_of_every_group():
    group = torch.tensor([2, 0, 2, 1, 0, 1])
    rows = first_rows(group)
    assert sorted(group[rows].tolist()) == [0, 1, 2]


def test_figures_of_groups_by_hand():
    sids = make_sids(N, [4, 4, 5])
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    items = torch.tensor([[5, 8, 2, 9, 1, 0], [5, 8, 2, 9, 1, 0], [3, 4, 5, 6, 7, 8]])
    targets = torch.tensor([[8], [30], [3]]).expand(-1, 6)
    rewards = (items == targets).float()
    figures = group_figures(rewards, items, targets, trie)
    assert figures["zero_signal"] == pytest.approx(1 / 3)
    places = {name: value for name, value in figures.items() if name.startswith("target_place")}
    assert places == {
        "target_place/1-1": pytest.approx(1 / 3),
        "target_place/2-4": pytest.approx(1 / 3),
        "target_place/5-6": 0,
        "target_place/none": pytest.approx(1 / 3),
    }
    assert figures["depth_accuracy/3"] == pytest.approx(2 / 18)
    same = [
        (sids.codes[i][:1] == sids.codes[t][:1]).all() for i, t in zip(items.flatten(), targets.flatten(), strict=True)
    ]
    assert figures["depth_accuracy/1"] == pytest.approx(np.mean(same))
    with_open = group_figures(
        torch.cat([rewards, torch.rand(2, 6)]), items[[0, 1, 2, 0, 0]], torch.cat([targets, targets[:2] * 0 - 1]), trie
    )
    assert with_open.pop("zero_signal") == pytest.approx(1 / 5)
    assert with_open == {name: value for name, value in figures.items() if name != "zero_signal"}


OPTIONS = {
    "kl": {"kl_weight": 0.1},
    "sft_loss": {"sft_loss_weight": 0.5},
    "injected": {"inject_target": "true"},
    "s_dpo": {"objective": "s_dpo", "inject_target": "true"},
    "ecpo, beams": {"objective": "ecpo", "draw": "beams", "token_credit": 0.1},
    "gbpo, independent": {"objective": "gbpo", "draw": "independent", "rewards": ["novel_hit", "collaborative_score"]},
    "open": {
        "open_questions": "true",
        "rewards": ["exact_hit", "history_score"],
        "inject_target": "true",
        "sft_loss_weight": 0.5,
        "token_credit": 0.1,
        "kl_weight": 0.1,
    },
    "gspo, rank": {"objective": "gspo", "rewards": ["exact_hit", "rank_penalty"], "num_iterations": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_kind_trains_and_says_what_it_did(tmp_path_factory, tmp_path, name):
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")
    last: dict[str, torch.Tensor] = {}

    def keep(trainer) -> None:
        last.update(state(trainer.model))

    trainer = run_stage(grpo, run_dir, at_end=keep, max_steps=4, **OPTIONS[name])
    sft = load_file(run_dir / "sft" / "model.safetensors")
    if trainer.reference is not None:
        assert all(torch.equal(value, sft[key]) for key, value in trainer.reference.state_dict().items() if key in sft)
    assert trainer.state.best_global_step == 0 or any(not torch.equal(last[key], sft[key]) for key in sft)
    rows = [row for row in trainer.state.log_history if "zero_signal" in row]
    assert len(rows) == (2 if "num_iterations" in OPTIONS[name] else 4)  # groups are drawn every second update
    for row in rows:
        assert np.isfinite(row["loss"])
        assert np.isfinite(row["grad_norm"])
        assert ("kl/max" in row) == (name in ("kl", "s_dpo", "open"))
        assert ("sft_loss" in row) == (name in ("sft_loss", "open"))
        assert 0 < row["leaked_mass/1"] < 1
        if name in ("injected", "s_dpo"):
            assert row["zero_signal"] == 0
            assert row["target_place/none"] == 0
    if name == "kl":
        assert rows[0]["kl/max"] == pytest.approx(0, abs=1e-6), "nothing has moved yet"
        assert rows[-1]["kl/max"] > 0
    assert (run_dir / "rl" / "training.png").read_bytes().startswith(b"\x89PNG")


MISTAKES = {
    "unknown reward": ({"rewards": ["exact_hit", "luck"]}, "rewards has luck"),
    "weights": ({"rewards": ["exact_hit"]}, "reward_weights has 2 numbers for 1 rewards"),
    "no place": ({"inject_target": "true", "draw": "beams"}, "inject_target needs draw=gumbel"),
    "nothing to compare": ({"objective": "s_dpo"}, "set inject_target to true"),
    "TRL's own": (
        {"loss_type": "cispo"},
        "loss_type cannot be set here: it is TRL's and has no effect here; set objective instead",
    ),
    "TRL's KL": ({"beta": 0.1}, "beta cannot be set here: it is TRL's and has no effect here; set kl_weight instead"),
    "negative": ({"kl_weight": -1}, "kl_weight=-1.0 is negative"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_settings_that_mean_nothing_are_one_sentence(tmp_path_factory, tmp_path, capsys, mistake):
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")
    changed, sentence = MISTAKES[mistake]
    assert exit_code("rl/grpo.py", *flags(grpo, run_dir, **changed)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert_one_sentence(error)
    assert not (run_dir / "rl").exists()


def test_a_model_that_is_ranked_by_another_softmax_is_refused(tmp_path_factory, tmp_path, capsys):
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")
    run_stage(train, run_dir, overwrite="true", normaliser="full", max_steps=4)
    assert exit_code("rl/grpo.py", *flags(grpo, run_dir)) == 2
    assert "was trained with normaliser=full" in capsys.readouterr().err


def test_a_picture_of_a_log_without_validation(tmp_path):
    draw_training([{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.7}], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_resumed_runs_picture_is_that_of_a_run_at_one_go(tmp_path):
    """A resumed run measures the checkpoint that it goes on from once more."""
    log = [{"step": 0, "eval_recall@10": 0.1}, {"step": 1, "eval_recall@10": 0.3}, {"step": 2, "eval_recall@10": 0.2}]
    draw_training(log, tmp_path / "once.png")
    draw_training([*log[:2], log[1], log[2]], tmp_path / "resumed.png")
    assert (tmp_path / "once.png").read_bytes() == (tmp_path / "resumed.png").read_bytes()
