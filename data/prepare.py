"""Prepare a data set: read, filter, split, write the run's `data/`.

python -m sidrec.data.prepare --dataset demo --run_dir outputs/demo
python -m sidrec.data.prepare --config configs/data/ml-100k.yaml
python -m sidrec.data.prepare --dataset amazon-2014 --category Beauty --run_dir outputs/beauty
python -m sidrec.data.prepare --dataset own --interactions log.csv --items catalogue.csv --run_dir outputs/mine
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from rich.console import Console

from sidrec.data.amazon import EDITIONS, find_amazon, read_amazon
from sidrec.data.codes import codes
from sidrec.data.dataset import Dataset
from sidrec.data.download import fetch_amazon, fetch_movielens
from sidrec.data.kcore import k_core
from sidrec.data.minionerec import find_minionerec, read_minionerec
from sidrec.data.movielens import FILES, read_movielens
from sidrec.data.own import read_own
from sidrec.data.readers import RawLog
from sidrec.data.split import global_time, leave_one_out, leave_one_out_ties_shuffled, published
from sidrec.data.summary import known_counts_note, show_summary
from sidrec.data.synthetic import DemoModel
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage

CACHE = Path("~/.cache/sidrec")
SPLITS = {"leave_one_out": leave_one_out, "global_time": global_time, "published": published}
SECONDS_PER_DAY = 86400
LARGE = 5_000_000  # bytes or interactions; with fewer, a step takes less than seconds


@dataclass
class PrepareConfig:
    """Read a catalogue and an interaction log, filter and split them, and write `data/` of a run directory."""

    run_dir: Path = field(metadata={"help": "Run directory, for example outputs/demo; its data/ is written."})
    dataset: Literal[
        "demo",
        "ml-100k",
        "ml-1m",
        "ml-latest-small",
        "ml-20m",
        "ml-32m",
        "amazon-2014",
        "amazon-2018",
        "amazon-2023",
        "minionerec",
        "own",
    ] = field(
        default="demo",
        metadata={
            "help": "demo: drawn from a known model, no download; ml-*: MovieLens; amazon-*: Amazon reviews, one category; "
            "minionerec: a folder that MiniOneRec prepared; own: your two files."
        },
    )
    category: str | None = field(
        default=None,
        metadata={"help": "amazon-*, minionerec: the category as in the publisher's file names, for example Beauty."},
    )
    raw_dir: Path | None = field(
        default=None,
        metadata={
            "help": "Folder with the publisher's files (ml-*: unpacked; amazon-*: the reviews and meta files of the category; "
            f"minionerec: train/, valid/, test/, info/, index/). None: ml-* and amazon-* are downloaded once to {CACHE}."
        },
    )
    interactions: Path | None = field(
        default=None, metadata={"help": "own: CSV or Parquet with the columns user_id, item_id, timestamp."}
    )
    items: Path | None = field(
        default=None,
        metadata={
            "help": "own: CSV or Parquet with item_id, title; every further column of strings becomes part of the text."
        },
    )
    from_date: str | None = field(
        default=None,
        metadata={"help": "ml-*, amazon-*: drop interactions before this day (2016-10-01, UTC), ahead of the k-core."},
    )
    to_date: str | None = field(
        default=None,
        metadata={"help": "ml-*, amazon-*: drop interactions after this day (2018-11-01, UTC), ahead of the k-core."},
    )
    k_user: int = field(
        default=0,
        metadata={
            "help": "Keep users with at least this many interactions (k-core, with k_item); 1 keeps all. 0: 5 for own and amazon-* "
            "(as in the papers); 1 for demo (its best possible Recall needs whole histories), for ml-* (published tables use all "
            "users and items) and for minionerec (filtered already)."
        },
    )
    k_item: int = field(
        default=0,
        metadata={
            "help": "Keep items with at least this many interactions; 1 keeps all. 0: 5 for own and amazon-*, 1 for the others."
        },
    )
    protocol: Literal["leave_one_out", "leave_one_out_ties_shuffled", "global_time", "published"] = field(
        default="leave_one_out",
        metadata={
            "help": "leave_one_out: each user's last interaction is test, the last but one valid; equal timestamps in input order. "
            "leave_one_out_ties_shuffled: the same with a user's equal timestamps in an order drawn by seed. global_time: of all "
            "interactions in time order, the first 8 tenths are train, the next tenth valid, the last tenth test. published: as the "
            "files of minionerec say."
        },
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the demo data and of shuffled ties; nothing else uses randomness."}
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Delete the run's data/ and make it again, even from other inputs or settings."},
    )

    def __post_init__(self) -> None:
        self._check_inputs()
        self._check_window()
        if self.protocol == "published" and self.dataset != "minionerec":
            raise InputError(f"--protocol published is for --dataset minionerec only, not {self.dataset}.")
        for flag, number in (("--k_user", self.k_user), ("--k_item", self.k_item), ("--seed", self.seed)):
            if number < 0:
                raise InputError(f"{flag} is {number}; it must not be negative.")
        self.k_user = self.k_user or default_k(self.dataset)
        self.k_item = self.k_item or default_k(self.dataset)

    def _check_inputs(self) -> None:
        for flag, file in (("--interactions", self.interactions), ("--items", self.items)):
            if self.dataset == "own" and file is None:
                raise InputError(f"--dataset own needs {flag}, a CSV or Parquet file.")
            if self.dataset != "own" and file is not None:
                raise InputError(f"{flag} is for --dataset own only, not {self.dataset}; leave it out.")
        if self.raw_dir is not None and self.dataset in ("demo", "own"):
            raise InputError(f"--raw_dir is for a publisher's files, not for {self.dataset}; leave it out.")
        if self.raw_dir is None and self.dataset == "minionerec":
            raise InputError("--dataset minionerec needs --raw_dir, the folder with valid/, test/, info/ and index/.")
        has_category = self.dataset in EDITIONS or self.dataset == "minionerec"
        if has_category and not re.fullmatch(r"\w+", self.category or ""):
            raise InputError(
                f"--dataset {self.dataset} needs --category, as in the publisher's file names (for example Beauty)."
            )
        if not has_category and self.category is not None:
            raise InputError(f"--category is for amazon-* and minionerec, not {self.dataset}; leave it out.")

    def _check_window(self) -> None:
        given = {"--from_date": self.from_date, "--to_date": self.to_date}
        days = []
        for flag, text in given.items():
            if text is None:
                continue
            if self.dataset not in EDITIONS and self.dataset not in FILES:
                raise InputError(
                    f"{flag} is for ml-* and amazon-*, whose times are dates, not {self.dataset}; leave it out."
                )
            try:
                days.append(date.fromisoformat(text))
            except ValueError as error:
                raise InputError(f"{flag} is {text!r}; write a day as 2016-10-01.") from error
        if len(days) == 2 and days[1] < days[0]:
            raise InputError(f"--to_date {self.to_date} lies before --from_date {self.from_date}; exchange them.")


def default_k(dataset: str) -> int:
    return 5 if dataset == "own" or dataset in EDITIONS else 1


def main() -> None:
    config = parse_config(PrepareConfig)
    inputs = find_inputs(config)
    stage = Stage(config.run_dir, "data", decisive_settings(config), inputs)
    if config.overwrite or not stage.is_finished():
        dataset = build(config, inputs)
        stage.begin(config.overwrite)
        _tell("writing", len(dataset.interactions), "interactions")
        stage.finish(*dataset.save(stage.folder))
        del dataset  # the summary reads the files: the same one whether they were made now or before
    show_summary(stage.folder)


def decisive_settings(config: PrepareConfig) -> dict[str, Any]:
    names = ["dataset", "k_user", "k_item", "protocol"] + (["seed"] if uses_seed(config) else [])
    optional = [name for name in ("category", "from_date", "to_date") if getattr(config, name) is not None]
    return {name: getattr(config, name) for name in names + optional}


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
        if not file.is_file():
            raise InputError(f"{file} does not exist or is not a file; check the path.")
    return tuple(files)


def read(config: PrepareConfig, inputs: tuple[Path, ...]) -> RawLog:
    """Read the raw files, or draw the demo."""
    if config.dataset == "demo":
        return DemoModel(seed=config.seed).generate()
    if config.dataset == "own":
        return read_own(*inputs)
    if config.dataset == "minionerec":
        return read_minionerec(inputs)
    if config.dataset in EDITIONS:
        return read_amazon(config.dataset, *inputs)
    return read_movielens(config.dataset, inputs[0].parent)


def build(config: PrepareConfig, inputs: tuple[Path, ...]) -> Dataset:
    """Read, filter and split. Raises InputError when nothing is left after the date window or the k-core.

    Every step works on integers, 4 bytes an id: 100 million interactions take less than 8 GiB.
    """
    _tell("reading", sum(file.stat().st_size for file in inputs), "bytes")
    raw = read(config, inputs)
    interactions, source, notes = raw.interactions, raw.items, list(raw.notes)
    del raw  # with a large log, each step's result takes the place of the one before
    n_read = len(interactions)
    interactions = in_window(interactions, config)
    if len(interactions) < n_read:
        notes.append(
            f"{n_read - len(interactions):,} of {n_read:,} interactions lie outside the dates and are left out."
        )
    n_filtered = len(interactions)
    _tell("k-core", n_filtered, "interactions")
    interactions = k_core(interactions, config.k_user, config.k_item)
    if interactions.is_empty():
        raise InputError(
            f"no interaction is left of {n_filtered}: no set of users has {config.k_user} interactions each with items "
            f"that have {config.k_item} each; lower --k_user or --k_item."
        )
    items = catalogue(source, interactions)
    _tell("split", len(interactions), "interactions")
    if config.protocol == "leave_one_out_ties_shuffled":
        interactions = leave_one_out_ties_shuffled(interactions, config.seed)
    else:
        interactions = SPLITS[config.protocol](interactions)
    counts = {
        "users": interactions["user_id"].n_unique(),
        "items": len(items),
        "interactions": len(interactions),
        "removed_interactions": n_filtered - len(interactions),
        **{name: int((interactions["split"] == name).sum()) for name in ("train", "valid", "test")},
    }
    info = {
        "name": config.dataset,
        "protocol": config.protocol,
        "seed": config.seed if uses_seed(config) else None,
        "k_core": {"k_user": config.k_user, "k_item": config.k_item},
        "counts": counts,
        "files": [{"name": file.name, "bytes": file.stat().st_size} for file in inputs],
        "notes": notes + known_counts_note(config.dataset, config.category, counts, is_whole(config)),
    }
    for name in ("category", "from_date", "to_date"):
        if getattr(config, name) is not None:
            info[name] = getattr(config, name)
    if config.dataset == "demo":
        info["demo_model"] = asdict(DemoModel(seed=config.seed))
    return Dataset(items, numbered(interactions, items), info)


def _tell(step: str, size: int, unit: str) -> None:
    """Say that a step begins when it will take more than a few seconds; one call of a library has no time left to show."""
    if size >= LARGE:
        Console().print(f"{datetime.now():%H:%M:%S} {step}: {size:,} {unit}", highlight=False)


def is_whole(config: PrepareConfig) -> bool:
    """Whether the settings are those under which a data set's published counts hold."""
    k = default_k(config.dataset)
    return config.from_date is None and config.to_date is None and config.k_user == config.k_item == k


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
    """The log with `item_index`, the number of each row's item in the catalogue, in place of its id."""
    index_of = np.full(int(codes(interactions["item_id"]).max()) + 1, -1, dtype=np.int64)
    index_of[codes(items["item_id"])] = items["item_index"].to_numpy()
    item_index = pl.Series("item_index", index_of[codes(interactions["item_id"])])
    return interactions.select("user_id", item_index, "timestamp", "split")


