"""What a quantizer is for: the Recall that the same short SFT reaches on its semantic IDs.

python -m benchmarks.tokenizer_downstream --dataset ml-100k --raw_dir ml-100k --work_dir outputs/downstream_ml
python -m benchmarks.tokenizer_downstream --dataset amazon-beauty --raw_dir amazon-beauty --work_dir outputs/downstream_beauty

The data set is prepared and its items embedded once; then every quantizer's SIDs, an SFT of the same model, steps and seed, and
Recall@10 and NDCG@10 over the whole catalogue, leave one out, seen items masked. The two quantizers of the best valid Recall@10 and
plain k-means run again with the other seeds (of quantizer and SFT). Quantizers are judged on valid; test is not looked at. Random codes
show what a language model reaches on IDs without meaning. Finished rows are kept in --work_dir and not run again. The last line is one JSON
object.
"""

from __future__ import annotations

import shlex
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console

from benchmarks.case_ranks import K, mean_gains, rank_splits, save_ranks
from benchmarks.finished_rows import FinishedRows, Row, grouped, markdown, mean_figures
from benchmarks.harness import (
    EMBED,
    PREPARE,
    SFT,
    TOKENIZE,
    announce,
    check_at_least,
    check_seeds,
    plain_console,
    print_figures,
    run_stage,
    timed,
)
from benchmarks.quantizers import QUANTIZERS, check_names, flags_of, read_settings
from sidrec.baselines.popularity import fit_popularity
from sidrec.baselines.scorer import rank_cases
from sidrec.data.dataset import Dataset, EvalCases, SplitName
from sidrec.data.metrics import recall_at
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.statistics import paired_test
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.sft.validation import sample_cases

DEFAULT, PLAIN, RANDOM = "rqkmeans", "rqkmeans_plain", "random"
HEADER = "quantizer|codes|seeds|valid R@10|valid N@10|R@10 less plain's (95 %)|CPU s"
EMBEDDING = "--sources text collaborative --weights 0.5 1.0"
SFT_FLAGS = (
    "--hidden_size 128 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 384 --dropout 0.2 --disable_tqdm true "
    "--valid_users 500 --eval_strategy steps --eval_steps 0.5 --save_strategy steps --save_steps 0.5"
)


@dataclass(frozen=True)
class Plan:
    """How a data set is prepared and trained on. deeper: level sizes that rqkmeans is run with once more, to compare depths."""

    prepare: str
    sft: str
    level_sizes: list[int]
    deeper: list[int]


PLANS = {
    "ml-100k": Plan(
        prepare="--dataset ml-100k --raw_dir {raw_dir}",
        sft=f"{SFT_FLAGS} --max_items 200 --num_train_epochs 4",
        level_sizes=[64, 64],
        deeper=[64, 64, 64],
    ),
    "amazon-beauty": Plan(
        prepare="--dataset own --interactions {raw_dir}/interactions.parquet --items {raw_dir}/items.csv",
        sft=f"{SFT_FLAGS} --max_items 20 --num_train_epochs 5 --per_device_train_batch_size 64",
        level_sizes=[256, 256],
        deeper=[256, 256, 256],
    ),
}


