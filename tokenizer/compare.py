"""Several sets of semantic IDs of the same items, side by side.

    sidrec compare-sids --sids outputs/a/sid outputs/b/sid FILE.index.json --vectors FILE.npy --out compare

Writes compare.json and compare.html into --out, and prints the table. Every set is measured with vectors fitted to its codes in one way,
so that IDs of any origin can be compared; a set's own quantizer is measured beside that, where it has one for these vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from rich.console import Console

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, write_json
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.embeddings.sources import read_source
from sidrec.tokenizer.interchange import read_codes
from sidrec.tokenizer.report.categories import categories_of
from sidrec.tokenizer.report.comparison import SidSet, console_table, measure_set, render
from sidrec.tokenizer.semantic_ids import SemanticIds


@dataclass
class CompareConfig:
    """Settings of the comparison."""

    sids: list[str] = field(
        metadata={
            "help": "The sets to compare: a folder with codes_all.npy (a run's sid/), an .index.json as MiniOneRec writes it, or "
            "an .npy file of codes. All of the same items in the same order."
        }
    )
    vectors: list[str] = field(
        metadata={
            "help": "The item vectors to measure against, .npy files with one float row per item; rows are scaled to length 1, several "
            "files are put side by side."
        }
    )
    weights: list[float] = field(
        default_factory=list,
        metadata={"help": "Length of each file's rows when there are several; default: 1 for each."},
    )
    names: list[str] = field(
        default_factory=list, metadata={"help": "A short name for each set; default: the end of its path."}
    )
    codes_per_level: int | None = field(
        default=None,
        metadata={
            "help": "K of the sets that come as a file; default: the largest code in the file + 1, for all its levels."
        },
    )
    items: str | None = field(
        default=None,
        metadata={
            "help": "items.parquet with a column of categories (genres, category, …), to compare first codes with."
        },
    )
    out: str = field(default="compare", metadata={"help": "Folder to write compare.json and compare.html into."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples; every set is measured on the same ones."})

    def __post_init__(self) -> None:
        self.weights = self.weights or [1.0] * len(self.vectors)
        if len(self.weights) != len(self.vectors) or not all(weight > 0 for weight in self.weights):
            raise InputError(
                f"weights {self.weights} must be one number above 0 for each of the {len(self.vectors)} --vectors."
            )
        if self.names and len(self.names) != len(self.sids):
            raise InputError(
                f"names has {len(self.names)} names for {len(self.sids)} sets; give one for each, or none."
            )
        self.names = self.names or default_names([Path(path) for path in self.sids])
        repeated = [name for name in self.names if self.names.count(name) > 1]
        if repeated:
            raise InputError(f"two sets are called {repeated[0]!r}; give each a name of its own with --names.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be at least 0.")


def default_names(paths: list[Path]) -> list[str]:
    """The run's name of a folder `run/sid`, else the file's or folder's own name without endings."""
    return [
        path.resolve().parent.name if path.name == "sid" else path.name.split(".")[0] or path.resolve().name
        for path in paths
    ]


def read_set(name: str, path: Path, codes_per_level: int | None) -> SidSet:
    """A set of semantic IDs from a folder or a file. Raises InputError when it is neither, or does not hold such a set."""
    if path.is_dir():
        return SidSet.of(name, SemanticIds.read(path))
    if not path.is_file() or path.suffix not in (".json", ".npy"):
        raise InputError(
            f"{path} is no folder with codes_all.npy, no .index.json and no .npy of codes; correct --sids."
        )
    codes, has_extra = read_codes(path)  # [N, L]
    coded = codes[:, :-1] if has_extra else codes
    largest = int(coded.max()) + 1
    if codes_per_level is not None and largest > codes_per_level:
        raise InputError(
            f"{path} holds the code {largest - 1}, beyond the {codes_per_level} of --codes_per_level; raise it."
        )
    sizes = [codes_per_level or largest] * coded.shape[1]
    return SidSet(name, codes, coded, sizes + [int(codes[:, -1].max()) + 1] * has_extra, None)


def read_categories(path: Path, n_items: int) -> list[str]:
    """The items' categories. Raises InputError when the file has none, or another number of items."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; correct --items.")
    items = pl.read_parquet(path)
    categories = categories_of(items)
    if categories is None:
        raise InputError(f"{path} has no column genres, category or categories with two values; leave --items out.")
    if len(categories) != n_items:
        raise InputError(
            f"{path} has {len(categories)} items, but the SIDs are of {n_items}; give the same catalogue's."
        )
    return categories


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(CompareConfig, arguments)
    console = Console()
    sets = [
        read_set(name, Path(path), config.codes_per_level) for name, path in zip(config.names, config.sids, strict=True)
    ]
    n_items = len(sets[0].codes)
    for other, path in zip(sets, config.sids, strict=True):
        if len(other.codes) != n_items:
            raise InputError(
                f"{path} has {len(other.codes)} items, but {config.sids[0]} has {n_items}; compare sets of the same items."
            )
    for path in config.vectors:
        if not Path(path).is_file():
            raise InputError(f"{path} does not exist; correct --vectors.")
    vectors = ItemVectors([read_source(Path(path), n_items) for path in config.vectors], config.weights)
    categories = read_categories(Path(config.items), n_items) if config.items else None

    measured = {one.name: measure_set(vectors, one, config.seed, categories) for one in sets}

    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "compare.json", {"items": n_items, "order": config.names, "sets": measured})
    with atomic_path(folder / "compare.html") as temporary:
        temporary.write_text(render(measured, sets), encoding="utf-8")
    console.print(console_table(measured))
    console.print(f"Look at {folder / 'compare.html'}")


if __name__ == "__main__":
    run_as_command(main)
