"""Exact expectations: gradients against enumeration on a trie of three levels, rewards over the catalogue against those of single items,
and the trainer's step against the sum over all items by hand."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import make_sids
from run_dirs import assert_one_sentence, exit_code, finished_rq_run, finished_sft_run, flags, run_stage
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from sidrec.decoding.rq_transformer import model as rq_transformer
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.rl import grpo
from sidrec.rl.dense_rewards import (
    DENSE_REWARDS,
    DenseSources,
    coverage,
    dense_rewards,
    diversity,
    exact_hit,
    hit_at_k,
    novelty,
    prefix_credit,
)
from sidrec.rl.exact_trainer import seen_leaves
from sidrec.rl.expectation import EPSILON, Questions, divergence, expected
from sidrec.rl.prompts import history_rows
from sidrec.rl.rewards import VALUE_REWARDS
from sidrec.rl.rewards import prefix_credit as listed_prefix_credit
from sidrec.rl.settings import DENSE

R, N = 6, 40


@pytest.fixture
def scores() -> torch.Tensor:
    """float32 [R, N], with a gradient: the log-probabilities are their log-softmax."""
    generator = torch.Generator().manual_seed(5)
    return (2 * torch.randn(R, N, generator=generator)).requires_grad_(True)


@pytest.fixture
def questions() -> Questions:
    return Questions(torch.tensor([3, 0, 39, 17, 17, 8]), torch.tensor([0, 0, 1, 2, 3, 3]))


def gradient(loss: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), scores, retain_graph=True)[0]


@pytest.mark.parametrize("ks", [[1], [5], [20], [1, 10, 50]])
def test_hit_at_k_has_the_gradient_of_the_recall_of_k_draws(scores, questions, ks):
    log_probs = scores.log_softmax(1)
    loss, values = expected(log_probs, questions, [hit_at_k(ks)], [1.0], scaled=False)
    target = log_probs.gather(1, questions.targets[:, None]).exp()
    recall = torch.stack([1 - (1 - target) ** k for k in ks]).mean(0)
    wanted = -gradient(recall, scores)
    torch.testing.assert_close(gradient(loss, scores), wanted, atol=1e-5, rtol=1e-4)
    assert values.shape == (R, 1)


def test_group_relative_hits_in_the_limit_of_many_draws(scores, questions):
    """GRPO divides by the deviation of a group's rewards: of one draw's hit, √(p (1 - p))."""
    log_probs = scores.log_softmax(1)
    loss, values = expected(log_probs, questions, [exact_hit], [1.0], scaled=True)
    target = log_probs.gather(1, questions.targets[:, None])[:, 0].exp()
    torch.testing.assert_close(values[:, 0], target.detach())
    deviation = (target * (1 - target)).sqrt().detach() + EPSILON
    torch.testing.assert_close(gradient(loss, scores), -gradient(target / deviation, scores), atol=1e-5, rtol=1e-3)


def test_a_sum_of_rewards_is_weighted(scores, questions):
    log_probs = scores.log_softmax(1)
    value = torch.linspace(-1, 2, N)[None]

    def liking(asked, probs):
        return value

    loss, values = expected(log_probs, questions, [exact_hit, liking], [1.0, 0.5], scaled=False)
    probs = log_probs.exp()
    wanted = probs.gather(1, questions.targets[:, None])[:, 0] + 0.5 * (probs * value).sum(1)
    torch.testing.assert_close(gradient(loss, scores), -gradient(wanted, scores), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(values[:, 1], (probs * value).sum(1).detach())


def test_the_divergence_is_the_sum_over_every_item(scores):
    reference = torch.randn(R, N).log_softmax(1)
    log_probs = scores.log_softmax(1)
    by_hand = [
        sum(float(p.exp() * (p - q)) for p, q in zip(*rows, strict=True))
        for rows in zip(log_probs.detach(), reference, strict=True)
    ]
    torch.testing.assert_close(divergence(log_probs, reference), torch.tensor(by_hand))
    torch.testing.assert_close(divergence(log_probs, log_probs.detach()), torch.zeros(R), atol=1e-6, rtol=0)


def test_diversity_is_one_less_the_mean_cosine_of_two_draws(scores, questions):
    vectors = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    vectors[7] = 0  # an item that is like nothing
    probs = scores.log_softmax(1).exp()
    values = diversity(vectors)(questions, probs.detach())
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    both = probs.detach().numpy()
    wanted = 1 - np.einsum("ri,rj,ij->r", both, both, units @ units.T)
    np.testing.assert_allclose((probs.detach() * values).sum(1), wanted, atol=1e-5)
    # the reward's policy gradient is half of the expectation's: both draws change
    spread = 1 - (probs @ torch.from_numpy(units)).square().sum(1)
    loss, _ = expected(scores.log_softmax(1), questions, [diversity(vectors)], [2.0], scaled=False)
    torch.testing.assert_close(gradient(loss, scores), -gradient(spread, scores), atol=1e-5, rtol=1e-3)


def test_prefix_credit_of_every_item_is_that_of_single_items(questions):
    sids = make_sids(N, [4, 4, 5])
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    items = trie.item_of_leaf[torch.arange(N)]
    codes = [tuple(row) for row in sids.codes[items].tolist()]
    dense = prefix_credit(trie)(questions, torch.zeros(R, N))
    for row, target in zip(dense, questions.targets.tolist(), strict=True):
        assert row.tolist() == pytest.approx(listed_prefix_credit(codes, [codes[target]] * N))


def test_novelty_and_coverage_pay_for_what_is_seldom():
    counts = np.array([100, 10, 1, 0])
    bits = novelty(counts)(Questions(torch.tensor([0]), torch.tensor([0])), torch.full((1, 4), 0.25))[0]
    shares = (counts + 1) / (counts + 1).sum()
    np.testing.assert_allclose(bits, np.log2(shares) / np.log2(shares[3]), rtol=1e-6)
    held = Questions(torch.tensor([0]), torch.tensor([0]), exposure=torch.tensor([2.0, 1.0, 1.0, 0.0]))
    even = coverage(held, torch.full((1, 4), 0.25))[0]
    np.testing.assert_allclose(even[:3], [-np.log(2), 0, 0], atol=1e-6)
    assert 0 < even[3] < 10, "an item that no list holds earns most, and not infinitely much"


def test_a_reward_without_a_dense_form_is_named():
    trie = SidTrie(torch.zeros(1, 1, dtype=torch.long), [1])
    sources = DenseSources(trie, np.arange(1), np.ones(1), np.ones((1, 2), np.float32), [20])
    with pytest.raises(InputError, match="rank_penalty"):
        dense_rewards(["exact_hit", "rank_penalty"], sources)
    assert set(DENSE) == set(DENSE_REWARDS)
    names = [name for name in DENSE if name not in (*VALUE_REWARDS, "category_quota")]
    assert [reward.__name__ for reward in dense_rewards(names, sources)] == names


def test_history_rows_ask_for_each_of_the_newest_items_once():
    sequences = [np.arange(1), np.arange(10, 13), np.arange(100, 130)]
    rows = history_rows(sequences, max_items=8, n_levels=3, positions_per_user=12)
    asked = [(row["user"], item) for row in rows for item in row["items"][row["context"] :]]
    assert sorted(asked) == [(1, 11), (1, 12), *((2, item) for item in range(118, 130))]
    assert all(row["context"] >= 1 and len(row["items"]) <= 8 for row in rows)
    with pytest.raises(InputError, match="positions_per_user"):
        history_rows(sequences, 8, 3, 0)


EXACT = {
    "draw": "every_item",
    "inject_target": "false",
    "rewards": ["hit_at_k", "coverage"],
    "reward_weights": [1.0, 0.01],
    "kl_weight": 0.1,
    "sft_loss_weight": 0.5,
    "batch_items": 60,
    "max_steps": 4,
}


@pytest.fixture(scope="module")
def exact_run(tmp_path_factory):
    run_dir = shutil.copytree(finished_rq_run(tmp_path_factory), tmp_path_factory.mktemp("exact") / "run")
    return run_dir, run_stage(grpo, run_dir, **EXACT)


def test_a_step_has_the_gradient_of_the_expected_reward(exact_run):
    run_dir, trainer = exact_run
    Accelerator(cpu=True)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.reference = AutoModelForCausalLM.from_pretrained(run_dir / "sft").eval()
    model, trie, objective = trainer.model.train(), trainer.trie, trainer.objective
    weights = [weight for name, weight in model.named_parameters() if weight.requires_grad]
    trainer.current_gradient_accumulation_steps = 1
    ours = torch.autograd.grad(trainer._compute_loss(model, batch), weights, allow_unused=True)

    questions = trainer._questions(batch)
    total = torch.zeros(())
    for row in range(len(batch["input_ids"])):
        for place in (batch["items"][row] >= 0).nonzero()[:, 0].tolist():
            if place == 1:
                continue
            prompt = batch["input_ids"][row : row + 1, :place]
            log_probs = model.leaf_log_probs(prompt, torch.ones_like(prompt), trie)[0]
            with torch.no_grad():
                reference = trainer.reference.leaf_log_probs(prompt, torch.ones_like(prompt), trie)[0]
            target = trie.leaf_of_item(batch["items"][row, place])
            held = questions.exposure / questions.exposure.sum() * trie.n_items
            seldom = -held.clamp(min=1e-2).log()
            probs = log_probs.exp()
            reward = 1 - (1 - probs[target]) ** 20 + 0.01 * (probs * seldom).sum()
            kl = (probs * (log_probs - reference)).sum()
            total = (
                total
                + (objective.kl_weight * kl - reward - objective.sft_loss_weight * log_probs[target]) / trie.n_levels
            )
    by_hand = torch.autograd.grad(total / len(questions), weights, allow_unused=True)
    flat = [torch.cat([g.flatten() for g in gradients if g is not None]) for gradients in (ours, by_hand)]
    assert cosine_similarity(*flat, dim=0) > 0.999
    torch.testing.assert_close(flat[0], flat[1], atol=2e-5, rtol=2e-2)


def test_parts_of_the_questions_have_the_gradient_of_all_at_once(exact_run, monkeypatch):
    _, trainer = exact_run
    Accelerator(cpu=True)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.current_gradient_accumulation_steps = 1
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    whole = torch.autograd.grad(trainer._compute_loss(trainer.model, batch), weights, allow_unused=True)
    monkeypatch.setattr(rq_transformer, "MOST_JUDGED", 7 * trainer.trie.n_items)
    parts = torch.autograd.grad(trainer._compute_loss(trainer.model, batch), weights, allow_unused=True)
    for one, other in zip(whole, parts, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_items_before_a_question_are_seen(exact_run):
    _, trainer = exact_run
    batch = next(iter(trainer.get_train_dataloader()))
    seen = seen_leaves(batch["input_ids"], batch["items"], trainer.model, trainer.trie)
    number = 0
    for row, answers in enumerate(batch["items"]):
        codes = batch["input_ids"][row, 1:].view(-1, trainer.trie.n_levels)
        codes = codes - torch.tensor(trainer.renderer.vocabulary.first_tokens)
        for place in (answers >= 0).nonzero()[:, 0].tolist():
            if place == 1:
                continue
            before = trainer.trie.descend(codes[: (place - 1) // trainer.trie.n_levels])
            assert set(seen[number].tolist()) - {trainer.trie.n_items} == set(before.tolist())
            number += 1
    assert number == len(seen)


def test_the_log_says_what_was_expected(exact_run):
    run_dir, _ = exact_run
    rows = [row for row in json.loads((run_dir / "rl" / "log.json").read_text())["log"] if "reward" in row]
    assert rows
    for row in rows:
        together = row["rewards/hit_at_k/mean"] + 0.01 * row["rewards/coverage/mean"]
        assert row["reward"] == pytest.approx(together, abs=1e-5)
        assert 0 < row["target"] < 1
        assert 0 <= row["solved"] <= 1
        assert row["kl/mean"] >= -1e-6
        assert row["entropy"] > 0
        parts = [row[f"seconds/{part}"] for part in ("lists", "rewards", "forward", "backward", "update")]
        assert min(parts) > 0
        assert 0.5 * row["seconds/step"] < sum(parts) <= row["seconds/step"]
        assert "seconds/generate" not in row


def test_the_entropy_is_that_of_the_updates_that_are_logged(exact_run, monkeypatch):
    _, trainer = exact_run
    Accelerator(cpu=True)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.current_gradient_accumulation_steps = 1
    monkeypatch.setattr(trainer.state, "logging_steps", 3)
    for step, is_logged in ((1, False), (2, True), (3, False)):
        monkeypatch.setattr(trainer.state, "global_step", step)
        trainer._metrics["train"].clear()
        trainer._compute_loss(trainer.model, batch)
        assert ("entropy" in trainer._metrics["train"]) == is_logged
    monkeypatch.setattr(trainer.state, "global_step", 2)
    trainer._metrics["train"].clear()
    trainer._compute_loss(trainer.model, batch)
    entropies = []
    for row in range(len(batch["input_ids"])):
        for place in (batch["items"][row] >= 0).nonzero()[:, 0].tolist():
            if place > 1:
                prompt = batch["input_ids"][row : row + 1, :place]
                log_probs = trainer.model.leaf_log_probs(prompt, torch.ones_like(prompt), trainer.trie)[0]
                entropies.append(-(log_probs.exp() * log_probs).sum().item())
    assert trainer._metrics["train"]["entropy"] == [pytest.approx(np.mean(entropies), rel=1e-4)]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"objective": "s_dpo"}, "objective=s_dpo"),
        ({"rewards": ["rank_penalty"], "reward_weights": [1]}, "rank_penalty"),
        ({"metric_for_best_model": "eval_kept_value@10"}, "value_column"),
        ({}, "qwen3"),
    ],
)
def test_what_cannot_be_is_refused(settings, word, exact_run, tmp_path_factory, capsys):
    """The last: a model whose π of every item is not one pass."""
    run_dir = exact_run[0] if settings else finished_sft_run(tmp_path_factory)
    words = flags(grpo, run_dir, draw="every_item", overwrite="true", **settings)
    assert exit_code("rl/grpo.py", *words) == 2
    message = capsys.readouterr().err
    assert_one_sentence(message)
    assert word in message
