"""Lists with a bias of cold items against brute force, and biases that give an exact share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sidrec.decoding.cold_items import bias_of_share, joined
from sidrec.decoding.recommender import Recommendations
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError

N, K = 24, 6


def best_lists(
    scores: np.ndarray, may: np.ndarray, k: int, codes: np.ndarray, diversity: int | None
) -> Recommendations:
    """Filled from the best item down, by a loop."""
    items, log_probs = np.full((len(scores), k), -1), np.full((len(scores), k), -np.inf, dtype=np.float32)
    for row, values in enumerate(scores):
        places: list[int] = []
        for item in np.argsort(-values, kind="stable"):
            full = diversity is not None and (codes[places, 0] == codes[item, 0]).sum() >= diversity
            if may[item] and not full and len(places) < k:
                places.append(item)
        items[row, : len(places)], log_probs[row, : len(places)] = places, values[places]
    return Recommendations(items, log_probs, np.full(len(scores), may.sum()))


@pytest.mark.parametrize("diversity", [None, 1, 2])
@pytest.mark.parametrize("bias", [-3.0, 0.0, 1.5, 30.0])
def test_joined_lists_are_those_of_brute_force(bias: float, diversity: int | None) -> None:
    rng = np.random.default_rng(7)
    codes = np.stack([np.arange(N) % 7, np.arange(N)], axis=1)
    trie = SidTrie(torch.from_numpy(codes), [7, N])
    for n_cold in (0, 2, 9, N):
        is_cold = np.isin(np.arange(N), rng.permutation(N)[:n_cold])
        scores = rng.standard_normal((20, N)).astype(np.float32)
        parts = (best_lists(scores, may, K, codes, diversity) for may in (~is_cold, is_cold))
        lists = joined(*parts, bias, K, trie, diversity)
        biased = scores + np.float32(bias) * is_cold
        expected = best_lists(biased, np.ones(N, dtype=bool), K, codes, diversity)
        assert np.array_equal(lists.items, expected.items)
        without = np.take_along_axis(scores, lists.items.clip(min=0), axis=1)
        assert_allclose(lists.log_probs[lists.items >= 0], without[lists.items >= 0])  # log π, without the bias
        assert (lists.reachable == N).all()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_bias_gives_exactly_its_share(share: float) -> None:
    rng = np.random.default_rng(1)
    trie = SidTrie(torch.arange(N)[:, None], [N])
    is_cold, scores = np.arange(N) % 2 == 0, rng.standard_normal((50, N)).astype(np.float32)
    others, cold = (best_lists(scores, may, K, np.zeros((N, 1)), None) for may in (~is_cold, is_cold))
    bias = bias_of_share(others.log_probs, cold.log_probs, share)
    lists = joined(others, cold, bias, K, trie)
    assert is_cold[lists.items].sum() == round(share * 50 * K)


def test_shares_that_cannot_be_are_a_sentence() -> None:
    others, cold = np.zeros((4, K)), np.full((4, K), -np.inf)
    cold[:, 0] = -1  # one cold item each
    assert bias_of_share(others, cold, 1 / K) == pytest.approx(2)  # above what the last of them needs
    for share, message in ((0.0, "is no share"), (1.0, "is no share"), (0.5, r"more than the 16\.7%")):
        with pytest.raises(InputError, match=message):
            bias_of_share(others, cold, share)
    assert np.isfinite(bias_of_share(np.full((4, K), -np.inf), cold, 0.1))  # nothing but cold items
