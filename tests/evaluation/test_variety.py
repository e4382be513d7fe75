"""Novelty and diversity of lists against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.evaluation.variety import diversity, novelty, takers_of

N = 7


def test_novelty_is_the_mean_surprise() -> None:
    counts = np.array([5, 0, 2])
    shares = [6 / 10, 1 / 10, 3 / 10]
    items = np.array([[0, 2, -1], [1, -1, -1]])
    assert novelty(items, counts) == pytest.approx(np.mean([-math.log2(shares[item]) for item in (0, 2, 1)]))


@given(
    st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=6), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(0, N - 1), min_size=0, max_size=4, unique=True), min_size=1, max_size=5),
)
def test_diversity_is_one_less_the_mean_cosine(sequences: list[list[int]], lists: list[list[int]]) -> None:
    takers = [{user for user, sequence in enumerate(sequences) if item in sequence} for item in range(N)]

    def cosine(a: int, b: int) -> float:
        scale = math.sqrt(len(takers[a]) * len(takers[b]))
        return len(takers[a] & takers[b]) / scale if scale else 0.0

    means = []
    for items in lists:
        pairs = [(a, b) for place, a in enumerate(items) for b in items[:place]]
        means += [1 - np.mean([cosine(a, b) for a, b in pairs])] if pairs else []
    padded = np.array([items + [-1] * (4 - len(items)) for items in lists])
    measured = diversity(padded, takers_of([np.array(sequence) for sequence in sequences], N))
    assert measured == (pytest.approx(np.mean(means)) if means else None)
