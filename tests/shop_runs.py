"""Small runs of a shop's own files, whose bundles can take new items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
from run_dirs import COLOURS, N_ITEMS, THINGS, run_stage, small_dataset

from sidrec.data import prepare
from sidrec.serving import make_bundle
from sidrec.sft import train
from sidrec.tokenizer import embed, quantize

SMALL = ["--text_dim", "16", "--collaborative_dim", "8", "--quantizer", "rqkmeans", "--level_sizes", "16", "16"]


def call(main: Callable[[list[str]], None], *words: str | Path) -> None:
    main([*map(str, words)])


def write_source(folder: Path) -> None:
    """The log and catalogue of `small_dataset` as a user's files, with a column of numbers and two items that nobody has taken."""
    dataset = small_dataset()
    ids = pl.DataFrame({"item_index": range(N_ITEMS), "item_id": dataset.items["item_id"]})
    log = dataset.interactions.join(ids, on="item_index", how="left", maintain_order="left")
    log.select("user_id", "item_id", "timestamp").write_csv(folder / "log.csv")
    titles = [f"The {colour} {thing}" for colour in COLOURS for thing in THINGS]
    rows = [
        *zip(dataset.items["item_id"], titles, strict=True),
        ("i60", "The silver spoon"),
        ("i61", "The golden spoon"),
    ]
    table = pl.DataFrame(rows, schema=["item_id", "title"], orient="row")
    table.with_columns(year=pl.int_range(pl.len()) % 7 + 1990).write_csv(folder / "items.csv")


def shop_run(folder: Path, unique: str, **training: object) -> Path:
    """A trained run whose catalogue has items that nobody has taken, and its bundle."""
    write_source(folder)
    files = ["--interactions", folder / "log.csv", "--items", folder / "items.csv", "--run_dir", folder / "run"]
    call(prepare.main, "--dataset", "own", *files, "--k_user", "1", "--k_item", "1", "--keep_untaken_items", "true")
    for stage in (embed.main, quantize.main):
        call(stage, "--run_dir", folder / "run", *SMALL, "--unique", unique)
    run_stage(train, folder / "run", max_steps=4, **training)
    call(make_bundle.main, "--run_dir", folder / "run")
    return folder / "run"
