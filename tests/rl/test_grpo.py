"""rl/grpo.py on a small run directory: rollouts, the objective's gradient, which model is kept, and TRL's side of the contract."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from run_dirs import (
    assert_one_sentence,
    exit_code,
    finished_sft_run,
    flags,
    make_run_dir,
    run_stage,
    state,
    valid_figures,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer, SFTTrainer

from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.errors import InputError
from sidrec.rl import grpo, practice
from sidrec.rl.groups import draw_generator
from sidrec.rl.settings import ObjectiveConfig, RlConfig, RlTrainerConfig
from sidrec.rl.trainer import SidGRPOTrainer, rollout
from sidrec.sft.trainer import SidSFTTrainer

G = 8


@pytest.fixture(scope="module")
def sft_run(tmp_path_factory):
    return finished_sft_run(tmp_path_factory)


@pytest.fixture
def run_dir(sft_run, tmp_path):
    return shutil.copytree(sft_run, tmp_path / "run")


@pytest.fixture(scope="module")
def rl_run(sft_run, tmp_path_factory):
    """(run directory, trainer) of a finished RL stage."""
    run_dir = shutil.copytree(sft_run, tmp_path_factory.mktemp("rl") / "run")
    return run_dir, run_stage(grpo, run_dir)


@pytest.fixture
def trainer(rl_run):
    Accelerator(cpu=True)  # parsing another stage's flags resets the state that all trainers of a process share
    return rl_run[1]


def distinct_prompts(trainer, n: int) -> list[str]:
    """`n` different questions of different lengths."""
    prompts = list(dict.fromkeys(trainer.train_dataset["prompt"]))
    return prompts[:: len(prompts) // n][:n]


def repeated(prompts: list[str]) -> list[str]:
    return [prompt for prompt in prompts for _ in range(G)]


def test_rewards_and_recall_are_logged(rl_run):
    run_dir, trainer = rl_run
    rows = [row for row in trainer.state.log_history if "reward" in row]
    assert len(rows) == 6
    for row in rows:
        exact, prefix = row["rewards/exact_hit/mean"], row["rewards/prefix_credit/mean"]
        assert row["reward"] == pytest.approx(exact + 0.2 * prefix, abs=1e-6)
        assert exact <= 1 / G + 1e-6, "distinct items: at most one of a group is the target"
        assert 0 < prefix < 1
        assert row["completions/mean_length"] == 3
        parts = [row[f"seconds/{part}"] for part in ("generate", "rewards", "forward", "backward", "update")]
        assert min(parts) > 0
        assert 0.5 * row["seconds/step"] < sum(parts) <= row["seconds/step"]
    assert max(row["rewards/exact_hit/mean"] for row in rows) > 0
    measured = json.loads((run_dir / "rl" / "valid.json").read_text())
    assert [row["step"] for row in measured] == [0, 2, 4, 6]
    sft = json.loads((run_dir / "sft" / "valid.json").read_text())
    assert measured[0]["eval_recall@10"] == max(row["eval_recall@10"] for row in sft)


def test_rollouts_are_distinct_valid_items_of_their_own_prompt(trainer):
    prompts = distinct_prompts(trainer, 6)
    rows = rollout(repeated(prompts), trainer)
    assert set(rows) == {"prompt_ids", "completion_ids", "logprobs", "codes", "items", "weight", "target_prob"}
    assert rows["items"] == trainer.trie.item_of(torch.tensor(rows["codes"])).tolist()
    assert rows["logprobs"] is None
    all_codes = {tuple(row) for row in (trainer.renderer.item_tokens - first_tokens(trainer)).tolist()}
    for i, prompt in enumerate(prompts):
        group = slice(i * G, (i + 1) * G)
        codes = [tuple(row) for row in rows["codes"][group]]
        assert len(set(codes)) == G, "an item was drawn twice for one prompt"
        assert set(codes) <= all_codes, "an item that does not exist"
        assert rows["completion_ids"][group] == (torch.tensor(codes) + first_tokens(trainer)).tolist()
        assert rows["prompt_ids"][group] == [trainer.processing_class(prompt)["input_ids"]] * G
        texts = trainer.processing_class.batch_decode(rows["completion_ids"][group])
        assert texts == ["".join(f"<{'abc'[level]}_{code}>" for level, code in enumerate(row)) for row in codes]


def test_draws_do_not_depend_on_the_batch_they_are_made_in(trainer):
    prompts = distinct_prompts(trainer, 5)
    together = rollout(repeated(prompts), trainer)["codes"]
    shuffled = rollout(repeated(prompts[::-1]), trainer)["codes"]
    for i, prompt in enumerate(prompts):
        alone = rollout([prompt] * G, trainer)["codes"]
        assert together[i * G : (i + 1) * G] == alone
        assert shuffled[(4 - i) * G : (5 - i) * G] == alone
    with pytest.raises(AssertionError, match="whole groups"):
        rollout([*([prompts[0]] * (G - 1)), prompts[1]], trainer)


def test_every_seed_step_and_prompt_has_its_own_draws():
    draws = [
        tuple(torch.rand(4, generator=draw_generator(f"{seed} {step} {prompt}")).tolist())
        for seed, step, prompt in itertools.product((0, 1), (0, 1, 11), ("<history><a_1>", "<history><a_2>"))
    ]
    assert len(set(draws)) == len(draws)
    again = torch.rand(4, generator=draw_generator("0 0 <history><a_1>"))
    assert tuple(again.tolist()) == draws[0]


def first_tokens(trainer) -> torch.Tensor:
    return torch.tensor(trainer.renderer.vocabulary.first_tokens)


def item_log_prob(trainer, prompt_ids: list[int], codes: tuple[int, ...]) -> torch.Tensor:
    """log π(item | prompt), by running the plain model on prompt and item and normalising over the codes that exist."""
    first, all_codes = first_tokens(trainer), trainer.renderer.item_tokens - first_tokens(trainer)
    logits = trainer.model(torch.tensor([[*prompt_ids, *(first + torch.tensor(codes)).tolist()]])).logits[0]
    total = torch.zeros(())
    for level, code in enumerate(codes):
        same = (all_codes[:, :level] == torch.tensor(codes[:level])).all(1)
        children = all_codes[same, level].unique() + first[level]
        row = logits[len(prompt_ids) - 1 + level]
        total = total + row[first[level] + code] - row[children].logsumexp(0)
    return total


@pytest.mark.parametrize("n_groups", [1, 3])
def test_the_gradient_is_the_written_formula(trainer, n_groups):
    """-(1 / L) Σ_i w_i A_i Σ_l ∇log π(code l of item i), averaged over groups: w = φ / q over its group's sum, A = reward - its group's
    weighted mean; dr_grpo's gradient at the policy that drew the items. Three groups have prompts of different lengths."""
    prompts = distinct_prompts(trainer, 3)[:n_groups]
    prompt_ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
    assert len({len(ids) for ids in prompt_ids}) == min(2, n_groups)
    trainer.model.train()
    rolled = rollout(repeated(prompts), trainer)
    drawn = [tuple(row) for row in rolled["codes"]]
    groups = [drawn[i * G : (i + 1) * G] for i in range(n_groups)]
    targets = [group[3 + i] for i, group in enumerate(groups)]
    rows = [
        {"prompt": prompt, "target": 0, "target_codes": list(target)}
        for prompt, target in zip(prompts, targets, strict=True)
        for _ in range(G)
    ]
    inputs = trainer._generate_and_score_completions(rows)
    shares = torch.tensor(rolled["weight"]).view(n_groups, G)
    shares = shares / shares.sum(1, keepdim=True)
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, inputs).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}

    trainer.model.zero_grad()
    all_advantages = []
    for ids, codes, target, share in zip(prompt_ids, groups, targets, shares, strict=True):
        agreeing = [next((d for d in range(3) if item[d] != target[d]), 3) for item in codes]
        rewards = torch.tensor([(depth == 3) + 0.2 * depth / 3 for depth in agreeing])
        advantages = rewards - (share * rewards).sum()
        log_probs = torch.stack([item_log_prob(trainer, ids, item) for item in codes])
        (-(share * advantages * log_probs).sum() / 3 / n_groups).backward()
        all_advantages.append(advantages)
    torch.testing.assert_close(inputs["advantages"], torch.cat(all_advantages)[:, None].expand(-1, 3))
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    trainer.model.zero_grad()


