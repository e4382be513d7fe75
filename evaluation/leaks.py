"""The leak check: nothing that a model is fitted on or asked with lies at or after what it is tested on.

It reads the log again, row by row, and compares with what the data set hands out; `sidrec evaluate` runs it before any model.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from sidrec.data.dataset import Dataset, EvalCases, SplitName
from sidrec.pipeline.errors import InputError

LEAVE_ONE_OUT = ("leave_one_out", "leave_one_out_ties_shuffled")
ORDER = ("train", "valid", "test")
SPLITS: tuple[SplitName, ...] = ("valid", "test")
REMEDY = "run `sidrec prepare` again"


def check_leaks(dataset: Dataset, file: Path) -> None:
    """Raise InputError, naming user and row (0-based, of `file`, interactions.parquet), where a later interaction leaks.

    Every protocol: each user's rows are in time order; the training sequences are the training rows and no others; each case's
    history is the user's rows before its target. Leave-one-out: a user has no train row after a valid or test row, no valid row after
    a test row, and at most one of each. Global time: no row of train is later than one of valid or test, none of valid later than
    one of test.
    """
    log = dataset.interactions.with_row_index("row").with_columns(place=pl.int_range(pl.len()).over("user_id"))
    previous = pl.col("timestamp").shift(1).over("user_id")
    refuse_if_any(log, pl.col("timestamp") < previous, file, "it is earlier than the row before it")
    protocol = dataset.info["protocol"]
    if protocol in LEAVE_ONE_OUT:
        check_leave_one_out(log, file)
    if protocol == "global_time":
        check_global_time(log, file)
    check_train_sequences(dataset.train_sequences, log, file)
    for split in SPLITS:
        check_histories(dataset.cases(split), split, log, file)


def refuse_if_any(log: pl.DataFrame, is_leak: pl.Expr, file: Path, what: str) -> None:
    """Raise InputError for the first row where `is_leak` holds."""
    leaks = log.filter(is_leak)
    if len(leaks):
        row = leaks.row(0, named=True)
        raise InputError(f"{file}, row {row['row']} (user {row['user_id']}, {row['split']}): {what}; {REMEDY}.")


def check_leave_one_out(log: pl.DataFrame, file: Path) -> None:
    for earlier, later in (("train", "valid"), ("train", "test"), ("valid", "test")):
        first_later = pl.when(pl.col("split") == later).then("place").min().over("user_id")
        is_leak = (pl.col("split") == earlier) & (pl.col("place") > first_later)
        refuse_if_any(log, is_leak, file, f"a {earlier} interaction after the user's {later} interaction")
    for split in SPLITS:
        is_split = pl.col("split") == split
        is_second = is_split & (is_split.cum_sum().over("user_id") > 1)
        refuse_if_any(log, is_second, file, f"a second {split} interaction of the user")


def check_global_time(log: pl.DataFrame, file: Path) -> None:
    for earlier, later in pairwise(ORDER):
        border = log.filter(pl.col("split").is_in(ORDER[ORDER.index(later) :]))["timestamp"].min()
        is_leak = (pl.col("split") == earlier) & (pl.col("timestamp") > pl.lit(border))
        refuse_if_any(log, is_leak, file, f"a {earlier} interaction later than the first of {later} or after")


def check_train_sequences(sequences: list[np.ndarray], log: pl.DataFrame, file: Path) -> None:
    """What models are fitted on is each user's train rows."""
    train = log.filter(pl.col("split") == "train").group_by("user_id", maintain_order=True).agg("item_index", "row")
    if len(train) != len(sequences):
        raise InputError(f"{file} has {len(train)} users with train rows, but {len(sequences)} sequences; {REMEDY}.")
    for sequence, (user, items, rows) in zip(sequences, train.iter_rows(), strict=True):
        if sequence.tolist() != items:
            raise InputError(
                f"{file}, row {rows[0]} (user {user}): the training sequence is {sequence.tolist()}, but the user's train rows "
                f"are {items}; {REMEDY}."
            )


def check_histories(cases: EvalCases, split: SplitName, log: pl.DataFrame, file: Path) -> None:
    """Each case's history is what lies before its target's row, and no more."""
    asked = log.filter((pl.col("split") == split) & (pl.col("place") > 0)).select(
        "user_id", "row", "place", "item_index"
    )
    if len(asked) != len(cases):
        raise InputError(f"{file} has {len(asked)} {split} rows with a history, but {len(cases)} cases; {REMEDY}.")
    items = log["item_index"].to_numpy()
    for case, (user, row, place, target) in enumerate(asked.iter_rows()):
        history = cases.histories[case]
        if cases.user_ids[case] != user or cases.targets[case] != target:
            raise InputError(f"{file}, row {row} (user {user}): the {split} case asks for another target; {REMEDY}.")
        if not np.array_equal(history, items[row - place : row]):
            raise InputError(
                f"{file}, row {row} (user {user}): the history of this {split} case is not the user's {place} rows before it (it "
                f"ends with item {history[-1]}); {REMEDY}."
            )
