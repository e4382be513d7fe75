"""Uncertainty of a mean over users, and of the difference between two models on the same users.

Users are what is drawn: one who has several cases (global time) is drawn, or has the sign flipped, with all of them. Per-user sums
take few distinct values (a hit or none; one per rank), so resamples are drawn as counts of each distinct value. That is the same
distribution as drawing user by user, at a fraction of the work.

A model trained with several seeds enters as its mean over seeds of each case's metric; the test is then of that mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FLIPS = 10_000  # of signs; the smallest p there can be is 1 in so many and one
DRAWN_TOGETHER = 4_000_000


@dataclass(frozen=True)
class PairedTest:
    """mean(a - b), its bootstrap interval, and the two-sided p-value of "a and b are exchangeable within each user"."""

    difference: float
    low: float
    high: float
    p: float


def bootstrap_interval(
    values: np.ndarray, seed: int, resamples: int = 2000, level: float = 0.95, users: np.ndarray | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean. Returns (low, high).

    values: float [B], one a case; users: [B], whose case it is (None: every case is another user's). Users are resampled; a
    resample's mean is over the cases of the users drawn.
    """
    assert values.ndim == 1
    assert len(values) > 0
    sums, sizes = per_user(values, users)
    distinct, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)  # [2, distinct]
    means = np.empty(resamples)
    rng = np.random.default_rng(seed)
    for start, stop in _chunks(resamples, len(counts)):
        drawn = rng.multinomial(len(sums), counts / len(sums), size=stop - start)  # [chunk, distinct]
        means[start:stop] = drawn @ distinct[0] / (drawn @ distinct[1])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    resamples: int = FLIPS,
    level: float = 0.95,
    users: np.ndarray | None = None,
) -> PairedTest:
    """Paired permutation test by sign flips of each user's a - b, with a bootstrap interval of the mean difference.

    a, b: float [B], the same metric of two models on the same cases, means over seeds where there are several; users: [B], whose
    case it is (None: every case is another user's). p is (1 + flips at least as extreme) / (1 + resamples), so it is never 0
    and holds its level at any number of users.
    """
    assert a.shape == b.shape
    differences = per_user(a - b, users)[0]
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    observed = abs(differences.sum())
    tolerance = 1e-9 * max(1.0, float(np.abs(differences).sum()))  # equal sums, added up in another order
    rng = np.random.default_rng(seed)
    extreme = 0
    for start, stop in _chunks(resamples, len(sizes)):
        positive = rng.binomial(counts, 0.5, size=(stop - start, len(sizes)))
        extreme += int((np.abs((2 * positive - counts) @ sizes) >= observed - tolerance).sum())
    low, high = bootstrap_interval(a - b, seed, level=level, users=users)
    return PairedTest(float((a - b).mean()), low, high, (1 + extreme) / (1 + resamples))


def p_in_words(p: float, raw: float) -> str:
    """ "= 0.0312", or "≤ 0.0011" where no flip was as extreme: then the number of flips is all that p says. raw: p before correction."""
    return f"{'≤' if raw <= 1 / (1 + FLIPS) else '='} {p:.4f}"


def per_user(values: np.ndarray, users: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Each user's sum of `values` [B] and number of cases, float [users] both, in the order of the user ids."""
    if users is None:
        return values, np.ones(len(values))
    assert users.shape == values.shape
    _, places = np.unique(users, return_inverse=True)
    return np.bincount(places, weights=values), np.bincount(places).astype(float)


def holm(p: list[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    Of m values the i-th smallest (from 0) becomes max over j ≤ i of (m - j) p_j, at most 1. Calling those below 0.05 different is
    wrong about any of them with probability 5 % at most, whatever their dependence.
    """
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p, dtype=float)[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted.tolist()


def _chunks(total: int, width: int) -> list[tuple[int, int]]:
    """Ranges that cover `total` rows of `width` numbers, bounded in memory."""
    size = max(1, DRAWN_TOGETHER // max(width, 1))
    return [(start, min(start + size, total)) for start in range(0, total, size)]
