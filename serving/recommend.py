"""What would this user take next?

python -m sidrec.serving.recommend --run_dir outputs/ml-100k --user 196
python -m sidrec.serving.recommend --run_dir outputs/ml-100k --history "toy story" "fargo"
"""

from __future__ import annotations

import difflib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.semantic_ids import SemanticIds

LISTED_CANDIDATES = 10
SHOWN_HISTORY = 5


@dataclass
class Question:
    """Whose history, and how many recommendations."""

    run_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Run directory with a trained model."})
    user: str | None = field(
        default=None, metadata={"help": "A user_id of the data; the history is all that they did."}
    )
    history: list[str] | None = field(
        default=None, metadata={"help": "Titles, oldest first; a part of a title is enough when it fits only one item."}
    )
    k: int = field(default=10, metadata={"help": "Number of recommendations."})
    keep_seen: bool = field(default=False, metadata={"help": "Also recommend items of the history."})

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k={self.k} recommendations cannot be made; ask for 1 or more.")


@dataclass
class RecommendConfig(Question):
    stage: str | None = field(
        default=None,
        metadata={"help": "Model to ask: sft or rl; left out: rl where it is finished.", "choices": ["sft", "rl"]},
    )


def main() -> None:
    config = parse_config(RecommendConfig)
    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    history = find_history(dataset, config)
    stage = config.stage or last_trained(config.run_dir)
    recommender = Recommender.load(config.run_dir, stage)
    k = min(config.k, dataset.n_items)
    found = recommender.recommend([history], k, exclude_seen=not config.keep_seen)
    show(Console(), dataset, sids, history, found.items[0], found.log_probs[0], stage)


def last_trained(run_dir: Path) -> str:
    """ "rl" where that stage is finished, else "sft"."""
    manifest = run_dir / "rl" / "manifest.json"
    return "rl" if manifest.exists() and json.loads(manifest.read_text(encoding="utf-8"))["finished"] else "sft"


def find_history(dataset: Dataset, question: Question) -> np.ndarray:
    """Item indices, oldest first, of the user or the titles asked for."""
    if (question.user is None) == (question.history is None):
        raise InputError("give either --user ID or --history TITLE [TITLE …], one of the two.")
    if question.history is not None:
        return np.array([find_title(dataset.titles, title) for title in question.history], dtype=np.int64)
    rows = dataset.interactions.filter(pl.col("user_id") == question.user)
    if not len(rows):
        known = ", ".join(dataset.interactions["user_id"].unique(maintain_order=True).head(3).to_list())
        raise InputError(
            f"--user {question.user}: no such user_id in {question.run_dir / 'data'}; the first ones are {known}."
        )
    return rows["item_index"].to_numpy().astype(np.int64)


def find_title(titles: list[str], query: str) -> int:
    """Item index of the one title that is `query`, is it but for a year in brackets, or holds it; letter case does not count.

    Raises InputError that lists the candidates when there are several, and the closest titles when there is none.
    """
    wanted = query.casefold().strip()
    if not wanted:
        raise InputError("--history holds an empty title; give at least a part of one.")
    folded = [title.casefold() for title in titles]
    without_year = [re.sub(r"\s*\(\d{4}\)$", "", title) for title in folded]
    for matches in (
        [i for i, title in enumerate(folded) if title == wanted],
        [i for i, title in enumerate(without_year) if title == wanted],
        [i for i, title in enumerate(folded) if wanted in title],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = "; ".join(titles[i] for i in matches[:LISTED_CANDIDATES])
            more = f"; and {len(matches) - LISTED_CANDIDATES} more" if len(matches) > LISTED_CANDIDATES else ""
            raise InputError(f"--history {query!r} fits {len(matches)} items: {listed}{more}. Type more of the title.")
    close = difflib.get_close_matches(wanted, without_year, n=3, cutoff=0.5)
    hint = "; ".join(titles[without_year.index(title)] for title in close) or titles[0]
    raise InputError(f"--history {query!r} is in no title; perhaps you mean: {hint}.")


def show(
    console: Console,
    dataset: Dataset,
    sids: SemanticIds,
    history: np.ndarray,
    items: np.ndarray,
    log_probs: np.ndarray,
    stage: str,
) -> None:
    """Print the end of the history and the recommendations."""
    shown = [dataset.titles[item] for item in history[-SHOWN_HISTORY:]]
    earlier = f"… {len(history) - len(shown)} more, " if len(history) > len(shown) else ""
    console.print(f"history: {earlier}{' → '.join(shown)}", markup=False, emoji=False, highlight=False)
    table = Table(title=f"next, by the {stage} model")
    table.add_column("", justify="right")
    table.add_column("title")
    table.add_column("semantic ID")
    table.add_column("probability", justify="right")
    for rank, (item, log_prob) in enumerate(zip(items[items >= 0], log_probs, strict=False), start=1):
        table.add_row(str(rank), Text(dataset.titles[item]), sids.text(int(item)), f"{math.exp(log_prob):.2%}")
    console.print(table)


if __name__ == "__main__":
    run_as_command(main)
