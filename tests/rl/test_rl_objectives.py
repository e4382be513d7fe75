"""RL's objectives by their papers' formulas, in value and gradient; rewards and advantages by hand."""

from __future__ import annotations

import math
import sys
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from valued_logs import valued_dataset

from sidrec.baselines.item_knn import fit_item_knn
from sidrec.pipeline.errors import InputError
from sidrec.rl.clipping import Clip
from sidrec.rl.experimental.rewards import collaborative_score, embedding_similarity, history_score, novel_hit
from sidrec.rl.list_rewards import Categories
from sidrec.rl.objectives import OBJECTIVES, divergence_to_come, exact_kl, group_advantages, s_dpo
from sidrec.rl.prompts import NO_TARGET
from sidrec.rl.reward_models import ValueSource
from sidrec.rl.rewards import (
    EXACT_ONLY,
    REWARDS,
    RewardSources,
    coverage,
    diversity,
    first_difference,
    hit_at_k,
    novelty,
    rank_penalty,
    reward_functions,
)
from sidrec.rl.settings import ObjectiveConfig, ObjectiveName

EXPERIMENTAL = ("ndcg_at_k", "collaborative_score", "embedding_similarity", "novel_hit", "history_score")
POLICY_LOSSES = {name: objective.loss for name, objective in OBJECTIVES.items() if objective.loss is not None}
B, L = 6, 3
CLIP = Clip(low=0.2, high=0.3, early=0.1)


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log π, log π_old (ratios between a third and three), advantages of both signs, weights."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(B, L, generator=generator) - 0.2
    log_probs = (old + torch.randn(B, L, generator=generator) * 0.5).clamp(max=-0.01).requires_grad_()
    advantages = torch.randn(B, 1, generator=generator)
    return log_probs, old, advantages, torch.rand(B, generator=generator) + 0.5


def gain_of_a_code(name: str, pi: float, old: float, sequence: float, advantage: float) -> tuple[float, float]:
    """What a code adds to the objective, and its derivative with respect to log π of this code, by the paper's formula."""
    low, high = 1 - CLIP.low, 1 + CLIP.high
    if name == "gspo":
        surrogate, bounded = sequence * advantage, min(max(sequence, low), high) * advantage
        slope = sequence * advantage if surrogate <= bounded else 0.0  # of the mean log-ratio
        return min(surrogate, bounded), slope
    if name == "gbpo":
        used = max(old, pi) if advantage >= 0 else max(old, 1 - pi)
        return pi / used * advantage, pi / used * advantage
    if name == "ecpo" and advantage < 0:
        old = max(old, pi / (1 + CLIP.high + CLIP.early))
    ratio = pi / old
    surrogate, bounded = ratio * advantage, min(max(ratio, low), high) * advantage
    return min(surrogate, bounded), ratio * advantage if surrogate <= bounded else 0.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_value_and_gradient_are_the_papers(name, seed):
    log_probs, old, advantages, weights = drawn(seed)
    loss = POLICY_LOSSES[name](log_probs, old, advantages, weights, CLIP)
    loss.backward()
    value, slopes = 0.0, np.zeros((B, L))
    for i in range(B):
        sequence = math.exp(float((log_probs[i] - old[i]).mean().detach()))
        for j in range(L):
            pi, before = math.exp(float(log_probs[i, j].detach())), math.exp(float(old[i, j]))
            gain, slope = gain_of_a_code(name, pi, before, sequence, float(advantages[i]))
            value += float(weights[i]) * gain / (B * L)
            if name == "gspo":  # the one ratio moves with each of the L codes, and counts for each
                slopes[i] += float(weights[i]) * slope / L / (B * L)
            else:
                slopes[i, j] = float(weights[i]) * slope / (B * L)
    assert float(loss.detach()) == pytest.approx(-value, abs=1e-6)
    np.testing.assert_allclose(log_probs.grad.numpy(), -slopes, atol=1e-6)


