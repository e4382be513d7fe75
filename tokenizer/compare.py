"""Several sets of semantic IDs of the same items, side by side.

    sidrec compare-sids --sids outputs/a/sid outputs/b/sid FILE.index.json --vectors FILE.npy --out compare

Writes compare.json and compare.html into --out, and prints the table. Every set is measured with vectors fitted to its codes in one way,
so that IDs of any origin can be compared; a set's own quantizer is measured beside that, where it has one for these vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, write_json


@dataclass
class CompareConfig:
    """Put several sets of semantic IDs of the same items side by side."""

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


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(CompareConfig, arguments)
    from sidrec.tokenizer.report import comparison  # torch and Polars, for which --help does not wait

    sets = comparison.read_sets(config.sids, config.names, config.codes_per_level)
    vectors, categories = comparison.read_items(config.vectors, config.weights, config.items, len(sets[0].codes))
    measured = {one.name: comparison.measure_set(vectors, one, config.seed, categories) for one in sets}

    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"items": len(sets[0].codes), "order": config.names, "sets": measured}
    write_json(folder / "compare.json", figures)
    with atomic_path(folder / "compare.html") as temporary:
        temporary.write_text(comparison.render(measured, sets), encoding="utf-8")
    comparison.show(measured, folder)


if __name__ == "__main__":
    run_as_command(main)
