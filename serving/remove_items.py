"""Take items out of a bundle's catalogue: `sidrec remove-items ID [ID …] --bundle outputs/mine/bundle`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import first_named, parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen


@dataclass
class RemoveItemsConfig:
    """Take items out of a bundle's catalogue: they are recommended no more, and may still stand in histories."""

    ids: list[str] = field(metadata={"help": "The items' ids (item_id of the catalogue)."})
    bundle: Path = field(metadata={"help": "Folder that `sidrec bundle` has written, or a copy of it."})

    def __post_init__(self) -> None:
        if not self.ids:
            raise InputError("--ids names no item; give the item_id of one at least.")


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse_config(RemoveItemsConfig, first_named("ids", sys.argv[1:] if arguments is None else arguments))
    from sidrec.serving.changes import remove_ids  # with torch and polars, for which --help does not wait

    version = remove_ids(config.bundle, config.ids)
    Screen("catalogue").say(
        f"version {version.number}: {version.removed:,} items removed, {version.items:,} in the catalogue"
    )


if __name__ == "__main__":
    run_as_command(main)
