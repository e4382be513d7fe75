"""Join new events to the data of a run: the same ids, the same rule for repeats, the catalogue as it is.

What the run held is train from now on. Of the new events in time order the first 8 tenths are train, the next tenth valid, the last tenth
test (`global_time` of the new events alone). Joined data have one column more, `untrained`: whether the weights that the run ends with were
not trained on the row, since it is new or was held out before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.codes import codes
from sidrec.data.dataset import Dataset
from sidrec.data.readers import log_rows
from sidrec.data.repeats import count_again
from sidrec.data.split import by_user_and_time, global_time
from sidrec.data.timestamps import as_day, unit_of
from sidrec.pipeline.errors import InputError

UNTRAINED = "untrained"  # a column of joined data
JOINED = "joined"  # in their dataset.json: what was joined, and what was left out
NAMED_ITEMS = 3
KEY = ("user_id", "item_index", "timestamp")


def join_events(dataset: Dataset, file: Path) -> Dataset:
    """`dataset` with the events of a log, CSV or Parquet as `read_own` reads it; what was done stands in `info["joined"]`.

    Of rows with the same user, item and time the first one counts, the run's before the file's. Events with items that the catalogue lacks
    are left out and counted; users may be new. Of other columns those of the run's log stay, empty where the file lacks them. Raises
    InputError for a file that does not fit, for times in another unit than the run's, where every new event is older than the run's newest,
    and where the new ones are too few to hold some out. Without any new event the data set is as it was, but for `info["joined"]`.
    """
    old = _without_mark(dataset)
    rows = log_rows(file, old.columns)
    refuse_another_unit(file, rows["timestamp"], old["timestamp"])
    places = dataset.items.select("item_id", pl.col("item_index").cast(old["item_index"].dtype))
    rows = rows.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    rows = rows.join(places, on="item_id", how="left", maintain_order="left")
    unknown = rows.filter(pl.col("item_index").is_null())
    new = rows.filter(pl.col("item_index").is_not_null()).unique(KEY, keep="first", maintain_order=True)
    new = _as_in(old, new.join(old.select(KEY), on=KEY, how="anti", maintain_order="left"), file)
    unknown_ids = unknown["item_id"].unique(maintain_order=True)
    told = {
        "rows": len(rows),
        "repeats": len(rows) - len(unknown) - len(new),
        "unknown_events": len(unknown),
        "unknown_items": len(unknown_ids),
        "unknown_first": unknown_ids.head(NAMED_ITEMS).to_list(),
        "events": len(new),
        "users": new["user_id"].n_unique(),
        "new_users": int((~new["user_id"].unique().is_in(old["user_id"].unique().implode())).sum()),
    }
    if new.is_empty():
        return Dataset(dataset.items, dataset.interactions, dataset.info | {JOINED: told}, dataset.left_out)
    was_held_out = (pl.col("split") != "train").alias(UNTRAINED)
    old = old.with_columns(was_held_out).with_columns(split=pl.lit("train"))
    _refuse_older(file, new["timestamp"], old["timestamp"])
    split = global_time(new.drop("split")).with_columns(pl.col("split").cast(pl.String), pl.lit(True).alias(UNTRAINED))
    log = by_user_and_time(pl.concat([old, split.select(old.columns)]))
    joined = Dataset(
        dataset.items, log, dataset.info | facts(dataset, log) | {JOINED: told}, _still_left_out(dataset, log)
    )
    _refuse_too_few(joined, file)
    return joined


def facts(dataset: Dataset, log: pl.DataFrame) -> dict[str, Any]:
    """What dataset.json says of the joined log; the rest is as it was."""
    counts = {"users": log["user_id"].n_unique(), "items": dataset.n_items, "interactions": len(log)}
    counts |= {name: int((log["split"] == name).sum()) for name in ("train", "valid", "test")}
    times = log["timestamp"]
    medians = {
        f"interactions_of_{kind}": float(np.median(log.group_by(name).len()["len"]))
        for kind, name in (("user", "user_id"), ("item", "item_index"))
    }
    return {
        "protocol": "joined",
        "counts": {"removed_interactions": 0, **dataset.info.get("counts", {}), **counts},
        "again": count_again(codes(log["user_id"]), log["item_index"].to_numpy().astype(np.uint32)),
        "times": {"first": times.min(), "last": times.max(), "unit": unit_of(float(np.median(times.to_numpy())))},
        "medians": medians,
    }


def joined_in_words(info: dict[str, Any], file: Path) -> list[str]:
    """What was joined and what was left out, in a sentence each. info: of a joined data set; file: the log."""
    told = info[JOINED]
    sentences = [
        f"{file}: {told['events']:,} new events of {told['users']:,} users, {told['new_users']:,} of them new; {told['repeats']:,} of "
        f"{told['rows']:,} rows say what the run or an earlier row says"
    ]
    if told["unknown_events"]:
        more = ", …" if told["unknown_items"] > len(told["unknown_first"]) else ""
        sentences.append(
            f"{file}: {told['unknown_events']:,} events are left out, since the catalogue lacks their {told['unknown_items']:,} items "
            f"({', '.join(told['unknown_first'])}{more}); a bundle can have them at once (`sidrec add-items`), and to train on them "
            "prepare and train anew"
        )
    return sentences


def replayed_sequences(dataset: Dataset, replay: float, seed: int) -> list[np.ndarray]:
    """The training sequences of a data set that events were joined to, for weights that are trained further.

    Every user with a row that they were not trained on, whole; of the other users `replay` times as many, drawn by the seed, all of them
    where they are fewer. In the order of `train_sequences`. Raises InputError for other data.
    """
    if UNTRAINED not in dataset.interactions.columns:
        raise InputError(
            f"replay is of data that `sidrec update` has joined events to, unlike {dataset.folder}; leave it out."
        )
    train = dataset.interactions.filter(pl.col("split") == "train")
    is_updated = train.group_by("user_id", maintain_order=True).agg(pl.col(UNTRAINED).any())[UNTRAINED].to_numpy()
    others = np.flatnonzero(~is_updated)
    n_drawn = min(len(others), round(replay * int(is_updated.sum())))
    chosen = is_updated.copy()
    chosen[np.random.default_rng(seed).permutation(others)[:n_drawn]] = True
    return [sequence for sequence, is_chosen in zip(dataset.train_sequences, chosen, strict=True) if is_chosen]


def _without_mark(dataset: Dataset) -> pl.DataFrame:
    """The log without what an earlier update has marked."""
    log = dataset.interactions.with_columns(pl.col("user_id", "split").cast(pl.String))
    if UNTRAINED not in log.columns:
        return log
    if JOINED not in dataset.info:
        raise InputError(
            f"{dataset.folder} has a column {UNTRAINED!r}, which an update writes; rename yours and prepare again."
        )
    return log.drop(UNTRAINED)


def _as_in(old: pl.DataFrame, new: pl.DataFrame, file: Path) -> pl.DataFrame:
    """The new rows with the columns of the run's log, in its types. Raises InputError for a value that is none of a column's type."""
    columns: list[pl.Expr | pl.Series] = []
    for name, kind in old.schema.items():
        if name not in new.columns:
            columns.append(pl.lit(None, dtype=kind).alias(name))
            continue
        cast = new[name].cast(kind, strict=False)
        if cast.null_count() > new[name].null_count():
            value = new[name].filter(cast.is_null() & new[name].is_not_null())[0]
            raise InputError(
                f"{file}: column {name!r} holds {value!r}, and the run's is of type {kind}; write it as the run's log does."
            )
        columns.append(cast)
    return new.select(columns)


def refuse_another_unit(file: Path, new: pl.Series, old: pl.Series, owner: str = "run") -> None:
    """Raise InputError where a file's times are in another unit than the `owner`'s, by their medians."""
    units = [unit_of(float(np.median(times.to_numpy()))) for times in (new, old)]
    if units[0] != units[1]:
        in_words = [unit or "an order and no dates" for unit in units]
        raise InputError(
            f"{file} has times in {in_words[0]}, and the {owner}'s are in {in_words[1]}; write the new ones as the {owner}'s."
        )


def _refuse_older(file: Path, new: pl.Series, old: pl.Series) -> None:
    """Raise InputError where times are dates and every new event is older than the run's newest: it is an old log, given again."""
    unit, newest = unit_of(float(np.median(old.to_numpy()))), int(old.to_numpy().max())
    if unit is not None and new.to_numpy().max() < newest:
        raise InputError(
            f"{file} goes on no longer than the run, whose newest event is of {as_day(newest, unit)} ({newest}): the {len(new):,} events "
            "that the run lacks are older, as those of users whom `sidrec prepare` left out; give a log that goes on after it, or prepare "
            "and train anew."
        )


def _refuse_too_few(joined: Dataset, file: Path) -> None:
    """Raise InputError unless valid and test have a case each, and something new is trained on."""
    fresh = joined.interactions.filter((pl.col("split") == "train") & pl.col(UNTRAINED))
    if fresh.is_empty() or not len(joined.cases("valid")) or not len(joined.cases("test")):
        raise InputError(
            f"{file} has {joined.info[JOINED]['events']} new events, too few to train on some and measure on others, of users with a "
            "history; wait for more."
        )


def _still_left_out(dataset: Dataset, log: pl.DataFrame) -> pl.DataFrame:
    """Of the users and items that prepare left out, those that are still not in the log."""
    came = (pl.col("kind") == "user") & pl.col("id").is_in(log["user_id"].unique().implode())
    return dataset.left_out.filter(~came)
