"""Two models on the newest events of a log: the paired difference, new less old, its interval and p. `compare ranks`: rows of tables.

sidrec compare outputs/mine outputs/mine/updates/latest
sidrec compare --models outputs/mine/bundle outputs/other/bundle --log newest.csv --output compared.json
sidrec compare ranks outputs/ml-100k:slit outputs/ml-100k:sft
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.evaluation.compare import CompareConfig, compare_rows
from sidrec.evaluation.settings import BUNDLED
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.output_path import check_output
from sidrec.pipeline.screen import Screen

if TYPE_CHECKING:
    import polars as pl

    from sidrec.data.dataset import Dataset, EvalCases
    from sidrec.serving.bundle import Bundle

OF_RANKS = ("ranks", "--ranks")


@dataclass
class CompareModelsConfig:
    """Compare two models on events that neither was trained on. `compare ranks A B` compares two rows of tables instead."""

    models: list[str] = field(
        metadata={
            "help": "The old one and the new one, each a bundle, a run directory (its last trained model), or RUN:MODEL (outputs/mine:sft)."
        }
    )
    log: Path | None = field(
        default=None,
        metadata={
            "help": "A log, CSV or Parquet with user_id, item_id and timestamp, whose newest events are asked for; those that a run "
            "directory was trained on are left out. Without it: the test cases of the second one, which is a run directory then."
        },
    )
    newest: float = field(
        default=0.1,
        metadata={"help": "Share (0 to 1) of the log's events in time order that are asked for, the newest."},
    )
    output: Path | None = field(default=None, metadata={"help": "JSON file to write the figures to."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap and of the sign flips."})

    def __post_init__(self) -> None:
        if len(self.models) != 2:
            raise InputError(f"--models has {len(self.models)} of them; give two, the second less the first is shown.")
        if not 0 < self.newest <= 1:
            raise InputError(f"--newest is {self.newest:g}; it is a share, above 0 and at most 1.")


def main(arguments: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in OF_RANKS:
        compare_rows(parse_config(CompareConfig, ["--ranks", *words[1:]]))
        return
    if words and not words[0].startswith("-"):  # `compare A B` is `compare --models A B`
        words.insert(0, "--models")
    config = parse_config(CompareModelsConfig, words)
    if config.output is not None:
        check_output("--output", config.output, [] if config.log is None else [config.log])
    from sidrec.data.tables import require_file
    from sidrec.serving.model_comparison import compared, in_lists, lines

    if config.log is not None:
        require_file(config.log)
    screen = Screen("compare")
    (first, data), (second, second_data) = (opened(place) for place in config.models)
    if config.log is None:
        if second_data is None:
            raise InputError(f"{config.models[1]} holds no log; name one with --log.")
        asked = cases_of_ids(second_data.cases("test"), second_data, first, second)
    else:
        trained = [trained_rows(each) for each in (data, second_data) if each is not None]
        asked = newest_cases(config.log, config.newest, first, second, trained, screen)
    ranks = [
        in_lists(each.recommender, cases, each.name, screen) for each, cases in zip((first, second), asked, strict=True)
    ]
    figures = compared(ranks[0], ranks[1], asked[0], config.seed)
    screen.summary("compare", lines(figures, *config.models))
    if config.output is not None:
        write_json(config.output, {"models": config.models, **figures})


def opened(place: str) -> tuple[Bundle, Dataset | None]:
    """A bundle, or a run directory's model with its data. Raises InputError for what is neither."""
    from sidrec.data.dataset import Dataset
    from sidrec.serving.bundle import ABOUT, Bundle, last_trained

    folder, model = Path(place), None
    run, _, name = place.rpartition(":")
    if not folder.exists() and run:
        folder, model = Path(run), name
        if model not in BUNDLED:
            raise InputError(f"{place}: {model!r} is no model; name one of {', '.join(BUNDLED)}.")
    if (folder / ABOUT).is_file():
        return Bundle.load(folder), None
    if not (folder / "data").is_dir():
        raise InputError(f"{place} is neither a bundle nor a run directory; check the path.")
    dataset = Dataset.load(folder)
    return Bundle.of_run(folder, model or last_trained(folder), dataset), dataset


