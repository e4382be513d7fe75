"""The first ten items that each model recommends, test case by test case: the rows of lists.parquet.

Columns: model, case (0-based, in the order of the data set's test cases), items (ten item indices, best first, -1 where there are
fewer), log_probs (log π of each, -inf at -1; null for a model that gives no probabilities). Seen items are masked.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from sidrec.data.metrics import NO_ITEM

LIST_LENGTH = 10


def first_items(scores: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """The k items of the highest scores, int64 [B, k], best first; -1 where fewer than k are above -inf.

    scores: float [B, N]; targets: int [B]. Of equal scores the target comes last and then the lower index first, so that a target at
    rank r < k of `rank_of_target` stands at place r, and one at a rank of k or more is not in the list.
    """
    B, N = scores.shape
    assert targets.shape == (B,)
    assert not np.isnan(scores).any(), "a score is NaN"
    width = min(k, N)
    least = np.partition(scores, N - width, axis=1)[:, N - width]  # the last score that may be in the list
    items = np.full((B, k), NO_ITEM, dtype=np.int64)
    for row, target in enumerate(targets):
        among = np.flatnonzero((scores[row] >= least[row]) & (scores[row] > -np.inf))
        best = among[np.lexsort((among, among == target, -scores[row, among]))[:width]]
        items[row, : len(best)] = best
    return items


def lists_frame(model: str, items: np.ndarray, log_probs: np.ndarray | None = None) -> pl.DataFrame:
    """A model's rows of lists.parquet. items: int [B, k], the first ten are kept; log_probs: float [B, k] of them, or none."""
    B = len(items)
    first = np.full((B, LIST_LENGTH), NO_ITEM, dtype=np.int64)
    width = min(LIST_LENGTH, items.shape[1])
    first[:, :width] = items[:, :width]
    kind = pl.Array(pl.Float32, LIST_LENGTH)
    if log_probs is None:
        probabilities = pl.Series([None] * B, dtype=kind)
    else:
        assert log_probs.shape == items.shape
        filled = np.full((B, LIST_LENGTH), -np.inf, dtype=np.float32)
        filled[:, :width] = log_probs[:, :width]
        probabilities = pl.Series(filled, dtype=kind)
    columns = {"case": np.arange(B), "items": pl.Series(first, dtype=pl.Array(pl.Int64, LIST_LENGTH))}
    return pl.DataFrame(columns | {"log_probs": probabilities}).select(pl.lit(model).alias("model"), pl.all())


def items_of(lists: pl.DataFrame, model: str) -> np.ndarray:
    """One model's lists, int64 [cases, 10], in the order of the data set's cases."""
    return lists.filter(pl.col("model") == model)["items"].to_numpy()


def log_probs_of(lists: pl.DataFrame, model: str) -> np.ndarray | None:
    """log π of the items of `items_of`, float32 [cases, 10]; None for a model that gives no probabilities."""
    column = lists.filter(pl.col("model") == model)["log_probs"]
    return None if column.has_nulls() else column.to_numpy()
