"""Semantic IDs for new items: `sidrec add-items --run_dir outputs/mine --vectors new.npy --write_file new.index.json`.

The run's own IDs stay as they are, and so do all its files. A model that was trained on them can write the new IDs: their tokens are in
its vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.output_path import check_output
from sidrec.pipeline.screen import Screen

MOST_NAMED = 10  # duplicates in the summary


@dataclass
class AddItemsConfig:
    """Give items that came after the run's semantic IDs were made free ones of their own, and write them to a file."""

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


def main(arguments: list[str] | None = None) -> None:
    code_vectors(parse_config(AddItemsConfig, arguments))


def code_vectors(config: AddItemsConfig) -> None:
    # torch comes with these, and --help does not wait for it
    from sidrec.tokenizer.interchange import write_codes
    from sidrec.tokenizer.new_items import read_catalogue, read_new
    from sidrec.tokenizer.semantic_ids import SemanticIds

    check_output("--write_file", Path(config.write_file), [Path(path) for path in (*config.vectors, *config.catalogue)])
    screen = Screen("new items")
    sids = SemanticIds.load(config.run_dir)
    if sids.quantizer is None or not sids.quantizer.scales:
        raise InputError(
            f"{config.run_dir / 'sid'} does not say how item vectors are made; make it again with `bash run_tokenizer.sh`."
        )
    vectors = sids.quantizer.item_vectors(read_new([Path(path) for path in config.vectors]))
    new = sids.encode(vectors, read_catalogue(config.run_dir, config.catalogue, sids.quantizer, sids.n_items))
    write_codes(Path(config.write_file), new.codes)
    screen.say(
        f"{config.write_file}: semantic IDs of {len(new.codes):,} new items; {new.moved.sum():,} did not get their nearest codes, which "
        "other items have"
    )
    equal = [row for row, item in enumerate(new.duplicate_of) if item >= 0]
    if equal:
        screen.say(
            f"{len(equal):,} have exactly the vector of an item before them, which may be the same item; the first:"
        )
    for row in equal[:MOST_NAMED]:
        item = int(new.duplicate_of[row])
        other = f"item {item}" if item < sids.n_items else f"row {item - sids.n_items}"
        screen.say(f"row {row} is exactly {other}")


if __name__ == "__main__":
    run_as_command(main)
