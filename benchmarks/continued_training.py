"""A model that is trained further as events come, beside one that is trained anew each time and one that never is.

python -m benchmarks.continued_training --dataset demo --work_dir outputs/continued-demo
python -m benchmarks.continued_training --dataset ml-100k --raw_dir ml-100k/ --work_dir outputs/continued-ml-100k

The log is cut into slices of equally many events in time order. The first model is trained on the first slice. After each further one but
the last, `sidrec update` joins it and trains the model further; another model is trained anew, with the first one's settings, on the same
data, of which both hold the newest fifth out. Semantic IDs are made of texts alone, for all items, once. Each model is asked for the first
event of every user in the next slice that has a history, seen items masked. Seconds are processor seconds: of the whole update, joining and
judging included, and of the training anew alone. The last line is one JSON object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from rich.console import Console

from benchmarks.harness import (
    PREPARE,
    TOKENIZE,
    announce,
    check_at_least,
    plain_console,
    prepare_flags,
    print_figures,
    run_stage,
    timed,
)
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import ranks_in_lists, recall_at
from sidrec.data.split import by_user_and_time, global_time
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage
from sidrec.serving.update import LINKED, UPDATES, UpdateConfig, latest_run, update
from sidrec.sft import train
from sidrec.sft.continued import ContinuedConfig

FIGURES = (
    "recall10_continued",
    "recall10_anew",
    "recall10_unchanged",
    "seconds_continued",
    "seconds_anew",
    "cases",
    "accepted",
)


@dataclass
class ContinuedTrainingConfig:
    """Which data, and in how many slices."""

    work_dir: Path = field(
        metadata={"help": "Where the runs are made; a new folder, since what is finished already takes no time."}
    )
    dataset: Literal["demo", "ml-100k"] = field(
        default="demo",
        metadata={"help": "Data whose times are true; its tokenizer and SFT settings are those of its configs."},
    )
    raw_dir: Path | None = field(
        default=None, metadata={"help": "ml-100k: the publisher's unpacked files. Left out: a download."}
    )
    slices: int = field(default=5, metadata={"help": "Slices of time."})

    def __post_init__(self) -> None:
        check_at_least(3, slices=self.slices)


def main(arguments: list[str] | None = None) -> None:
    config, how = parse_configs((ContinuedTrainingConfig, ContinuedConfig), arguments)
    console = plain_console()
    announce(console, "continued_training", arguments)
    everything, first = config.work_dir / "all", config.work_dir / "first"
    everything.mkdir(parents=True, exist_ok=True)
    run_stage([*PREPARE, *prepare_flags(config.dataset, config.raw_dir)], everything, threads=1)
    dataset = Dataset.load(everything)

    def tokenize() -> None:
        texts = ["--config", f"configs/tokenizer/{config.dataset}.yaml", "--sources", "text", "--weights", "1.0"]
        run_stage([*TOKENIZE, *texts], first, threads=1)

    sft = ["--config", f"configs/sft/{config.dataset}.yaml", "--disable_tqdm", "true", "--seed", str(how.seed)]
    print_figures(by_slice(dataset, first, tokenize, sft, how, config.slices, console))


def by_slice(
    dataset: Dataset,
    first: Path,
    tokenize: Callable[[], None],
    sft: list[str],
    how: ContinuedConfig,
    slices: int,
    console: Console,
) -> dict[str, Any]:
    """A list of each of FIGURES, from the second slice on. first: the run directory to begin with. tokenize: makes its sid/ once its data
    are there. sft: flags of the training."""
    log = dataset.interactions.with_columns(pl.col("user_id").cast(pl.String)).drop("split")
    part = slice_of(log, slices)
    write_first(dataset, log.filter(pl.Series(part == 0)), first)
    tokenize()
    train.main([*sft, "--run_dir", str(first)])
    figures: dict[str, Any] = {name: [] for name in FIGURES}
    for number in range(1, slices - 1):
        events = first.parent / f"events-{number}.parquet"
        since = log.filter(pl.Series((part > 0) & (part <= number)))
        since.join(dataset.items.select("item_index", "item_id"), on="item_index", maintain_order="left").drop(
            "item_index"
        ).write_parquet(events)
        joining = UpdateConfig(events, first)
        accepted, seconds = timed(lambda joining=joining: update(joining, how))  # type: ignore[misc]
        updated, anew = first / UPDATES / f"{number:04d}", first.parent / f"anew-{number}"
        for name in ("data", *LINKED):
            link_to(updated / name, anew / name)
        _, seconds_anew = timed(lambda anew=anew: train.main([*sft, "--run_dir", str(anew)]))  # type: ignore[misc]
        cases = first_events(log, part, number + 1)
        runs = {"continued": latest_run(first), "anew": anew, "unchanged": first}
        row: dict[str, Any] = {f"recall10_{name}": recall10(run, cases) for name, run in runs.items()}
        row |= {
            "seconds_continued": round(seconds, 1),
            "seconds_anew": round(seconds_anew, 1),
            "cases": len(cases),
            "accepted": accepted,
        }
        for name in FIGURES:
            figures[name].append(row[name])
        console.print(
            f"after slice {number + 1}, {row['cases']:,} cases of the next: Recall@10 continued {row['recall10_continued']:.4f} "
            f"({seconds:.0f} s{'' if accepted else ', refused'}), anew {row['recall10_anew']:.4f} ({seconds_anew:.0f} s), never updated "
            f"{row['recall10_unchanged']:.4f}"
        )
    return figures


def slice_of(log: pl.DataFrame, slices: int) -> np.ndarray:
    """int64 [rows]: the slice of each row, 0…slices-1, of equally many rows in time order; equal times in the log's order."""
    order = np.argsort(log["timestamp"].to_numpy(), kind="stable")
    part = np.empty(len(log), dtype=np.int64)
    part[order] = np.arange(len(log)) * slices // len(log)
    return part