def test_where_nothing_has_moved_they_are_all_the_policy_gradient():
    """ρ = 1: every objective's gradient is -w A / (B L), GBPO's but for negative items, which it holds back."""
    _, old, advantages, weights = drawn(0)
    expected = -(weights[:, None] * advantages).expand(B, L) / (B * L)
    for name, loss in POLICY_LOSSES.items():
        log_probs = old.clone().requires_grad_()
        loss(log_probs, old, advantages, weights, CLIP).backward()
        if name == "gbpo":
            odds = (old.exp() / torch.maximum(old.exp(), 1 - old.exp())).where(advantages < 0, 1.0)
            torch.testing.assert_close(log_probs.grad, expected * odds)
        else:
            torch.testing.assert_close(log_probs.grad, expected, msg=name)


def test_ecpo_and_gbpo_bound_what_an_unlikely_negative_item_can_do():
    """A bad item that has become ten thousand times as likely: GRPO's gradient explodes, theirs does not."""
    old = torch.tensor([[-9.5]])
    slopes = {}
    for name in ("grpo", "ecpo", "gbpo"):
        log_probs = torch.tensor([[-0.1]], requires_grad=True)
        POLICY_LOSSES[name](log_probs, old, torch.tensor([[-1.0]]), torch.ones(1), CLIP).backward()
        slopes[name] = float(log_probs.grad)
    assert slopes["grpo"] > 1000
    assert slopes["ecpo"] == pytest.approx(1 + CLIP.high + CLIP.early, rel=1e-4)
    assert slopes["gbpo"] == pytest.approx(math.exp(-0.1) / (1 - math.exp(-0.1)), rel=1e-4)


def test_hit_at_k_by_hand():
    reward = hit_at_k([1, 3])
    columns = {"items": [5, 2, 2], "target": [5, 5, 2], "target_prob": [0.2, 0.2, 0.9]}
    assert reward(**columns) == pytest.approx([(1 + 3 * 0.8**2) / 2, 0.0, (1 + 3 * 0.1**2) / 2])


def test_novelty_coverage_and_diversity_by_hand():
    bits = novelty(np.array([7, 1, 0, 4]))(items=[2, 0])
    assert bits == pytest.approx([1.0, math.log2(8 / 16) / math.log2(1 / 16)])
    assert coverage(4)(items=[0, 0, 1, 3]) == pytest.approx([-math.log(2), -math.log(2), 0, 0])
    vectors = np.array([[1, 0], [0, 2], [3, 3], [0, 0]], np.float32)
    half = math.sqrt(0.5)
    assert diversity(vectors, 3)(items=[0, 1, 2, 0, 0, 3]) == pytest.approx(
        [1 - half / 2, 1 - half / 2, 1 - half, 0.5, 0.5, 1.0], abs=1e-6
    )


def test_s_dpo_by_its_formula_and_its_gradient_by_differences():
    torch.manual_seed(0)
    margins = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    hits = torch.zeros(3, 4, dtype=torch.bool)
    hits[[0, 1, 2], [2, 0, 3]] = True
    expected = 0.0
    for row, hit in ((0, 2), (1, 0), (2, 3)):
        inner = sum(math.exp(0.7 * float(margins[row, j] - margins[row, hit])) for j in range(4) if j != hit)
        expected -= math.log(1 / (1 + math.exp(math.log(inner)))) / 3
    assert float(s_dpo(margins, hits, beta=0.7)) == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda m: s_dpo(m, hits, 0.7), (margins,))
    with pytest.raises(AssertionError, match="exactly once"):
        s_dpo(margins, torch.zeros_like(hits), 0.7)


def test_advantages_by_hand():
    rewards, weights = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.5, 0.5]])
    centred = group_advantages(rewards, weights, OBJECTIVES["dr_grpo"].scaled)
    torch.testing.assert_close(centred, torch.tensor([[0.5, -0.5, -0.5, -0.5]]))
    assert float((weights * centred).sum()) == pytest.approx(0)
    torch.testing.assert_close(group_advantages(rewards, weights, OBJECTIVES["grpo"].scaled), centred / (0.5 + 1e-4))
    assert (group_advantages(torch.ones(1, 4), weights, scaled=True) == 0).all(), "equal rewards teach nothing"


