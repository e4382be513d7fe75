"""Text vectors of a catalogue, for `benchmarks.tokenizer_quality`: one .npy file with a row of length 1 an item.

python -m benchmarks.item_texts --items items.csv --columns title categories --out beauty_tfidf.npy
python -m benchmarks.item_texts --items Industrial_and_Scientific.item.json --encoder all-MiniLM-L6-v2 --out industrial_minilm.npy

An encoder needs sentence-transformers, which sidrec itself does not: make a second environment with `pip install -e ".[text]"` for
this command; the benchmark then reads the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.harness import plain_console, print_figures
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.tokenizer.embeddings.text import encode_texts, tfidf_svd


@dataclass
class ItemTextsConfig:
    """Which texts, and what turns them into vectors."""

    items: Path = field(
        metadata={
            "help": "The catalogue: CSV or Parquet, or MiniOneRec's `*.item.json` (an object of objects, by item number)."
        }
    )
    out: Path = field(metadata={"help": "The .npy file to write: float32 [N, D], rows in the catalogue's order."})
    columns: list[str] = field(
        default_factory=lambda: ["title", "brand", "categories", "description"],
        metadata={
            "help": "Columns (or keys) that are joined to an item's text; those the catalogue has not are left out."
        },
    )
    encoder: str | None = field(
        default=None,
        metadata={
            "help": "sentence-transformers model, by folder or name. None: TF-IDF and SVD, which needs no download."
        },
    )
    dimensions: int = field(default=384, metadata={"help": "TF-IDF and SVD: numbers per vector; 384 as MiniLM has."})
    batch_size: int = field(default=64, metadata={"help": "Texts per forward pass of the encoder."})
    seed: int = field(default=0, metadata={"help": "Seed of the SVD."})

    def __post_init__(self) -> None:
        if self.out.suffix != ".npy":
            raise InputError(f"--out {self.out} must end in .npy.")
        if self.dimensions < 1 or self.batch_size < 1:
            raise InputError("--dimensions and --batch_size must be at least 1.")


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(ItemTextsConfig, arguments)
    texts = read_texts(config.items, config.columns)
    if config.encoder is None:
        vectors = tfidf_svd(texts, config.dimensions, config.seed)
    else:
        vectors = encode_texts(texts, config.encoder, config.batch_size)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(config.out) as temporary, temporary.open("wb") as handle:
        np.save(handle, vectors)
    plain_console().print(f"{config.out}: {vectors.shape[0]:,} items, {vectors.shape[1]} numbers each")
    print_figures({"items": vectors.shape[0], "dimensions": vectors.shape[1]})


def read_texts(path: Path, columns: list[str]) -> list[str]:
    """Every item's text: the values of `columns`, those that are there, joined by spaces.

    Raises InputError when the file cannot be read or has none of the columns.
    """
    try:
        if path.suffix == ".json":
            items = json.loads(path.read_text(encoding="utf-8"))
            rows = [{name: str(value) for name, value in items[str(number)].items()} for number in range(len(items))]
        elif path.suffix in (".csv", ".parquet"):
            rows = (pl.read_csv if path.suffix == ".csv" else pl.read_parquet)(path, glob=False).rows(named=True)
        else:
            raise InputError(f"{path} is neither .csv, .parquet nor .json; convert it to one of them.")
    except (OSError, ValueError, KeyError, AttributeError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as a catalogue ({reason}); check the file.") from error
    present = [name for name in columns if any(row.get(name) for row in rows)]
    if not present:
        raise InputError(f"{path} has none of the columns {', '.join(columns)}; name its text with --columns.")
    return [" ".join(str(row[name]) for name in present if row.get(name)) for row in rows]


if __name__ == "__main__":
    run_as_command(main)
