"""NDCG of lists drawn without replacement: against all ordered lists of a trie of three levels, and against counting every item."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import make_sids
from torch.nn.functional import cosine_similarity
from torch.utils.checkpoint import checkpoint

from sidrec.decoding.trie import SidTrie
from sidrec.rl.expectation import Questions, expected
from sidrec.rl.experimental.ordered_draws import HEAD, expected_gain, ndcg_at_k

N, LEVEL_SIZES = 8, [2, 3, 2]


def log_probs_of(logits: list[torch.Tensor], codes: np.ndarray) -> torch.Tensor:
    """log π of every item, float64 [R, N]: at each level softmax over the codes that exist under the prefix."""
    total = torch.zeros(len(logits[0]), len(codes), dtype=torch.float64)
    for level, scores in enumerate(logits):
        for item, path in enumerate(codes):
            siblings = np.unique(codes[(codes[:, :level] == path[:level]).all(1)][:, level])
            node = sum(int(code) * 3**place for place, code in enumerate(path[:level]))
            rows = scores[:, node]
            total[:, item] += rows[:, path[level]] - rows[:, siblings].logsumexp(1)
    return total


def by_enumeration(probs: torch.Tensor, target: int, gains: list[float]) -> torch.Tensor:
    """The gain of the target's place, over all ordered lists of K items."""
    total = torch.zeros((), dtype=probs.dtype)
    for items in permutations(range(len(probs)), len(gains)):
        if target in items:
            left, chance = torch.ones((), dtype=probs.dtype), torch.ones((), dtype=probs.dtype)
            for item in items:
                chance = chance * probs[item] / left
                left = left - probs[item]
            total = total + chance * gains[items.index(target)]
    return total


@pytest.fixture
def trie_scores():
    """(scores of every node, codes in the order of the leaves)."""
    sids = make_sids(N, LEVEL_SIZES)
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    codes = sids.codes[trie.item_of_leaf[torch.arange(N)].numpy()]
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(3, 9, size, generator=generator, dtype=torch.float64) * 1.5 for size in LEVEL_SIZES]
    return [each.requires_grad_() for each in scores], codes


@pytest.mark.parametrize("ks", [[1], [3], [4], [1, 3]])
def test_the_gradient_is_that_of_the_ndcg_over_all_ordered_lists(trie_scores, ks):
    scores, codes = trie_scores
    log_probs = log_probs_of(scores, codes)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(3, dtype=torch.float64))
    asked = Questions(torch.tensor([5, 0, 2]), torch.tensor([0, 1, 2]))
    loss, values = expected(log_probs.float(), asked, [ndcg_at_k(ks)], [1.0], scaled=False)
    gains = [np.mean([(place < k) / np.log2(place + 2) for k in ks]) for place in range(max(ks))]
    wanted = torch.stack(
        [
            by_enumeration(row.exp(), target, gains)
            for row, target in zip(log_probs, asked.targets.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(values[:, 0].double(), wanted.detach(), atol=1e-5, rtol=1e-4)
    ours, theirs = (
        torch.cat([g.flatten() for g in torch.autograd.grad(total, scores, retain_graph=True)])
        for total in (-loss.sum(), wanted.sum())
    )
    assert cosine_similarity(ours, theirs, dim=0) > 0.9999
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 8.0])
def test_what_is_not_counted_one_by_one_is_as_if_it_were(spread):
    """300 items, of which four times K are counted: against a fine sum over time with every item counted."""
    k, n = 5, 300
    scores = np.random.default_rng(2).normal(size=(6, n)) * spread
    probs = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    targets = np.argsort(-probs, axis=1)[np.arange(6), [0, 1, 4, 20, HEAD * k + 9, 250]]
    gains = 1 / np.log2(np.arange(k) + 2)
    ours = expected_gain(torch.from_numpy(probs).float(), torch.from_numpy(targets), torch.from_numpy(gains))
    for row, target, gain in zip(probs, targets, ours.tolist(), strict=True):
        times = np.geomspace(1e-6, 1e9, 3000)
        before = np.zeros((len(times), k))
        before[:, 0] = 1
        for item in np.flatnonzero(np.arange(n) != target):
            came = -np.expm1(-row[item] * times)[:, None]
            before = before * (1 - came) + np.pad(before[:, :-1], ((0, 0), (1, 0))) * came
        wanted = np.trapezoid(times * row[target] * np.exp(-row[target] * times) * (before @ gains), np.log(times))
        assert gain == pytest.approx(wanted, rel=2e-3, abs=1e-7)


def test_a_checkpoint_around_it_changes_nothing():
    """As where many questions are judged in parts, whose log-probabilities are computed again for their gradients."""
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0), requires_grad=True)
    asked = Questions(torch.tensor([3, 9, 0, 29]), torch.zeros(4, dtype=torch.long))

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return expected(logits.log_softmax(1), asked, [ndcg_at_k([3])], [1.0], scaled=False)[0].sum()

    plain, again = (
        torch.autograd.grad(each, scores)[0] for each in (loss(scores), checkpoint(loss, scores, use_reentrant=False))
    )
    torch.testing.assert_close(plain, again)
    assert plain.abs().max() > 1e-3