@given(seed=st.integers(0, 10_000), k=st.integers(1, 9))
def test_the_exact_kl_is_the_sum_and_never_negative(seed, k):
    generator = torch.Generator().manual_seed(seed)
    logits = 20 * torch.randn(2, 1, 9, generator=generator)
    logits[..., k:] = -torch.inf
    log_probs, reference = logits.log_softmax(-1)
    expected = sum(
        math.exp(p) * (p - r) for p, r in zip(log_probs[0, :k].tolist(), reference[0, :k].tolist(), strict=True)
    )
    kl = float(exact_kl(log_probs, reference))
    assert kl == pytest.approx(expected, abs=1e-4)
    assert kl >= -1e-5
    assert float(exact_kl(log_probs, log_probs)) == 0
    if k == 1:
        assert kl == 0, "a forced code"


def test_the_kl_of_a_code_that_the_reference_hardly_has_is_finite_with_a_finite_gradient():
    logits = torch.tensor([[60.0, -60.0, -torch.inf]], requires_grad=True)
    reference = torch.tensor([[-60.0, 60.0, -torch.inf]]).log_softmax(-1)
    kl = exact_kl(logits.log_softmax(-1), reference).sum()
    kl.backward()
    assert float(kl) == pytest.approx(120)
    assert logits.grad.isfinite().all()