def test_a_step_makes_the_reward_more_likely(trainer):
    """Up the gradient: after a small step the expected reward of the group's own items is higher."""
    prompt = distinct_prompts(trainer, 3)[2]
    codes = [tuple(row) for row in rollout([prompt] * G, trainer)["codes"]]
    row = {"prompt": prompt, "target": 0, "target_codes": list(codes[0])}
    before = state(trainer.model)
    prompt_ids = trainer.processing_class(prompt)["input_ids"]
    probability = item_log_prob(trainer, prompt_ids, codes[0]).item()
    inputs = trainer._generate_and_score_completions([dict(row) for _ in range(G)])
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, inputs).backward()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter -= 0.1 * parameter.grad
    assert item_log_prob(trainer, prompt_ids, codes[0]).item() > probability + 1e-3
    trainer.model.load_state_dict(before)
    trainer.model.zero_grad()


def test_leaked_mass_is_what_the_whole_softmax_gives_to_codes_that_do_not_exist(trainer):
    prompt = distinct_prompts(trainer, 3)[1]
    prompt_ids = trainer.processing_class(prompt)["input_ids"]
    item = 7
    codes, all_codes = (
        tensor - first_tokens(trainer)
        for tensor in (trainer.renderer.tokens_of(torch.tensor([item]))[0], trainer.renderer.item_tokens)
    )
    trainer.model.eval()
    scored = {"prompt_ids": torch.tensor([prompt_ids]), "prompt_mask": torch.ones(1, len(prompt_ids), dtype=torch.long)}
    leaked = trainer._leaked(scored, torch.tensor([item]))
    with torch.no_grad():
        logits = trainer.model(torch.tensor([[*prompt_ids, *(first_tokens(trainer) + codes).tolist()]])).logits[0]
    for level in range(3):
        same = (all_codes[:, :level] == codes[:level]).all(1)
        children = all_codes[same, level].unique() + first_tokens(trainer)[level]
        existing = logits[len(prompt_ids) - 1 + level].softmax(0)[children].sum()
        assert float(leaked[0, level]) == pytest.approx(1 - float(existing), abs=1e-5)