def trained_rows(dataset: Dataset) -> pl.DataFrame:
    """user_id, item_id and timestamp of what a run's models are trained on."""
    import polars as pl

    train = dataset.interactions.filter(pl.col("split") == "train")
    return train.join(dataset.items.select("item_index", "item_id"), on="item_index").select(
        pl.col("user_id", "item_id").cast(pl.String), "timestamp"
    )


def newest_cases(
    file: Path, share: float, first: Bundle, second: Bundle, trained: list[pl.DataFrame], screen: Screen
) -> tuple[EvalCases, EvalCases]:
    """A case for each of the newest events that has a history, with both models' item numbers. The newest are the last ⌈share · n⌉ of n
    events in time order, equal times in input order; what comes before one in the log, newest or not, is its history."""
    import polars as pl

    from sidrec.data.readers import read_log

    log = (
        read_log(file).with_columns(pl.col("user_id", "item_id").cast(pl.String)).sort("timestamp", maintain_order=True)
    )
    n_newest = -int(-share * len(log) // 1)
    log = log.with_columns(is_newest=pl.int_range(pl.len()) >= len(log) - n_newest, is_trained=pl.lit(False))
    for rows in trained:
        mark = rows.unique().with_columns(mark=pl.lit(True))
        log = log.join(mark, on=["user_id", "item_id", "timestamp"], how="left", maintain_order="left")
        log = log.with_columns(is_trained=pl.col("is_trained") | pl.col("mark").fill_null(False)).drop("mark")
    n_trained = log.filter("is_newest", "is_trained").height
    known = log.filter(pl.col("item_id").is_in(list(first.index_of.keys() & second.index_of.keys())))
    screen.say(
        f"compare: {file}: the newest {n_newest:,} of {len(log):,} events; {n_trained:,} of them were trained on and are left out, "
        f"{len(log) - len(known):,} events of the log are of items that not both catalogues have"
    )
    users, histories, targets = [], [], []
    grouped = known.group_by("user_id", maintain_order=True).agg(
        "item_id", asked=pl.col("is_newest") & ~pl.col("is_trained")
    )
    for user, items, asked in grouped.iter_rows():
        for place in range(1, len(items)):
            if asked[place]:
                users.append(user)
                histories.append(items[:place])
                targets.append(items[place])
    if not users:
        raise InputError(
            f"{file}: none of the newest events has a history and was not trained on; give a longer or a newer log."
        )
    return cases_by_number(first, users, histories, targets), cases_by_number(second, users, histories, targets)


def cases_of_ids(cases: EvalCases, dataset: Dataset, first: Bundle, second: Bundle) -> tuple[EvalCases, EvalCases]:
    """The cases of a data set with both models' item numbers: those whose target, and an item of whose history, both catalogues have."""
    ids, both = dataset.items["item_id"].to_list(), first.index_of.keys() & second.index_of.keys()
    users, histories, targets = [], [], []
    for user, history, target in zip(cases.user_ids, cases.histories, cases.targets, strict=True):
        known = [ids[item] for item in history if ids[item] in both]
        if known and ids[target] in both:
            users.append(user)
            histories.append(known)
            targets.append(ids[target])
    if not users:
        raise InputError(f"{dataset.folder} has no test case that both models can answer; name a log with --log.")
    return cases_by_number(first, users, histories, targets), cases_by_number(second, users, histories, targets)


def cases_by_number(bundle: Bundle, users: list[str], histories: list[list[str]], targets: list[str]) -> EvalCases:
    """Cases by the model's item numbers, from item ids."""
    import numpy as np

    from sidrec.data.dataset import EvalCases

    number = bundle.index_of
    numbered = [np.array([number[item] for item in history]) for history in histories]
    return EvalCases(users, numbered, np.array([number[item] for item in targets]))


if __name__ == "__main__":
    run_as_command(main)
