"""New items for a bundle's catalogue, and changes of its items, without training.

sidrec add-items new.csv --bundle outputs/mine/bundle
sidrec add-items new.jsonl --bundle outputs/mine/bundle --new_sids true
sidrec add-items --run_dir outputs/mine --vectors new.npy --write_file new.index.json

The last form codes vectors of your own with a run's semantic IDs, and changes nothing (`sidrec.tokenizer.add_items`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sidrec.data.settings import read_dialect
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import first_named, parse_config
from sidrec.pipeline.screen import Screen
from sidrec.tokenizer import add_items as of_run


@dataclass
class AddItemsConfig:
    """Add the items of a file to a bundle's catalogue, and change those that it has; `sidrec add-items FILE --bundle BUNDLE`.

    With --run_dir instead of --bundle: codes for vectors of your own; see `sidrec add-items --run_dir RUN --help`.
    """

    items: Path = field(
        metadata={
            "help": "CSV, Parquet or JSON lines (.jsonl) with item_id, for new items title, and any of the catalogue's columns; those that "
            "are missing are empty for new items, and stay as they are for the others."
        }
    )
    bundle: Path = field(metadata={"help": "Folder that `sidrec bundle` has written, or a copy of it."})
    new_sids: bool = field(
        default=False,
        metadata={
            "help": "Give items whose text changes new semantic IDs. Otherwise they keep theirs: the model has learnt who takes what after "
            "them, and a new one knows of it by its codes only."
        },
    )
    vectors: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "An .npy file for each source that was a file of your own, with a row for every row of the items' file."
        },
    )
    separator: str | None = field(
        default=None, metadata={"help": "What separates the columns of a CSV: one character, or the word tab."}
    )
    encoding: str | None = field(default=None, metadata={"help": "Encoding of a CSV, such as latin-1. None: UTF-8."})

    def __post_init__(self) -> None:
        self.separator = read_dialect(self.separator, self.encoding)


def main(arguments: Sequence[str] | None = None) -> None:
    words = first_named("items", sys.argv[1:] if arguments is None else arguments)
    names = {word.partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    if "__run_dir" in names or ("__vectors" in names and "__bundle" not in names):
        of_run.code_vectors(parse_config(of_run.AddItemsConfig, words))
    else:
        add(parse_config(AddItemsConfig, words))


def add(config: AddItemsConfig) -> None:
    # torch and polars come with these, and --help does not wait for them
    from sidrec.data.item_file import read_item_file
    from sidrec.serving.changes import add_table

    screen = Screen("catalogue")
    change, version = add_table(
        config.bundle,
        lambda source: read_item_file(config.items, source, config.separator, config.encoding),
        config.new_sids,
        config.vectors,
    )
    if version is None:
        screen.say(f"{config.items} changes nothing: its {change.unchanged:,} items are in the catalogue as they are")
        return
    lines = [
        f"version {version.number}: {version.added:,} items added, {version.changed:,} changed, {change.unchanged:,} as they were; "
        f"{version.items:,} in the catalogue",
        f"{change.coded:,} got semantic IDs, {change.moved:,} of them not their nearest, which other items have",
    ]
    if change.untitled:
        lines.append(f"{change.untitled:,} have no title, and their id in its place")
    if change.unread:
        lines.append(
            f"{change.unread:,} have no word that the text encoder knows: their semantic IDs say nothing of them"
        )
    screen.summary(
        "catalogue", [*lines, f"`sidrec catalogue --bundle {config.bundle} --rollback {version.after}` goes back"]
    )


if __name__ == "__main__":
    run_as_command(main)
