"""From raw files, or the demo's model, to a data set: read, filter, number, split."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.amazon import EDITIONS, find_amazon, read_amazon
from sidrec.data.codes import codes
from sidrec.data.dataset import Dataset
from sidrec.data.download import fetch_amazon, fetch_movielens
from sidrec.data.filters import Filters
from sidrec.data.item_text import joined_columns, with_text
from sidrec.data.kcore import k_core
from sidrec.data.minionerec import find_minionerec, read_minionerec
from sidrec.data.movielens import FILES, read_movielens
from sidrec.data.own import read_own
from sidrec.data.readers import RawLog
from sidrec.data.repeats import count_again
from sidrec.data.settings import CACHE, PrepareConfig, default_k
from sidrec.data.split import NAMES as SPLIT_NAMES
from sidrec.data.split import global_time, leave_one_out, leave_one_out_ties_shuffled, published
from sidrec.data.summary import known_counts_note
from sidrec.data.synthetic import DemoModel
from sidrec.data.tables import require_file
from sidrec.data.timestamps import SECONDS_PER_DAY, unit_of
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import LONG_SECONDS, Screen, duration

SPLITS = {"leave_one_out": leave_one_out, "global_time": global_time, "published": published}
REHEARSED = 32  # a log's first rows of this many parts of it are prepared first, to tell how long the whole will take
LARGE = 5_000_000  # bytes or interactions; with fewer, a step takes less than seconds


def uses_seed(config: PrepareConfig) -> bool:
    return config.dataset == "demo" or config.protocol == "leave_one_out_ties_shuffled"


def find_inputs(config: PrepareConfig) -> tuple[Path, ...]:
    """The raw files, downloaded if need be. Raises InputError for one that does not exist."""
    cache = CACHE.expanduser()
    if config.dataset in EDITIONS:
        assert config.category is not None
        folder = config.raw_dir or fetch_amazon(config.dataset, config.category, cache)
        return find_amazon(config.dataset, config.category, folder)
    if config.dataset == "minionerec":
        assert config.category is not None
        assert config.raw_dir is not None
        return find_minionerec(config.category, config.raw_dir)
    if config.dataset in FILES:
        folder = config.raw_dir or fetch_movielens(config.dataset, cache)
        files = [folder / name for name in FILES[config.dataset]]
    else:
        files = [file for file in (config.interactions, config.items) if file is not None]
    for file in files:
        require_file(file)
    return tuple(files)


def read(config: PrepareConfig, inputs: tuple[Path, ...]) -> RawLog:
    """Read the raw files, or draw the demo."""
    if config.dataset == "demo":
        return DemoModel(seed=config.seed).generate()
    if config.dataset == "own":
        log, items = inputs
        return read_own(log, items, config.separator, config.encoding)
    if config.dataset == "minionerec":
        return read_minionerec(inputs)
    if config.dataset in EDITIONS:
        return read_amazon(config.dataset, *inputs)
    return read_movielens(config.dataset, inputs[0].parent)


def build(config: PrepareConfig, inputs: tuple[Path, ...], screen: Screen) -> Dataset:
    """Read, filter and split. Raises InputError when nothing is left after the date window or the k-core.

    Every step works on integers, 4 bytes an id: 100 million interactions take less than 8 GiB.
    """
    tell(screen, "reading", sum(file.stat().st_size for file in inputs), "bytes")
    announce(config, inputs, screen)
    raw = read(config, inputs)
    interactions, source, notes, repeats = raw.interactions, raw.items, list(raw.notes), raw.repeats
    del raw  # with a large log, each step's result takes the place of the one before
    filters = Filters(interactions, source, repeats)
    n_read = len(interactions)
    interactions = in_window(interactions, config)
    if len(interactions) < n_read:
        filters.passed("dates", interactions)
    n_filtered = len(interactions)
    tell(screen, "k-core", n_filtered, "interactions")
    interactions = k_core(interactions, config.k_user, config.k_item)
    if interactions.is_empty():
        raise InputError(
            f"no interaction is left of {n_filtered}: no set of users has {config.k_user} interactions each with items "
            f"that have {config.k_item} each; lower --k_user or --k_item."
        )
    if len(interactions) < n_filtered:
        filters.passed("k_core", interactions)
    if config.keep_untaken_items:
        notes += filters.keep_items()
    items, text = catalogue(source, None if config.keep_untaken_items else interactions)
    tell(screen, "split", len(interactions), "interactions")
    if config.protocol == "leave_one_out_ties_shuffled":
        interactions = leave_one_out_ties_shuffled(interactions, config.seed)
    else:
        interactions = SPLITS[config.protocol](interactions)
    counts = {
        "users": interactions["user_id"].n_unique(),
        "items": len(items),
        "interactions": len(interactions),
        "removed_interactions": n_filtered - len(interactions),
        **{name: int((interactions["split"] == name).sum()) for name in SPLIT_NAMES},
    }
    facts = {
        "counts": counts,
        "read": filters.read,
        "left_out": filters.counts,
        "medians": filters.medians(),
        "again": count_again(codes(interactions["user_id"]), codes(interactions["item_id"])),
        "times": times_of(interactions["timestamp"]),
        "text": text,
        "notes": notes + known_counts_note(config.dataset, config.category, counts, is_whole(config)),
    }
    return Dataset(items, numbered(interactions, items), described(config, inputs) | facts, filters.left_out())


def times_of(times: pl.Series) -> dict[str, Any]:
    """The first and the last time, and the unit that makes the median a time between 1980 and 2100; None where none does."""
    return {"first": times.min(), "last": times.max(), "unit": unit_of(float(np.median(times.to_numpy())))}


def described(config: PrepareConfig, inputs: tuple[Path, ...]) -> dict[str, Any]:
    """What was asked for, as dataset.json holds it."""
    info: dict[str, Any] = {
        "name": config.dataset,
        "protocol": config.protocol,
        "seed": config.seed if uses_seed(config) else None,
        "k_core": {"k_user": config.k_user, "k_item": config.k_item},
        "files": [{"name": file.name, "bytes": file.stat().st_size} for file in inputs],
    }
    for name in ("category", "from_date", "to_date", "keep_untaken_items"):
        if getattr(config, name):
            info[name] = getattr(config, name)
    if config.dataset == "demo":
        info["demo_model"] = asdict(DemoModel(seed=config.seed))
    return info


def tell(screen: Screen, step: str, size: int, unit: str) -> None:
    """Say that a step begins when it will take more than a few seconds; one call of a library has no time left to show."""
    if size >= LARGE:
        screen.say(f"data: {datetime.now():%H:%M:%S} {step}: {size:,} {unit}")


def announce(config: PrepareConfig, inputs: tuple[Path, ...], screen: Screen) -> None:
    """Say how long a large log will take, measured by a rehearsal on its first rows: each step is one call of a library without a bar.

    Files of other kinds than CSV, DAT and Parquet are read with a bar. What is wrong with a file, its reader says.
    """
    log = max(inputs, key=lambda file: file.stat().st_size, default=Path())
    if screen.quiet or log.suffix.lower() not in (".csv", ".tsv", ".dat", ".parquet") or log.stat().st_size < LARGE:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.monotonic()
        try:
            copy_first_rows(log, folder / log.name)
            for file in inputs:
                if file != log:
                    (folder / file.name).symlink_to(file.absolute())
            few = tuple(folder / file.name for file in inputs)
            rehearsal = build(replace(config, k_user=1, k_item=1), few, Screen(screen.stage, quiet=True))
            rehearsal.save(folder)
        except (InputError, pl.exceptions.PolarsError, OSError):
            return
        seconds = REHEARSED * (time.monotonic() - start)
    if seconds >= LONG_SECONDS:
        screen.say(f"data: {log.name}, {log.stat().st_size:,} bytes, about {duration(seconds)} to go")


def copy_first_rows(log: Path, to: Path) -> None:
    """One row of REHEARSED, from the first on, and a header where there is one."""
    if log.suffix.lower() == ".parquet":
        n_rows = pl.scan_parquet(log, glob=False).select(pl.len()).collect().item()
        pl.scan_parquet(log, glob=False).head(n_rows // REHEARSED).sink_parquet(to)
        return
    with log.open("rb") as handle:
        to.write_bytes(handle.read(log.stat().st_size // REHEARSED) + handle.readline())


def is_whole(config: PrepareConfig) -> bool:
    """Whether the settings are those under which a data set's published counts hold."""
    k = default_k(config.dataset)
    is_cut = config.from_date is not None or config.to_date is not None
    return not is_cut and not config.keep_untaken_items and config.k_user == config.k_item == k


