"""Semantic IDs for new items: `sidrec add-items --run_dir outputs/mine --vectors new.npy --write_file new.index.json`.

The run's own IDs stay as they are, and so do all its files. A model that was trained on them can write the new IDs: their tokens are in
its vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import read_manifest
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.embeddings.sources import check_numbers, open_array, read_source
from sidrec.tokenizer.interchange import write_codes
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.semantic_ids import SemanticIds

MOST_NAMED = 10  # duplicates in the summary


@dataclass
class AddItemsConfig:
    """Free semantic IDs for items that came after the run's own were made."""

    vectors: list[str] = field(
        metadata={
            "help": "One .npy file per source of the run, in the order of its --sources: a row per new item, made in the same way."
        }
    )
    write_file: str = field(
        metadata={"help": "The .index.json or .npy file for the new items' codes, in the order of their rows."}
    )
    run_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Folder of the run; reads sid/ in it."})
    catalogue: list[str] = field(
        default_factory=list,
        metadata={
            "help": "The .npy files that the run was made from, in the order of its --sources, to name new items that equal old ones; "
            "default: the run's embeddings/, unless the run has sources of its own."
        },
    )

    def __post_init__(self) -> None:
        if not self.write_file.endswith((".json", ".npy")):
            raise InputError(f"write_file is {self.write_file!r}; it must end in .json or .npy.")


def read_new(paths: list[Path]) -> list[np.ndarray]:
    """The new items' sources, [n, D_s] each. Raises InputError when one is missing, is not of numbers, or differs in rows."""
    sources: list[np.ndarray] = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} does not exist; correct --vectors.")
        rows = open_array(path)
        n_rows = len(sources[0]) if sources else None
        if rows.ndim != 2 or rows.dtype.kind not in "fiu" or not rows.size or n_rows not in (None, len(rows)):
            as_many = "" if n_rows is None else f", {n_rows} rows as in {paths[0]}"
            raise InputError(
                f"{path} holds {rows.dtype} of shape {list(rows.shape)}; it must hold rows of numbers{as_many}."
            )
        check_numbers(path, rows, constant_columns=True)
        sources.append(rows)
    return sources


def read_catalogue(config: AddItemsConfig, quantizer: Quantizer, n_items: int) -> ItemVectors | None:
    """The old items' vectors [N, D], where the files that they were made from are known and still there."""
    made_from = read_manifest(config.run_dir / "sid")
    assert made_from is not None, "the semantic IDs have been loaded"
    sources = made_from["fingerprint"]["sources"]
    paths = [Path(path) for path in config.catalogue] or [config.run_dir / "embeddings" / f"{s}.npy" for s in sources]
    if not config.catalogue and not all(map(Path.is_file, paths)):
        return None
    return quantizer.item_vectors([read_source(path, n_items, computed=True) for path in paths])


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(AddItemsConfig, arguments)
    screen = Screen("new items")
    sids = SemanticIds.load(config.run_dir)
    if sids.quantizer is None or not sids.quantizer.scales:
        raise InputError(
            f"{config.run_dir / 'sid'} does not say how item vectors are made; make it again with `bash run_tokenizer.sh`."
        )
    vectors = sids.quantizer.item_vectors(read_new([Path(path) for path in config.vectors]))
    new = sids.encode(vectors, read_catalogue(config, sids.quantizer, sids.n_items))
    write_codes(Path(config.write_file), new.codes)
    screen.say(
        f"{config.write_file}: {len(new.codes):,} new items, {new.moved.sum():,} beside their nearest codes, which other items have"
    )
    equal = np.flatnonzero(new.duplicate_of >= 0)
    if len(equal):
        screen.say(
            f"{len(equal):,} have exactly the vector of an item before them, which may be the same item; the first:"
        )
    for row in equal[:MOST_NAMED]:
        item = int(new.duplicate_of[row])
        other = f"item {item}" if item < sids.n_items else f"row {item - sids.n_items}"
        screen.say(f"row {row} is exactly {other}")


if __name__ == "__main__":
    run_as_command(main)