def test_with_the_divergence_to_come_the_gradient_is_that_of_the_expected_divergence():
    """Two levels of three codes: Σ over all items of π (w ∇KL + Σ_l ∇log π_l · KL to come) is ∇ KL(π || reference), enumerated; without
    the second term it is not."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    ref_first, ref_second = reference[:, 0].log_softmax(0), reference[:, 1:].log_softmax(1)

    joint = first.log_softmax(0)[:, None] + second.log_softmax(1)
    whole = (joint.exp() * (joint - ref_first[:, None] - ref_second)).sum()
    expected = torch.autograd.grad(whole, (first, second))

    def gradients(with_what_comes: bool) -> tuple[torch.Tensor, ...]:
        items = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        rows = [first.log_softmax(0).expand(9, 3), second.log_softmax(1)[items[:, 0]]]
        kl = torch.stack([exact_kl(rows[0], ref_first.expand(9, 3)), exact_kl(rows[1], ref_second[items[:, 0]])], dim=1)
        chosen = torch.stack([row.gather(1, items[:, [level]])[:, 0] for level, row in enumerate(rows)], dim=1)
        weights = joint.detach().exp().flatten()[:, None]
        loss = (weights * kl).sum()
        if with_what_comes:
            loss = loss + (weights * chosen * divergence_to_come(kl.detach())).sum()
        return torch.autograd.grad(loss, (first, second))

    for gradient, wanted in zip(gradients(True), expected, strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert not torch.allclose(gradients(False)[0], expected[0], rtol=0.01)


TWO_CATEGORIES = Categories(["a", "b"], np.tile([[1.0, 0.0], [0.0, 1.0]], (3, 1)), np.array([0.5, 0.5]))
SEQUENCES = [np.array([0, 1, 2]), np.array([0, 1, 3]), np.array([1, 4]), np.array([5, 0])]


def test_history_score_is_the_discounted_gain_of_the_others_list():
    knn = fit_item_knn(SEQUENCES, 6, neighbours=6, shrink=0.0)
    history, items = [0, 1], [0, 1, 2, 3, 4, 5]
    gains = history_score(knn)(items=items, history=[history] * 6, target=[NO_TARGET] * 6)
    scores = knn.scores([np.array(history)])[0]
    unseen = sorted((item for item in items if item not in history), key=lambda item: (-scores[item], item))
    assert gains == pytest.approx([0 if item in history else 1 / math.log2(2 + unseen.index(item)) for item in items])
    assert max(gains) == 1
    mixed = history_score(knn)(items=[2, 2], history=[history, history], target=[3, NO_TARGET])
    assert mixed == [None, gains[2]], "the list was fitted on the answer to the first question"


def test_only_history_score_has_something_to_say_of_an_open_question():
    knn = lambda: fit_item_knn(SEQUENCES, 6, 6, 0.0)  # noqa: E731
    values = ValueSource(valued_dataset(), "rating", 0)
    rewards = reward_functions(
        list(REWARDS), RewardSources(SEQUENCES, np.eye(6, dtype=np.float32), 2, knn, values, categories=TWO_CATEGORIES)
    )
    columns = {
        "user": [0, 0, 0, 0],
        "codes": [(0, 1), (0, 2), (0, 1), (0, 2)],
        "target_codes": [(0, 1)] * 4,
        "items": [1, 2, 1, 2],
        "target": [1, 1, NO_TARGET, NO_TARGET],
        "history": [[0]] * 4,
        "target_prob": [0.5, 0.5, 0.0, 0.0],
    }
    for name, reward in zip(REWARDS, rewards, strict=True):
        known, unknown = reward(**columns)[:2], reward(**columns)[2:]
        assert reward.__name__ == name, "TRL logs a reward under its function's name"
        assert (None in known) == (None not in unknown) == (name == "history_score")
        assert known.count(None) + unknown.count(None) == 2


def test_rank_penalty_by_hand():
    reward = rank_penalty(3)
    target = (1, 1)
    codes = [(0, 0), target, (2, 2), (0, 0), (2, 2), (3, 3)]
    total = 1 + 1 / math.log2(3) + 1 / 2
    expected = [-1 / total, 0.0, -0.5 / total, 0.0, 0.0, 0.0]
    assert reward(codes, [target] * 6) == pytest.approx(expected)


def test_collaborative_score_is_the_cosine_of_users():
    sequences = [np.array([0, 1, 0]), np.array([0, 1, 2]), np.array([2])]
    reward = collaborative_score(sequences, n_items=4)
    assert reward([1, 2, 0, 3, 3], [0, 0, 0, 0, 3]) == pytest.approx([1.0, 0.5, 1.0, 0.0, 1.0])


def test_embedding_similarity_is_the_cosine_of_vectors():
    vectors = np.array([[2, 0], [3, 3], [-1, 0], [0, 0]], dtype=np.float32)
    cosines = embedding_similarity(vectors)([0, 1, 2, 3], [0, 0, 0, 0])
    assert cosines == pytest.approx([1, math.sqrt(0.5), -1, 0])


def test_novel_hit_pays_most_for_the_rarest():
    sequences = [np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])]
    reward = novel_hit(sequences, n_items=4)
    assert reward([3, 2, 1, 0, 1], [3, 2, 1, 0, 0]) == pytest.approx([1, 1, 0.9, 0.6, 0])


def test_first_difference_by_hand():
    wanted = [(1, 2, 3)] * 4
    drawn_codes = [(1, 2, 3), (1, 2, 4), (1, 3, 3), (0, 2, 3)]
    assert first_difference(drawn_codes, wanted) == [[1, 1, 1], [1, 1, -1], [1, -1, 0], [-1, 0, 0]]


def test_what_settings_name_is_what_there_is():
    assert set(get_args(ObjectiveName)) == set(OBJECTIVES)
    helps = {field.name: field.metadata["help"] for field in fields(ObjectiveConfig)}
    for name in OBJECTIVES:
        assert name in helps["objective"]
    measured, experimental = helps["rewards"].split("experimental:")
    for name in (*REWARDS, *EXACT_ONLY):
        assert name in (experimental if name in EXPERIMENTAL else measured)


def test_a_reward_of_ones_own_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def half(codes, **columns):\n    return [0.5] * len(codes)\n\nnothing = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sources = RewardSources(SEQUENCES, np.eye(6, dtype=np.float32), 2, lambda: None)
    first, second = reward_functions(["exact_hit", "my_rewards.half"], sources)
    assert first.__name__ == "exact_hit"
    assert second(codes=[(0, 1), (0, 2)], target=[1, 1]) == [0.5, 0.5]
    for name, sentence in (
        ("luck", "rewards has luck; give any of exact_hit"),
        ("my_rewards.whole", r"rewards has my_rewards\.whole, which cannot be imported"),
        ("no_such_package.half", r"rewards has no_such_package\.half, which cannot be imported"),
        ("ndcg_at_k", "rewards has ndcg_at_k, which looks at every item's probability; set draw to every_item"),
        ("my_rewards.nothing", r"rewards has my_rewards\.nothing, which is no function"),
    ):
        with pytest.raises(InputError, match=sentence):
            reward_functions([name], sources)