def catalogue(items: pl.DataFrame, interactions: pl.DataFrame) -> pl.DataFrame:
    """The items that occur in the log, numbered in the order of the source, with `text`: the title, then `column: value`.

    Columns of strings and of lists of strings become part of the text; runs of white space in title and text become one space.
    """
    taken = interactions["item_id"].unique().cast(pl.String)
    kept = items.filter(pl.col("item_id").is_in(taken.implode()))
    kept = kept.with_columns(title=_one_line(pl.col("title")), item_index=pl.int_range(pl.len(), dtype=pl.Int64))
    parts = [pl.col("title").str.strip_chars_end(".")]
    for name, dtype in items.schema.items():
        if name in ("item_id", "title") or dtype not in (pl.String, pl.List(pl.String)):
            continue
        words = pl.col(name) if dtype == pl.String else pl.col(name).list.drop_nulls().list.join(", ")
        words = _one_line(words).str.strip_chars_end(".")
        parts.append(pl.when(words != "").then(pl.lit(f"{name}: ") + words))
    kept = kept.with_columns(text=pl.concat_str(parts, separator=". ", ignore_nulls=True))
    first = ["item_id", "item_index", "title", "text"]
    return kept.select(*first, pl.exclude(first))


def _one_line(text: pl.Expr) -> pl.Expr:
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


if __name__ == "__main__":
    run_as_command(main)