def write_first(dataset: Dataset, log: pl.DataFrame, run_dir: Path) -> None:
    """data/ of the first slice, split by time, with the whole catalogue."""
    stage = Stage(run_dir, "data", {"rows": len(log)}, (dataset.folder / "interactions.parquet",))
    if stage.is_finished():
        return
    split = global_time(log)
    counts = dataset.info["counts"] | {"users": split["user_id"].n_unique(), "interactions": len(split)}
    counts |= {name: int((split["split"] == name).sum()) for name in ("train", "valid", "test")}
    with stage.building() as folder:
        Dataset(dataset.items, split, dataset.info | {"counts": counts, "protocol": "global_time"}).save(folder)


def link_to(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not link.is_symlink():
        link.symlink_to(target.resolve(), target_is_directory=True)


def first_events(log: pl.DataFrame, part: np.ndarray, number: int) -> EvalCases:
    """Each user's first event of this slice that has one before it, and all before it."""
    ordered = by_user_and_time(log.with_columns(part=pl.Series(part)))
    users, histories, targets = [], [], []
    for user, items, parts in ordered.group_by("user_id", maintain_order=True).agg("item_index", "part").iter_rows():
        place = next((place for place in range(1, len(items)) if parts[place] == number), None)
        if place is not None:
            users.append(user)
            histories.append(np.array(items[:place], dtype=np.int64))
            targets.append(items[place])
    if not users:
        raise InputError(f"slice {number + 1} has no event with a history; make fewer slices.")
    return EvalCases(users, histories, np.array(targets, dtype=np.int64))


def recall10(run_dir: Path, cases: EvalCases) -> float:
    lists = Recommender.load(run_dir, "sft").recommend(cases.histories, 10, exclude_seen=True)
    return float(recall_at(ranks_in_lists(lists.items, cases.targets), 10).mean())


if __name__ == "__main__":
    run_as_command(main)
