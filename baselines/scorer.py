"""A scorer gives every item of the catalogue a score after a history; here is what can be made of its scores."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import mask_seen, rank_of_target, recall_at

CASES_TOGETHER = 512  # cases whose scores are held at once
SAME = 2.0**-30  # scores that differ by a smaller part of themselves are equal: rounding makes them differ
NEXT_TO_NOTHING = 1e-200  # what lifts popular items among those that score 0, below every other score


class Scorer(Protocol):
    """Anything that gives every item of the catalogue a score after a history."""

    @property
    def name(self) -> str: ...

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Histories (item indices, oldest first) -> float [B, N], higher is better; as precise as what orders the items needs."""
        ...


def more_popular_first(scores: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """float64, of the shape of `scores` [..., N]: their order, and of equal scores that of `popularity` [N], 0 or more."""
    share = popularity / (2.0 * max(float(popularity.max()), np.finfo(np.float64).tiny))  # at most a half
    exact = scores.astype(np.float64)
    return exact + np.where(exact == 0, NEXT_TO_NOTHING, np.abs(exact) * SAME) * share


def rank_cases(scorer: Scorer, cases: EvalCases, masked: bool) -> np.ndarray:
    """Ranks of the cases' targets over the whole catalogue, int64 [B]; `masked`: without each case's history items."""
    ranks = []
    for start in range(0, len(cases), CASES_TOGETHER):
        part = cases.take(np.arange(start, min(start + CASES_TOGETHER, len(cases))))
        scores = scorer.scores(part.histories)
        assert scores.shape[0] == len(part)
        ranks.append(rank_of_target(mask_seen(scores, part.histories) if masked else scores, part.targets))
    return np.concatenate(ranks)


def valid_recall(scorer: Scorer, valid: EvalCases) -> float:
    """Recall@10 with seen items masked, which settings are chosen by."""
    return float(recall_at(rank_cases(scorer, valid, masked=True), 10).mean())


def gains(scorer: Scorer, histories: list[np.ndarray]) -> np.ndarray:
    """What each item would gain if the scorer's ranking of the items outside the history were right, float32 [B, N].

    It is 1 / log2(1 + place), NDCG's discount, at places 1, 2, … (ties: the lower index first), and 0 for an item of the history.
    """
    scores = mask_seen(scorer.scores(histories), histories)
    order = np.argsort(-scores, axis=1, kind="stable")
    discounts = (1 / np.log2(2 + np.arange(scores.shape[1]))).astype(np.float32)
    discount_of_item = np.empty(scores.shape, dtype=np.float32)
    np.put_along_axis(discount_of_item, order, np.broadcast_to(discounts, scores.shape), axis=1)
    return np.where(np.isneginf(scores), np.float32(0), discount_of_item)
