"""Recommending for all users in one call, against one call a user.

python -m benchmarks.bulk_recommend
python -m benchmarks.bulk_recommend --run_dir outputs/ml-1m

Without --run_dir: a catalogue, a log and an RQ-Transformer of random weights in the size of MovieLens-1M's recipe. In bulk the lists of all
users are made by `sidrec.serving.answer.answers` and written into a Parquet file, which is timed with them; alone, `answer` is called for
each of --calls users, drawn from all. The share of those whose lists are the same both ways stands beside. Seconds are the processor's, of
all threads. The last line is one JSON object; ratio is users a second in bulk over users a second alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.harness import announce, check_at_least, plain_console, print_figures, timed
from benchmarks.random_catalogues import random_model, random_sids
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.serving.answer import Question, answer, answers
from sidrec.serving.bundle import Bundle
from sidrec.serving.history import asked_of_histories
from sidrec.serving.output import write_parts
from sidrec.serving.source import Source

MAX_ITEMS = 200  # of a history that the model is given
SHORTEST = 3  # items of a history


@dataclass
class BulkRecommendConfig:
    """Time recommending in bulk and one call a user."""

    run_dir: Path | None = field(default=None, metadata={"help": "A run with a trained model; left out: a random one."})
    n_items: int = field(default=3416, metadata={"help": "Items of the random catalogue."})
    n_users: int = field(default=6040, metadata={"help": "Users of the random log."})
    mean_items: int = field(
        default=165, metadata={"help": "Mean length of a random history; 165 as in MovieLens-1M, 9 as in Beauty."}
    )
    layers: int = field(
        default=2, metadata={"help": "Layers of the random model; 2 as in MovieLens-1M, 1 as in Beauty."}
    )
    k: int = field(default=10, metadata={"help": "Items of a list."})
    calls: int = field(default=300, metadata={"help": "Users of the calls one by one."})
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch."})
    seed: int = field(default=0, metadata={"help": "Seed of catalogue, weights, log and calls."})

    def __post_init__(self) -> None:
        check_at_least(SHORTEST, mean_items=self.mean_items)
        check_at_least(1, n_users=self.n_users, layers=self.layers, k=self.k, calls=self.calls, threads=self.threads)
        if self.n_items < 100:
            raise InputError(f"--n_items {self.n_items} is below 100, the smallest random catalogue.")


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(BulkRecommendConfig, arguments), plain_console()
    torch.set_num_threads(config.threads)
    announce(console, "bulk_recommend", arguments)
    bundle, asked = random_question(config) if config.run_dir is None else question_of_run(config.run_dir)
    question = Question(config.k)
    answer(bundle, asked["history"][:1].to_list(), question)  # what is made once

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lists.parquet"
        _, seconds = timed(lambda: write_parts(file, answers(bundle, asked, question)))
        bulk = len(asked) / seconds
        in_bulk = pl.read_parquet(file, glob=False)

    drawn = asked.sample(min(config.calls, len(asked)), seed=config.seed)
    calls = [
        (user, np.array(history)) for user, history in zip(drawn["user_id"], drawn["history"].to_list(), strict=True)
    ]
    tables, seconds = timed(lambda: [answer(bundle, [history], question, [user]) for user, history in calls])
    alone = len(calls) / seconds

    same = share_of_same_lists(in_bulk, pl.concat(tables))
    figures = {"users_per_s": round(bulk, 1), "users_per_s_alone": round(alone, 1), "ratio": round(bulk / alone, 2)}
    figures |= {"same_lists": same, "users": len(asked), "items": len(bundle.items), "threads": config.threads}
    console.print(f"{len(asked):,} users in bulk: {bulk:,.0f} a second; alone: {alone:,.0f} a second")
    print_figures(figures)


def random_question(config: BulkRecommendConfig) -> tuple[Bundle, pl.DataFrame]:
    """A catalogue of random semantic IDs, and users with random histories."""
    sids, rng = random_sids(config.n_items, config.seed), np.random.default_rng(config.seed)
    model, vocabulary = random_model(sids, "marginal", config.seed, config.layers)
    recommender = Recommender.build(model.eval(), Renderer.build(sids, vocabulary, MAX_ITEMS), sids)
    lengths = SHORTEST + rng.exponential(config.mean_items - SHORTEST, config.n_users).astype(int)
    histories = [rng.integers(0, config.n_items, length) for length in lengths]
    counts = np.bincount(np.concatenate(histories), minlength=config.n_items)
    names = [f"item {index}" for index in range(config.n_items)]
    items = pl.DataFrame({"item_id": names, "title": names})
    users = [f"user {number}" for number in range(config.n_users)]
    return Bundle(recommender, items, sids, "random", counts), asked_of_histories(histories, users)


def question_of_run(run_dir: Path) -> tuple[Bundle, pl.DataFrame]:
    """The last model trained, and every user of the log."""
    source = Source.open(run_dir, None, None, is_bundle=False)
    return source.bundle, source.of_users(source.by_user["user_id"].to_list())


def share_of_same_lists(in_bulk: pl.DataFrame, alone: pl.DataFrame) -> float:
    """The share of users of `alone` whose items are those of `in_bulk`; what is left has items of equal scores but for the last bit."""
    lists = [table.group_by("user_id").agg("item_id") for table in (in_bulk, alone)]
    both = lists[1].join(lists[0], on="user_id", suffix="_bulk")
    return round(int((both["item_id"] == both["item_id_bulk"]).sum()) / len(both), 4)


if __name__ == "__main__":
    run_as_command(main)