@dataclass
class DownstreamConfig:
    """Train the same small model on every quantizer's semantic IDs, and compare its Recall."""

    dataset: Literal["ml-100k", "amazon-beauty"] = field(metadata={"help": "The data set."})
    raw_dir: Path = field(
        metadata={
            "help": "ml-100k: the publisher's unpacked files; amazon-beauty: a folder with interactions.parquet and items.csv."
        }
    )
    work_dir: Path = field(metadata={"help": "Where runs and finished rows are kept; another one for each data set."})
    quantizers: list[str] = field(
        default_factory=lambda: list(QUANTIZERS), metadata={"help": f"Any of {' '.join(QUANTIZERS)}."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "Every quantizer runs with the first; the best two and plain k-means with the others too."},
    )
    cases: int = field(
        default=10_000, metadata={"help": "Valid cases, and test cases, at most; drawn once, the same for every row."}
    )
    threads: int = field(default=1, metadata={"help": "Threads of each stage, so that two data sets can run at once."})
    overwrite: bool = field(default=False, metadata={"help": "Run these rows again, even if they are finished."})

    def __post_init__(self) -> None:
        check_names(self.quantizers)
        check_seeds(self.seeds)
        check_at_least(1, cases=self.cases, threads=self.threads)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(DownstreamConfig, arguments), plain_console()
    plan = PLANS[config.dataset]
    torch.set_num_threads(config.threads)
    announce(console, "tokenizer_downstream", arguments)
    base = prepare(config, plan)
    dataset = Dataset.load(base)
    cases: dict[SplitName, EvalCases] = {"valid": sample_cases(dataset.cases("valid"), config.cases, seed=0)}
    finished = FinishedRows(config.work_dir / "rows.json")

    def run(name: str, level_sizes: list[int], seed: int) -> Row:
        return run_or_find(name, level_sizes, seed, finished, config, cases, console)

    first, *others = config.seeds
    rows = [popularity_row(config.work_dir, dataset, cases)]
    rows += [run(name, plan.level_sizes, first) for name in config.quantizers]
    repeated = to_repeat(rows)
    rows += [run(name, plan.level_sizes, seed) for name in repeated for seed in others]
    if DEFAULT in config.quantizers:
        rows.append(run(DEFAULT, plan.deeper, first))

    table = summarise(rows, config.work_dir)
    console.print(f"\n## {config.dataset}: {dataset.n_items:,} items, {len(cases['valid']):,} cases of valid\n")
    console.print(markdown(HEADER.split("|"), [in_words(row) for row in table]))
    print_figures({"dataset": config.dataset, "repeated": repeated, "rows": table})


def prepare(config: DownstreamConfig, plan: Plan) -> Path:
    """The run directory with `data/` and `embeddings/` that every row starts from."""
    base = config.work_dir / "base"
    base.mkdir(parents=True, exist_ok=True)
    flags = shlex.split(plan.prepare.format(raw_dir=shlex.quote(str(config.raw_dir.resolve()))))
    run_stage([*PREPARE, *flags], base, config.threads)
    run_stage([*EMBED, *shlex.split(EMBEDDING)], base, config.threads)
    return base


def run_or_find(
    name: str,
    level_sizes: list[int],
    seed: int,
    finished: FinishedRows,
    config: DownstreamConfig,
    cases: dict[SplitName, EvalCases],
    console: Console,
) -> Row:
    """A quantizer's row, run unless it is finished, with a line on what came out."""
    plan = PLANS[config.dataset]
    settings, sizes = read_settings(name, level_sizes)
    made_from = settings.identity() | {"level_sizes": sizes, "seed": seed, "plan": asdict(plan), "cases": config.cases}
    row_name = f"{name} {'x'.join(map(str, sizes))} seed {seed}"
    row = None if config.overwrite else finished.find(row_name, made_from)
    if row is None:
        run_dir = config.work_dir / "runs" / row_name.replace(" ", "_")
        start = time.perf_counter()
        figures = train_and_measure(name, level_sizes, seed, run_dir, config, cases)
        about = {
            "quantizer": name,
            "level_sizes": sizes,
            "seed": seed,
            "run_dir": str(run_dir.relative_to(config.work_dir)),
        }
        wall = round(time.perf_counter() - start, 1)
        row = finished.keep(row_name, made_from, about | figures | {"wall_seconds": wall})
        valid, seconds = row["valid"]["recall@10"], sum(row["seconds"].values())
        console.print(f"{time.strftime('%H:%M:%S')}  {row_name}: valid Recall@10 {valid:.4f}, {seconds:.0f} s")
    return row


