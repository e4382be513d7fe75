"""Ask a language model for items in words.

sidrec ask "Something like Toy Story, but Comedy?" --run_dir outputs/ml-100k
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import first_named, parse_config
from sidrec.pipeline.errors import InputError


@dataclass
class AskConfig:
    """Ask a language model for items in words: the first argument is the question, in quotes. Only a model that was trained on questions
    answers (`--question_to_item` of SFT), and it knows the kind of question that it was trained on."""

    question: str = field(metadata={"help": 'Such as "Something like Toy Story, but Comedy?".'})
    run_dir: Path = field(metadata={"help": "Run directory with the trained model."})
    model: Literal["sft", "rl"] = field(default="sft", metadata={"help": "The stage whose model is asked."})
    k: int = field(default=10, metadata={"help": "Number of items."})

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InputError("the question is empty; say what you look for.")
        if self.k < 1:
            raise InputError(f"k={self.k} items cannot be recommended; ask for 1 or more.")


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(AskConfig, first_named("question", sys.argv[1:] if arguments is None else arguments))
    import polars as pl  # with torch, for which --help does not wait
    from rich.console import Console
    from transformers import AutoTokenizer

    from sidrec.data.dataset import Dataset
    from sidrec.decoding.answers import answers
    from sidrec.serving.bundle import Bundle
    from sidrec.serving.table import show_items
    from sidrec.sft.questions import question_prompt

    refuse_untrained(config.run_dir)
    bundle = Bundle.of_run(config.run_dir, config.model, Dataset.load(config.run_dir))
    tokenizer = AutoTokenizer.from_pretrained(config.run_dir / config.model)
    best = answers(bundle.of_one_model, [question_prompt(config.question, tokenizer)], config.k)
    rows = bundle.shelf[best.items[0][best.items[0] >= 0]]
    rows = rows.with_row_index("rank", offset=1).with_columns(score=pl.Series(best.log_probs[0][: len(rows)]))
    show_items(rows, Console())


def refuse_untrained(run_dir: Path) -> None:
    """Raise InputError where SFT learnt no questions."""
    from sidrec.pipeline.stage import read_manifest

    manifest = read_manifest(run_dir / "sft")
    if manifest is None:
        raise InputError(
            f"{run_dir} has no trained model; run `accelerate launch sft/train.py --run_dir {run_dir}` first."
        )
    if not manifest["fingerprint"].get("question_to_item"):
        raise InputError(
            f"the model of {run_dir} has learnt no questions; train a language model with --model_name_or_path … and "
            "--question_to_item 0.5."
        )


if __name__ == "__main__":
    run_as_command(main)
