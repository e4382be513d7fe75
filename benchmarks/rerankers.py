"""What a sceptic would do in the place of RL: lists made again from the SFT model's log π and something else, without training.

Each is a function of log π [B, N], -inf for what may not be listed, and a weight; it gives lists, int64 [B, 10], best first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LENGTH = 10
CANDIDATES = 100  # of the most probable items, among which MMR chooses

# (log π [B, N], the value of every item to each user, in standard deviations [B, N], weight) → lists
Reranker = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def top_items(scores: np.ndarray, k: int) -> np.ndarray:
    """int64 [B, k]: the items with the highest scores, best first."""
    part = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)


def by_value(log_probs: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
    """The highest log π + weight · value."""
    return top_items(log_probs + weight * values, LENGTH)


def by_logit_adjustment(counts: np.ndarray) -> Reranker:
    """The highest log π - weight · log of how often an item is taken (arXiv 2007.07314). counts: int64 [N], training interactions."""
    popularity = np.log(counts + 1)

    def by_logit_adjustment(log_probs: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
        return top_items(log_probs - weight * popularity, LENGTH)

    return by_logit_adjustment


def by_mmr(units: np.ndarray) -> Reranker:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998): one item after the other, the highest log π - weight · its largest cosine
    with those before it. units: float32 [N, D], rows of length 1."""

    def by_mmr(log_probs: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
        candidates = top_items(log_probs, min(CANDIDATES, log_probs.shape[1]))
        relevance = np.take_along_axis(log_probs, candidates, axis=1)
        vectors = units[candidates]  # [B, C, D]
        likeness, open_ = np.zeros_like(relevance), np.ones(relevance.shape, dtype=bool)
        rows, chosen = np.arange(len(candidates)), []
        for _ in range(LENGTH):
            place = np.where(open_, relevance - weight * likeness, -np.inf).argmax(1)
            open_[rows, place] = False
            chosen.append(candidates[rows, place])
            likeness = np.maximum(likeness, np.einsum("bcd,bd->bc", vectors, vectors[rows, place]))
        return np.stack(chosen, axis=1)

    return by_mmr