def script_recall(monkeypatch, recalls: list[float]) -> None:
    values = iter(recalls)
    ndcgs = iter([0.2, 0.3, 0.2, 0.4])  # higher where Recall is lower: not enough to be kept
    monkeypatch.setattr(
        "sidrec.sft.validation.valid_metrics", lambda *_: valid_figures(0.5, next(ndcgs), deep_recall=next(values))
    )


def test_the_sft_model_is_kept_when_no_checkpoint_is_better(run_dir, monkeypatch, capsys):
    script_recall(monkeypatch, [0.5, 0.4, 0.5, 0.3])
    trained: list[dict[str, torch.Tensor]] = []
    run_stage(grpo, run_dir, at_end=lambda trainer: trained.append(state(trainer.model)))
    assert "NDCG@10 0.2000 → 0.2000 at step 0 of 6" in capsys.readouterr().out
    sft, rl = (load_file(run_dir / stage / "model.safetensors") for stage in ("sft", "rl"))
    assert all(torch.equal(sft[name], rl[name]) for name in sft)
    assert not all(torch.equal(rl[name], trained[0][name]) for name in rl), (
        "training moved nothing: the test proves nothing"
    )
    capsys.readouterr()
    assert exit_code("rl/grpo.py", *flags(grpo, run_dir, stop_if_no_gain="true")) == 3
    assert "the SFT model was not bettered" in capsys.readouterr().out
    assert exit_code("rl/grpo.py", *flags(grpo, run_dir)) == 0, "only who asks is told by the exit code"


def test_by_default_ndcg_counts_only_where_recall_is_kept(run_dir, monkeypatch, capsys):
    measured = iter([(0.2, 0.5), (0.9, 0.4), (0.3, 0.5), (0.25, 0.6)])

    def script(*_):
        ndcg, deep_recall = next(measured)
        return valid_figures(0.5, ndcg, deep_recall)

    monkeypatch.setattr("sidrec.sft.validation.valid_metrics", script)
    run_stage(grpo, run_dir)
    assert "NDCG@10 0.2000 → 0.3000 at step 4 of 6" in capsys.readouterr().out


@pytest.mark.parametrize("second", [(0.1, 0.6), (0.9, 0.4)], ids=["NDCG@10 falls", "Recall@50 is lost"])
def test_training_ends_when_ndcg_does_not_rise_or_recall_is_not_kept(run_dir, monkeypatch, second):
    measured = iter([(0.2, 0.5), (0.3, 0.5), second, (0.9, 0.9)])

    def script(*_):
        ndcg, deep_recall = next(measured)
        return valid_figures(0.5, ndcg, deep_recall)

    monkeypatch.setattr("sidrec.sft.validation.valid_metrics", script)
    trainer = run_stage(grpo, run_dir, early_stopping_patience=1)
    assert trainer.state.global_step == 4, "6 steps were planned"


