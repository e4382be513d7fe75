"""Prepare a data set: read, filter, split, write the run's `data/`.

python -m data.prepare --dataset demo --run_dir outputs/demo
python -m data.prepare --config configs/data/ml-100k.yaml
python -m data.prepare --dataset own --interactions log.csv --items catalogue.csv --run_dir outputs/mine
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from data.config import parse_config
from data.dataset import Dataset
from data.download import fetch_movielens
from data.kcore import k_core
from data.readers import RawLog, read_ml_1m, read_ml_100k, read_own
from data.split import global_time, leave_one_out, leave_one_out_ties_shuffled
from data.stage import InputError, Stage, run_as_command
from data.synthetic import DemoModel

CACHE = Path("~/.cache/sidrec")
RAW_FILES = {"ml-100k": ("u.data", "u.item"), "ml-1m": ("ratings.dat", "movies.dat")}
READERS = {"ml-100k": read_ml_100k, "ml-1m": read_ml_1m}
SPLITS = {"leave_one_out": leave_one_out, "global_time": global_time}
DEFAULT_K = {"demo": 1, "ml-100k": 1, "ml-1m": 1, "own": 5}


@dataclass
class PrepareConfig:
    """Read a catalogue and an interaction log, filter and split them, and write `data/` of a run directory."""

    run_dir: Path = field(metadata={"help": "Run directory, for example outputs/demo; its data/ is written."})
    dataset: Literal["demo", "ml-100k", "ml-1m", "own"] = field(
        default="demo",
        metadata={
            "help": "demo: drawn from a known model, no download; ml-100k, ml-1m: MovieLens; own: your two files."
        },
    )
    raw_dir: Path | None = field(
        default=None,
        metadata={"help": f"Folder with MovieLens's unpacked files (ml-* only). None: download them once to {CACHE}."},
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
    k_user: int = field(
        default=0,
        metadata={
            "help": "Keep users with at least this many interactions (k-core, with k_item); 1 keeps all. 0: 5 for own; 1 for demo "
            "(its best possible Recall needs whole histories) and for ml-* (published tables use all users and items)."
        },
    )
    k_item: int = field(
        default=0,
        metadata={
            "help": "Keep items with at least this many interactions; 1 keeps all. 0: 5 for own, 1 for demo and ml-*."
        },
    )
    protocol: Literal["leave_one_out", "leave_one_out_ties_shuffled", "global_time"] = field(
        default="leave_one_out",
        metadata={
            "help": "leave_one_out: each user's last interaction is test, the last but one valid; equal timestamps in input order. "
            "leave_one_out_ties_shuffled: the same with a user's equal timestamps in an order drawn by seed. global_time: of all "
            "interactions in time order, the first 8 tenths are train, the next tenth valid, the last tenth test."
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
        for flag, file in (("--interactions", self.interactions), ("--items", self.items)):
            if self.dataset == "own" and file is None:
                raise InputError(f"--dataset own needs {flag}, a CSV or Parquet file.")
            if self.dataset != "own" and file is not None:
                raise InputError(f"{flag} is for --dataset own only, not {self.dataset}; leave it out.")
        if self.raw_dir is not None and self.dataset not in RAW_FILES:
            raise InputError(f"--raw_dir is for MovieLens only, not {self.dataset}; leave it out.")
        for flag, number in (("--k_user", self.k_user), ("--k_item", self.k_item), ("--seed", self.seed)):
            if number < 0:
                raise InputError(f"{flag} is {number}; it must not be negative.")
        self.k_user = self.k_user or DEFAULT_K[self.dataset]
        self.k_item = self.k_item or DEFAULT_K[self.dataset]


def main() -> None:
    config = parse_config(PrepareConfig)
    inputs = find_inputs(config)
    stage = Stage(config.run_dir, "data", decisive_settings(config), inputs)
    if config.overwrite or not stage.is_finished():
        dataset = build(config, inputs)
        stage.begin(config.overwrite)
        stage.finish(*dataset.save(stage.folder))
    show_summary(Dataset.load(config.run_dir), stage.folder)


def decisive_settings(config: PrepareConfig) -> dict[str, Any]:
    settings = {
        "dataset": config.dataset,
        "k_user": config.k_user,
        "k_item": config.k_item,
        "protocol": config.protocol,
    }
    return settings | ({"seed": config.seed} if uses_seed(config) else {})


def uses_seed(config: PrepareConfig) -> bool:
    return config.dataset == "demo" or config.protocol == "leave_one_out_ties_shuffled"


def find_inputs(config: PrepareConfig) -> tuple[Path, ...]:
    """The raw files: the log, then the items; MovieLens is downloaded if need be. Raises InputError when one is missing."""
    if config.dataset == "demo":
        return ()
    if config.dataset == "own":
        files = [file for file in (config.interactions, config.items) if file is not None]
    else:
        folder = config.raw_dir or fetch_movielens(config.dataset, CACHE.expanduser())
        files = [folder / name for name in RAW_FILES[config.dataset]]
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
    return READERS[config.dataset](inputs[0].parent)


def build(config: PrepareConfig, inputs: tuple[Path, ...]) -> Dataset:
    """Read, filter and split. Raises InputError when nothing is left after the k-core."""
    raw = read(config, inputs)
    interactions = k_core(raw.interactions, config.k_user, config.k_item)
    if interactions.is_empty():
        raise InputError(
            f"no interaction is left of {len(raw.interactions)}: no set of users has {config.k_user} interactions each with items "
            f"that have {config.k_item} each; lower --k_user or --k_item."
        )
    items = catalogue(raw.items, interactions)
    if config.protocol == "leave_one_out_ties_shuffled":
        interactions = leave_one_out_ties_shuffled(interactions, config.seed)
    else:
        interactions = SPLITS[config.protocol](interactions)
    numbered = interactions.join(items.select("item_id", "item_index"), on="item_id", how="left", maintain_order="left")
    info = {
        "name": config.dataset,
        "protocol": config.protocol,
        "seed": config.seed if uses_seed(config) else None,
        "k_core": {"k_user": config.k_user, "k_item": config.k_item},
        "counts": {
            "users": interactions["user_id"].n_unique(),
            "items": len(items),
            "interactions": len(interactions),
            "removed_interactions": len(raw.interactions) - len(interactions),
            **{name: int((interactions["split"] == name).sum()) for name in ("train", "valid", "test")},
        },
    }
    if config.dataset == "demo":
        info["demo_model"] = asdict(DemoModel(seed=config.seed))
    return Dataset(items, numbered.select("user_id", "item_index", "timestamp", "split"), info)


def catalogue(items: pl.DataFrame, interactions: pl.DataFrame) -> pl.DataFrame:
    """The items that occur in the log, numbered in the order of the source, with `text`: the title, then `column: value`.

    Columns of strings and of lists of strings become part of the text; runs of white space in title and text become one space.
    """
    kept = items.filter(pl.col("item_id").is_in(interactions["item_id"].unique().implode()))
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


def show_summary(dataset: Dataset, folder: Path) -> None:
    counts = dataset.info["counts"]
    per_user = dataset.interactions.group_by("user_id").agg(pl.len(), tied=pl.col("timestamp").diff().last() == 0)
    table = Table("what", "value", title=f"{dataset.info['name']}, {dataset.info['protocol']}", min_width=40)
    rows = {
        "users": f"{counts['users']:,}",
        "items": f"{counts['items']:,}",
        "interactions": f"{counts['interactions']:,} ({counts['removed_interactions']:,} removed by k-core)",
        "density": f"{counts['interactions'] / counts['users'] / counts['items']:.3%}",
        "median history": f"{np.median(per_user['len'].to_numpy()):g} interactions a user",
        "train / valid / test": f"{counts['train']:,} / {counts['valid']:,} / {counts['test']:,}",
        "last two at one time": f"{per_user['tied'].sum() / len(per_user):.1%} of users (then input order decides)",
        "files": f"{folder}/",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    run_as_command(main)
