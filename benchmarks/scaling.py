"""How the valid loss falls with the number of parameters, of codes and of training users: power laws, loss = a · size^-exponent.

python -m benchmarks.scaling --dataset ml-100k --raw_dir ml-100k --work_dir outputs/scaling

One size is changed at a time, from the data set's config: the model's width, the clusters of the first code, the users that tokenizer and
model are trained on (the catalogue stays). The loss is the mean -log π of the valid cases' items, in nats an item, of all users' cases for
every row. Each row is trained by the stages' own commands, its checkpoint chosen on valid as always; finished ones are kept in --work_dir.
The exponent is the slope of log loss over log size, by least squares; r2 says how straight that line is. The last line is one JSON object.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.finished_rows import FinishedRows, Row, grouped, markdown
from benchmarks.harness import (
    announce,
    plain_console,
    print_figures,
    run_stage,
)
from benchmarks.our_models import PLANS, ManyRunsConfig, Ours, training_commands
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.stage import Stage
from sidrec.sft.validation import sample_cases

WIDTHS = (32, 64, 256)
CLUSTERS = (4, 16, 256)
SHARES = (0.125, 0.25, 0.5)  # of the users
CONFIG = "as configured"  # a point of every law
LAWS = {"width": "parameters", "clusters": "clusters", "users": "users"}  # by what was changed, what the law is in
HEADER = "changed|parameters|clusters|users|seeds|nats an item|CPU s"


@dataclass
class ScalingConfig(ManyRunsConfig):
    """Train a data set's model in several sizes and fit power laws to its valid loss."""


@dataclass(frozen=True)
class Size:
    """changed: CONFIG, or a key of LAWS, to `value`. tokenizer, sft: flags. share: of the users that are trained on."""

    changed: str
    value: float = 1.0
    tokenizer: str = ""
    sft: str = ""
    share: float = 1.0


SIZES = (
    Size(CONFIG),
    *(Size("width", width, sft=f"--hidden_size {width} --intermediate_size {2 * width}") for width in WIDTHS),
    *(Size("clusters", n, tokenizer=f"--unique own_token --level_sizes {n}") for n in CLUSTERS),
    *(Size("users", share, share=share) for share in SHARES),
)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(ScalingConfig, arguments), plain_console()
    torch.set_num_threads(config.threads)
    announce(console, "scaling", arguments)
    dataset = config.prepared()
    cases = sample_cases(dataset.cases("valid"), config.cases, seed=0)
    finished = FinishedRows(config.work_dir / "rows.json")
    rows = []
    for size in SIZES:
        for seed in config.seeds:
            row = run_or_find(size, seed, finished, config, dataset, cases)
            console.print(f"{time.strftime('%H:%M:%S')}  {row_name(size, seed)}: {row['loss']:.4f} nats")
            rows.append(row)
    lines = [mean_of(trainings) for trainings in grouped(rows, "changed", "value").values()]
    console.print(f"\n## {config.dataset}, {len(cases):,} valid cases\n")
    console.print(markdown(HEADER.split("|"), [in_words(line) for line in lines]))
    print_figures({"dataset": config.dataset, "laws": laws(lines), "rows": lines})


def run_or_find(
    size: Size, seed: int, finished: FinishedRows, config: ScalingConfig, dataset: Dataset, cases: EvalCases
) -> Row:
    """One training, run unless it is finished."""
    plan = PLANS[config.dataset]
    commands = training_commands(replace(plan, sft=f"{plan.sft} {size.sft}"), Ours(size.tokenizer, {}), (), seed)
    name, made_from = row_name(size, seed), {"commands": commands, "cases": config.cases, "share": size.share}
    row = finished.find(name, made_from)
    if row is None:
        run_dir = config.work_dir / "runs" / name.replace(" ", "_")
        with_users(dataset, size.share, run_dir)
        seconds = sum(run_stage(command, run_dir, config.threads) for command in commands)
        shutil.rmtree(run_dir / "sft" / "checkpoints", ignore_errors=True)
        about = {"changed": size.changed, "value": size.value, "users": size.share, "seed": seed, "seconds": seconds}
        row = finished.keep(name, made_from, about | measured(Recommender.load(run_dir, "sft"), cases))
    return row


def row_name(size: Size, seed: int) -> str:
    changed = size.changed if size.changed == CONFIG else f"{size.changed} {size.value:g}"
    return f"{changed} seed {seed}"


def with_users(dataset: Dataset, share: float, run_dir: Path, seed: int = 0) -> None:
    """Make the run directory's data/ of this share of the users, drawn by the seed, and of all items.

    A larger share has all users of a smaller one.
    """
    stage = Stage(run_dir, "data", {"share": share, "seed": seed})
    if stage.is_finished():
        return
    users = dataset.interactions["user_id"].unique(maintain_order=True).to_list()
    order = np.random.default_rng(seed).permutation(len(users))
    drawn = [users[place] for place in order[: max(1, round(share * len(users)))]]
    interactions = dataset.interactions.filter(pl.col("user_id").is_in(drawn))
    counts = {name: len(part) for (name,), part in interactions.partition_by("split", as_dict=True).items()}
    info = dataset.info | {"counts": dataset.info["counts"] | {"users": len(drawn), **counts}}
    with stage.building() as folder:
        Dataset(dataset.items, interactions, info).save(folder)


def measured(recommender: Recommender, cases: EvalCases) -> Row:
    """parameters; clusters: codes of the first level; loss: mean -log π of the cases' items."""
    losses = -recommender.log_probs_of(cases.histories, cases.targets)
    parameters = sum(weight.numel() for weight in recommender.model.parameters())
    return {"parameters": parameters, "clusters": recommender.trie.level_sizes[0], "loss": float(losses.mean())}


def mean_of(trainings: list[Row]) -> Row:
    """One line of the table: of all seeds of a size."""
    means = {name: float(np.mean([row[name] for row in trainings])) for name in (*LAWS.values(), "loss", "seconds")}
    return {"changed": trainings[0]["changed"], "seeds": len(trainings)} | means


def laws(lines: list[Row]) -> dict[str, dict[str, float]]:
    """By what the law is in: exponent, a and r2 of loss = a · size^-exponent, from the config's line and those with that size changed."""
    fitted = {}
    for changed, name in LAWS.items():
        part = [line for line in lines if line["changed"] in (CONFIG, changed)]
        sizes, losses = (np.log([line[figure] for line in part]) for figure in (name, "loss"))
        slope, intercept = np.polyfit(sizes, losses, 1)
        unexplained = ((losses - slope * sizes - intercept) ** 2).sum() / ((losses - losses.mean()) ** 2).sum()
        fitted[name] = {
            "exponent": round(float(-slope), 4),
            "a": round(float(np.exp(intercept)), 4),
            "r2": round(float(1 - unexplained), 3),
        }
    return fitted


def in_words(line: Row) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    sizes = [f"{line['parameters'] / 1e6:.2f}M", f"{line['clusters']:.0f}", f"{line['users']:.1%}"]
    return [line["changed"], *sizes, str(line["seeds"]), f"{line['loss']:.4f}", f"{line['seconds']:,.0f}"]


if __name__ == "__main__":
    run_as_command(main)
