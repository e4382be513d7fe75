"""Recall@K and NDCG@K over the whole catalogue, and checks of the lists that a recommender returns.

Every case has one target, so Recall@K is the hit rate. Semantic IDs are unique, so a list of token strings is a list of items and
credit by item is exact. Ties are broken against the model: an item with the target's score ranks before it, so that a model
which gives every item the same score earns nothing.
"""

from __future__ import annotations

import numpy as np

CUTOFFS = (1, 5, 10, 20, 50)
NO_ITEM = -1


def rank_of_target(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """0-based rank of each target: the number of other items that score as much or more.

    scores: float [B, N], -inf for items that may not be recommended; targets: int [B]. Returns int64 [B]. A target at -inf is never
    recommended: its rank is N, or the largest cut-off where the catalogue is smaller than that.
    """
    assert scores.ndim == 2
    assert targets.shape == (len(scores),)
    assert not np.isnan(scores).any(), "a score is NaN"
    target_scores = scores[np.arange(len(scores)), targets]
    ranks = (scores >= target_scores[:, None]).sum(axis=1) - 1
    never = max(scores.shape[1], CUTOFFS[-1])
    return np.where(np.isneginf(target_scores), never, ranks).astype(np.int64)


def ranks_in_lists(items: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """0-based position of each target in its list, k where it is absent.

    items: int [B, k], best first, -1 for "no item"; targets: int [B]. Returns int64 [B].
    """
    assert items.ndim == 2
    assert targets.shape == (len(items),)
    is_target = items == targets[:, None]
    return np.where(is_target.any(axis=1), is_target.argmax(axis=1), items.shape[1]).astype(np.int64)


def recall_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """1.0 where the target is among the first k, else 0.0. ranks: int [B], 0-based. Returns float64 [B]."""
    return (ranks < k).astype(np.float64)


def ndcg_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(rank + 2) where the target is among the first k, else 0.0. ranks: int [B], 0-based. Returns float64 [B]."""
    return np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)


def mask_seen(scores: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
    """A copy of `scores` [B, N] with -inf at each case's history items."""
    assert len(scores) == len(histories)
    masked = scores.copy()
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    masked[rows, np.concatenate(histories)] = -np.inf
    return masked


def count_invalid(items: np.ndarray, n_items: int) -> int:
    """Entries of `items` [B, k] that are neither an item (0…n_items-1) nor "no item" (-1), or that follow a "no item"."""
    outside = (items < NO_ITEM) | (items >= n_items)
    after_the_end = (items != NO_ITEM) & (np.cumsum(items == NO_ITEM, axis=1) > 0)
    return int((outside | after_the_end).sum())


def count_repeats(items: np.ndarray) -> int:
    """Entries of `items` [B, k] that stand earlier in the same list too; "no item" (-1) does not count."""
    ordered = np.sort(items, axis=1)
    return int(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ITEM)).sum())


def count_short(items: np.ndarray, reachable: np.ndarray) -> int:
    """Lists of `items` [B, k] that hold fewer than they could: k, or the reachable items (int [B]) where these are fewer."""
    assert reachable.shape == (len(items),)
    return int(((items != NO_ITEM).sum(axis=1) < np.minimum(reachable, items.shape[1])).sum())


def count_seen(items: np.ndarray, histories: list[np.ndarray]) -> int:
    """Entries of `items` [B, k] that are in their case's history; 0 is right for lists with seen items masked."""
    return sum(int(np.isin(row, history).sum()) for row, history in zip(items, histories, strict=True))
