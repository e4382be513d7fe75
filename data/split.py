"""Which interaction is for what: training, validation or test.

The tie rule, part of the contract: time order means by timestamp, and among equal timestamps by the order of the input rows; only
`leave_one_out_ties_shuffled` draws the order of a user's equal timestamps instead. Every protocol returns the log sorted by user (as
strings), then in that time order, with a column `split`.
"""

from __future__ import annotations

import numpy as np
import polars as pl

TRAIN_TENTHS, VALID_TENTHS = 8, 1
MIN_LENGTH_TO_SPLIT = 3


def leave_one_out(interactions: pl.DataFrame) -> pl.DataFrame:
    """Each user's last interaction is test, the last but one valid, the rest train.

    Users with fewer than 3 interactions are train altogether: without a training item there is nothing to learn about them.
    """
    from_end = pl.len().over("user_id") - pl.int_range(pl.len()).over("user_id")
    split = (
        pl.when(pl.len().over("user_id") < MIN_LENGTH_TO_SPLIT)
        .then(pl.lit("train"))
        .when(from_end == 1)
        .then(pl.lit("test"))
        .when(from_end == 2)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )
    return _in_time_order(interactions, "user_id").with_columns(split=split)


def leave_one_out_ties_shuffled(interactions: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """`leave_one_out` with each user's interactions of one timestamp in an order drawn by `seed`.

    Where timestamps are coarse (days), the order of the input rows is often an order by item, and a model can exploit it; published
    tables use both rules, so this one is offered beside the other.
    """
    drawn = np.random.default_rng(seed).permutation(len(interactions))
    return leave_one_out(interactions[drawn])


def global_time(interactions: pl.DataFrame) -> pl.DataFrame:
    """The first 8 tenths of all interactions in time order are train, the next tenth valid, the last tenth test.

    With n interactions the borders are ⌊8n/10⌋ and ⌊9n/10⌋; interactions with one timestamp may fall on both sides of a border
    (then the tie rule decides).
    """
    n = len(interactions)
    position = pl.int_range(pl.len())
    split = (
        pl.when(position < TRAIN_TENTHS * n // 10)
        .then(pl.lit("train"))
        .when(position < (TRAIN_TENTHS + VALID_TENTHS) * n // 10)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
    )
    return _in_time_order(interactions).with_columns(split=split).sort("user_id", maintain_order=True)


def _in_time_order(interactions: pl.DataFrame, *first: str) -> pl.DataFrame:
    return interactions.sort(*first, "timestamp", maintain_order=True)
