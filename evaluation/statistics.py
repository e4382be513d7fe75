"""Uncertainty of a mean over users, and of the difference between two models on the same users.

Per-case metrics take few distinct values (a hit or none; one per rank), so resamples are drawn as counts of each distinct value.
That is the same distribution as drawing case by case, at a fraction of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWN_TOGETHER = 4_000_000


@dataclass(frozen=True)
class Comparison:
    """mean(a - b), its bootstrap interval, and the two-sided p-value of "a and b are exchangeable within each case"."""

    difference: float
    low: float
    high: float
    p: float


def bootstrap_interval(
    values: np.ndarray, seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean. values: float [B], one a case. Returns (low, high)."""
    assert values.ndim == 1
    assert len(values) > 0
    distinct, counts = np.unique(values, return_counts=True)
    means = np.empty(resamples)
    rng = np.random.default_rng(seed)
    for start, stop in _chunks(resamples, len(distinct)):
        drawn = rng.multinomial(len(values), counts / len(values), size=stop - start)  # [chunk, distinct]
        means[start:stop] = drawn @ distinct / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(a: np.ndarray, b: np.ndarray, seed: int, resamples: int = 10_000, level: float = 0.95) -> Comparison:
    """Paired permutation test by sign flips of a - b, with a bootstrap interval of the mean difference.

    a, b: float [B], the same metric of two models on the same cases. p is (1 + flips at least as extreme) / (1 + resamples), so
    it is never 0 and holds its level at any B.
    """
    assert a.shape == b.shape
    differences = a - b
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    observed = abs(differences.sum())
    tolerance = 1e-9 * max(1.0, float(np.abs(differences).sum()))  # equal sums, added up in another order
    rng = np.random.default_rng(seed)
    extreme = 0
    for start, stop in _chunks(resamples, len(sizes)):
        positive = rng.binomial(counts, 0.5, size=(stop - start, len(sizes)))
        extreme += int((np.abs((2 * positive - counts) @ sizes) >= observed - tolerance).sum())
    low, high = bootstrap_interval(differences, seed, level=level)
    return Comparison(float(differences.mean()), low, high, (1 + extreme) / (1 + resamples))


def _chunks(total: int, width: int) -> list[tuple[int, int]]:
    """Ranges that cover `total` rows of `width` numbers, bounded in memory."""
    size = max(1, DRAWN_TOGETHER // max(width, 1))
    return [(start, min(start + size, total)) for start in range(0, total, size)]
