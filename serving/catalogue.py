"""The versions of a bundle's catalogue.

sidrec catalogue outputs/mine/bundle
sidrec catalogue --bundle outputs/mine/bundle --rollback 2
sidrec catalogue --bundle outputs/mine/bundle --prune 10
"""

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
class CatalogueConfig:
    """List the versions of a bundle's catalogue, go back to one, or delete old ones."""

    bundle: Path = field(metadata={"help": "Folder that `sidrec bundle` has written, or a copy of it."})
    rollback: int | None = field(
        default=None, metadata={"help": "Number of the version to make current again; later ones stay in the list."}
    )
    prune: int | None = field(
        default=None,
        metadata={
            "help": "Delete old versions: the newest so many stay, and always the current one, which is served, and version 1."
        },
    )

    def __post_init__(self) -> None:
        if self.prune is not None and self.prune < 1:
            raise InputError(f"--prune is {self.prune}; so many of the newest versions stay, so give 1 or more.")
        if self.prune is not None and self.rollback is not None:
            raise InputError("give one of --rollback and --prune.")


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse_config(CatalogueConfig, first_named("bundle", sys.argv[1:] if arguments is None else arguments))
    from rich import box  # with torch and polars, for which --help does not wait
    from rich.console import Console
    from rich.table import Table

    from sidrec.serving.about import read_about
    from sidrec.serving.table import WIDEST
    from sidrec.serving.versions import prune, roll_back, versions

    read_about(config.bundle)
    if config.rollback is not None:
        roll_back(config.bundle, config.rollback)
    if config.prune is not None:
        Screen("catalogue").say(f"catalogue: {prune(config.bundle, config.prune):,} versions deleted")
    made, current = versions(config.bundle)
    console, table = Console(), Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("version", "made from", "time (UTC)", "added", "removed", "changed", "items", ""):
        table.add_column(name, justify="left" if name in ("time (UTC)", "") else "right", no_wrap=True)
    for version in made:
        counts = (version.added, version.removed, version.changed, version.items)
        places = (str(version.number), str(version.after or ""), version.time[:19].replace("T", " "))
        table.add_row(*places, *(f"{count:,}" for count in counts), "current" if version.number == current else "")
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(table)


if __name__ == "__main__":
    run_as_command(main)