def train_and_measure(
    name: str,
    level_sizes: list[int],
    seed: int,
    run_dir: Path,
    config: DownstreamConfig,
    cases: dict[SplitName, EvalCases],
) -> Row:
    """SIDs, SFT and metrics in a run directory of their own, made anew."""
    if run_dir.exists():
        shutil.rmtree(run_dir)
    shutil.copytree(config.work_dir / "base", run_dir)
    seeded = ["--seed", str(seed)]
    tokenize = [*TOKENIZE, *flags_of(name, level_sizes), *shlex.split(EMBEDDING), *seeded]
    sft = [*SFT, *shlex.split(PLANS[config.dataset].sft), *seeded]
    seconds = {"tokenize": run_stage(tokenize, run_dir, config.threads), "sft": run_stage(sft, run_dir, config.threads)}
    ranks, measuring = timed(lambda: rank_splits(Recommender.load(run_dir, "sft"), cases, name))
    seconds["evaluate"] = round(measuring, 1)
    shutil.rmtree(run_dir / "sft" / "checkpoints", ignore_errors=True)
    return save_ranks(run_dir, ranks) | {"seconds": seconds}


def popularity_row(work_dir: Path, dataset: Dataset, cases: dict[SplitName, EvalCases]) -> Row:
    """What recommending the most popular items reaches on the same cases."""
    scorer = fit_popularity(dataset.train_sequences, dataset.n_items)
    ranks = {split: rank_cases(scorer, part, masked=True) for split, part in cases.items()}
    about = {"quantizer": "(popularity)", "level_sizes": [], "seed": 0, "run_dir": "base", "seconds": {}}
    return about | save_ranks(work_dir / "base", ranks)


def to_repeat(rows: list[Row]) -> list[str]:
    """The two quantizers of the best valid Recall@10, and plain k-means where it ran; random codes are no candidate."""
    candidates = [row for row in rows if row["level_sizes"] and row["quantizer"] not in (PLAIN, RANDOM)]
    best = sorted(candidates, key=lambda row: -row["valid"][f"recall@{K}"])[:2]
    plain = [row for row in rows if row["quantizer"] == PLAIN]
    return [row["quantizer"] for row in best + plain]


def summarise(rows: list[Row], work_dir: Path) -> list[Row]:
    """One line per quantizer and level sizes: means over seeds, and the paired difference from plain k-means.

    The difference is of the hits of each case, averaged over the seeds that both have run with.
    """
    named = [row | {"sizes": "x".join(map(str, row["level_sizes"]))} for row in rows]
    plain = [row for row in rows if row["quantizer"] == PLAIN]
    table = []
    for (name, sizes), trainings in grouped(named, "quantizer", "sizes").items():
        line: Row = {"quantizer": name, "level_sizes": sizes, "seeds": len(trainings)}
        line["valid"] = mean_figures(trainings, "valid")
        line["range"] = [pick(row["valid"][f"recall@{K}"] for row in trainings) for pick in (min, max)]
        line["seconds"] = float(np.mean([sum(row["seconds"].values()) for row in trainings]))
        line["minus_plain"] = None
        if plain and name != PLAIN:
            both = min(len(plain), len(trainings))
            hits, plain_hits = (mean_gains(some[:both], work_dir, "valid", recall_at) for some in (trainings, plain))
            line["minus_plain"] = asdict(paired_test(hits, plain_hits, seed=0))
        table.append(line)
    return table


def in_words(line: Row) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    valid, minus = line["valid"], line["minus_plain"]
    spread = f" ({line['range'][0]:.4f}–{line['range'][1]:.4f})" if line["seeds"] > 1 else ""
    return [
        line["quantizer"],
        line["level_sizes"],
        str(line["seeds"]),
        f"{valid[f'recall@{K}']:.4f}{spread}",
        f"{valid[f'ndcg@{K}']:.4f}",
        f"{minus['difference']:+.4f} ({minus['low']:+.4f} to {minus['high']:+.4f})" if minus else "",
        f"{line['seconds']:.0f}",
    ]


if __name__ == "__main__":
    run_as_command(main)
