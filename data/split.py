"""Assign every interaction to training, validation or test.

The tie rule, part of the contract: time order means by timestamp, and among equal timestamps by the order of the input rows; only
`leave_one_out_ties_shuffled` draws the order of a user's equal timestamps instead. Every protocol returns the log sorted by user (as
strings), then in that time order, with a column `split`.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from sidrec.data.codes import codes, ranks, run_ends

NAMES = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)
TRAIN_TENTHS, VALID_TENTHS = 8, 1
MIN_LENGTH_TO_SPLIT = 3


def leave_one_out(interactions: pl.DataFrame) -> pl.DataFrame:
    """Each user's last interaction is test, the last but one valid, the rest train.

    Users with fewer than 3 interactions are train altogether: without a training item there is nothing to learn about them.
    """
    log = by_user_and_time(interactions)
    last = run_ends(codes(log["user_id"]))
    last = last[np.diff(last, prepend=-1) >= MIN_LENGTH_TO_SPLIT]
    split = np.full(len(log), TRAIN, dtype=np.uint8)
    split[last - 1] = VALID
    split[last] = TEST
    return log.with_columns(_named(split))


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
    order = np.argsort(interactions["timestamp"].to_numpy(), kind="stable")
    split = np.full(n, TRAIN, dtype=np.uint8)
    split[order[TRAIN_TENTHS * n // 10 :]] = VALID
    split[order[(TRAIN_TENTHS + VALID_TENTHS) * n // 10 :]] = TEST
    return by_user_and_time(interactions.with_columns(_named(split)))


def published(interactions: pl.DataFrame) -> pl.DataFrame:
    """The split that the publisher's own files make; the reader has put it into the column `split`."""
    return by_user_and_time(interactions)


def by_user_and_time(interactions: pl.DataFrame) -> pl.DataFrame:
    """The log by user (as strings), then time; equal times in input order."""
    order = np.lexsort((interactions["timestamp"].to_numpy(), ranks(interactions["user_id"])))  # stable
    return interactions[order.astype(np.uint32)]


def _named(split: np.ndarray) -> pl.Series:
    return pl.Series("split", split).cat.to(pl.Enum(NAMES))