@pytest.mark.parametrize("metric", ["eval_recall@10", "ndcg@10"])
def test_the_best_checkpoint_is_kept(run_dir, monkeypatch, capsys, metric):
    values = iter([0.5, 0.4, 0.6, 0.3])
    other = iter([0.9, 0.1, 0.2, 0.3])
    names = ("eval_recall@10", "eval_ndcg@10") if metric == "eval_recall@10" else ("eval_ndcg@10", "eval_recall@10")
    monkeypatch.setattr(
        "sidrec.sft.validation.valid_metrics",
        lambda *_: {names[0]: next(values), names[1]: next(other), "eval_recall@50": 0.5},
    )
    seen: dict[int, dict[str, torch.Tensor]] = {}

    evaluate = SidGRPOTrainer.evaluate

    def keep_weights(self, *args, **kwargs):
        seen[self.state.global_step] = state(self.model)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(SidGRPOTrainer, "evaluate", keep_weights)
    run_stage(grpo, run_dir, metric_for_best_model=metric)
    assert "at step 4 of 6" in capsys.readouterr().out
    rl = load_file(run_dir / "rl" / "model.safetensors")
    same = {step: all(torch.equal(rl[name], weights[name]) for name in rl) for step, weights in seen.items()}
    assert same == {0: False, 2: False, 4: True, 6: False}
    asked = flags(grpo, run_dir, metric_for_best_model=metric, stop_if_no_gain="true")
    assert exit_code("rl/grpo.py", *asked) == 0, "a better model was kept"


def test_the_output_loads_and_a_second_run_is_skipped(rl_run, capsys):
    run_dir, _ = rl_run
    recommender = Recommender.load(run_dir, "rl")
    assert recommender.renderer.max_items == 12
    model = AutoModelForCausalLM.from_pretrained(run_dir / "rl")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(recommender.model.parameters(), model.parameters(), strict=True))
    assert run_stage(grpo, run_dir) is None
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"rl was made with num_generations=8, not 4"):
        run_stage(grpo, run_dir, num_generations=4)
    with pytest.raises(
        InputError, match=r"rl was made with metric_for_best_model='eval_kept_ndcg@10', not 'eval_recall@10'"
    ):
        run_stage(grpo, run_dir, metric_for_best_model="eval_recall@10")


def test_another_sft_model_is_refused(rl_run, tmp_path):
    run_dir = shutil.copytree(rl_run[0], tmp_path / "run")
    manifest = run_dir / "sft" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(InputError, match=r"rl was made from another .*sft/manifest\.json"):
        run_stage(grpo, run_dir)


def mistakes() -> dict[str, tuple[dict[str, object], str]]:
    return {
        "more than there is": (
            {"num_generations": 61, "per_device_train_batch_size": 61},
            "num_generations=61 distinct items cannot be drawn from a catalogue of 60",
        ),
        "broken groups": ({"per_device_train_batch_size": 36}, "num_generations"),
        "nothing to reward": (
            {"open_questions": "true"},
            "open_questions=True and rewards=exact_hit prefix_credit do not fit",
        ),
        "nothing to ask": (
            {"positions_per_user": 0},
            "positions_per_user=0 and open_questions=False leave no question",
        ),
        "temperature": ({"temperature": 0.5}, "temperature cannot be set here: it would train another policy"),
        "unsaved measurements": ({"save_steps": 6}, "save_steps=6"),
    }