def in_window(interactions: pl.DataFrame, config: PrepareConfig) -> pl.DataFrame:
    """The interactions from `from_date` to `to_date`, both days included, in UTC."""
    ticks = EDITIONS[config.dataset].ticks if config.dataset in EDITIONS else 1
    time = pl.col("timestamp")
    if config.from_date is not None:
        interactions = interactions.filter(time >= _second(config.from_date) * ticks)
    if config.to_date is not None:
        interactions = interactions.filter(time < (_second(config.to_date) + SECONDS_PER_DAY) * ticks)
    if interactions.is_empty():
        raise InputError(
            f"no interaction lies between {config.from_date or 'the beginning'} and {config.to_date or 'the end'}; "
            "change --from_date or --to_date."
        )
    return interactions


def _second(day: str) -> int:
    return int(datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC).timestamp())


def numbered(interactions: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """The log with `item_index`, the number of each row's item in the catalogue, in place of its id; other columns stand behind."""
    of_items = codes(items["item_id"])
    index_of = np.full(int(max(codes(interactions["item_id"]).max(), of_items.max())) + 1, -1, dtype=np.int64)
    index_of[of_items] = items["item_index"].to_numpy()
    item_index = pl.Series("item_index", index_of[codes(interactions["item_id"])])
    first = ("user_id", "item_id", "timestamp", "split")
    return interactions.select("user_id", item_index, "timestamp", "split", pl.exclude(first))


def catalogue(items: pl.DataFrame, interactions: pl.DataFrame | None) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The items that occur in the log (None: all), numbered in the order of the source, with `text` (see `with_text`).

    Which columns join the text, `joined_columns` says. Beside the table stands what the text is made of.
    """
    table = items
    if interactions is not None:
        in_log = interactions["item_id"].unique().cast(pl.String)
        table = items.filter(pl.col("item_id").is_in(in_log.implode()))
    joined, left_out = joined_columns(items)
    table = with_text(table, joined)
    untitled = table["title"] == table["item_id"]
    told = {
        "columns": ["title", *joined],
        "left_out": left_out,
        "untitled": int(untitled.sum()),
        "without_text": int((untitled & (table["text"] == table["title"].str.strip_chars_end("."))).sum()),
    }
    return table, told