@pytest.mark.parametrize("mistake", list(mistakes()))
def test_bad_input_is_one_sentence_and_claims_no_folder(run_dir, capsys, mistake):
    changed, sentence = mistakes()[mistake]
    assert exit_code("rl/grpo.py", *flags(grpo, run_dir, **changed)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert_one_sentence(error)
    assert not (run_dir / "rl").exists(), "the corrected command would be refused"


def test_groups_must_be_whole_in_every_process():
    """TRL itself only asks that all processes together hold whole groups."""
    training = RlTrainerConfig(num_generations=8, per_device_train_batch_size=36, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="per_device_train_batch_size=36 is not a multiple of num_generations=8"):
        practice.refuse_contradictions(RlConfig(), ObjectiveConfig(), training)


def test_rl_before_sft_names_the_command(tmp_path, capsys):
    run_dir = make_run_dir(tmp_path / "run")
    assert exit_code("rl/grpo.py", *flags(grpo, run_dir)) == 2
    error = capsys.readouterr().err
    assert "holds no finished 'sft' stage; run `accelerate launch sft/train.py" in error
    assert_one_sentence(error)


MULTIMODAL = {
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
}


def test_trl_log_prob_method_has_the_signature_that_is_overridden():
    """A private method of TRL: a new parameter, a new order or a new default must be looked at."""
    theirs = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    ours = inspect.signature(SidGRPOTrainer._get_per_token_logps_and_entropies).parameters
    named = [name for name in ours if name != "_multimodal"]
    assert list(theirs)[: len(named)] == named
    assert set(theirs) - set(named) == MULTIMODAL
    assert {name: theirs[name].default for name in named} == {name: ours[name].default for name in named}


def test_trl_calls_the_log_prob_method_for_the_policy_that_drew_and_takes_three_values(trainer, monkeypatch):
    """When a batch is used for several updates, TRL asks for π_old by this method, and hands it to the loss by this name."""
    prompt = distinct_prompts(trainer, 3)[0]
    row = {"prompt": prompt, "target": 0, "target_codes": [0, 0, 0]}
    trainer.model.train()
    calls = []

    def fake(model, input_ids, attention_mask, logits_to_keep, **rest):
        calls.append((tuple(input_ids.shape), logits_to_keep))
        return torch.full((G, 3), -7.0), None, None

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", fake)
    monkeypatch.setattr(trainer.args, "steps_per_generation", 2)
    inputs = trainer._generate_and_score_completions([dict(row) for _ in range(G)])
    prompt_length = len(trainer.processing_class(prompt)["input_ids"])
    assert calls == [((G, prompt_length + 3), 3)]
    assert (inputs["old_per_token_logps"] == -7).all()


def test_trl_asks_one_method_for_the_loss_and_takes_what_it_returns(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "_compute_loss", lambda model, inputs: (model, inputs))
    assert trainer.compute_loss("a model", {"some": "inputs"}) == ("a model", {"some": "inputs"})
    assert trainer.current_gradient_accumulation_steps == 1


def test_a_batch_of_trl_keeps_what_is_added_to_it(trainer):
    """TRL shuffles and splits whatever has a row for each completion, all in the same way."""
    prompts = distinct_prompts(trainer, 4)
    rows = [
        {"prompt": prompt, "target": i, "target_codes": [0, 0, 0]} for i, prompt in enumerate(prompts) for _ in range(G)
    ]
    trainer.model.train()
    trainer._step, trainer._buffered_inputs = 0, None
    inputs = trainer._prepare_inputs(rows)
    assert len(inputs["weights"]) == len(inputs["targets"]) == len(inputs["group"]) == 4 * G
    assert inputs["targets"].tolist() == inputs["group"].tolist(), "targets 0 … 3 belong to groups 0 … 3"
    for i, prompt in enumerate(prompts):
        ids = trainer.processing_class(prompt)["input_ids"]
        for row in (inputs["group"] == i).nonzero().flatten():
            assert inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist() == ids


def test_trl_wants_these_keys_of_a_rollout_and_gives_the_others_to_the_rewards(trainer, monkeypatch):
    assert "rollout_func" in inspect.signature(GRPOTrainer.__init__).parameters
    given = []
    monkeypatch.setattr(trainer, "rollout_func", lambda *arguments: given.append(arguments) or {})
    with pytest.raises(ValueError, match=r"must return keys \['completion_ids', 'logprobs', 'prompt_ids'\]"):
        trainer._generate(["a", "a"])
    assert given == [(["a", "a"], trainer)]
    monkeypatch.undo()

    prompt = distinct_prompts(trainer, 3)[0]
    codes = rollout([prompt] * G, trainer)["codes"]
    received = {}

    def reward(codes, target_codes, **columns):
        received.update(columns, codes=codes, target_codes=target_codes)
        return [0.0] * len(codes)

    monkeypatch.setattr(trainer, "reward_funcs", [reward, reward])
    row = {"prompt": prompt, "target": 5, "target_codes": [1, 2, 3]}
    trainer._generate_and_score_completions([dict(row) for _ in range(G)])
    assert received["codes"] == codes
    assert received["target_codes"] == [[1, 2, 3]] * G


def test_methods_that_are_overridden_have_the_arguments_that_they_had():
    for theirs, ours, name in (
        (SFTTrainer, SidSFTTrainer, "compute_loss"),
        (SFTTrainer, SidSFTTrainer, "evaluate"),
        (GRPOTrainer, SidGRPOTrainer, "evaluate"),
        (GRPOTrainer, SidGRPOTrainer, "_compute_loss"),
        (GRPOTrainer, SidGRPOTrainer, "_generate_and_score_completions"),
        (GRPOTrainer, SidGRPOTrainer, "_calculate_rewards"),
    ):
        signatures = [inspect.signature(getattr(kind, name)).parameters for kind in (theirs, ours)]
        assert list(signatures[0]) == list(signatures[1]), name
