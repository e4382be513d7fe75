"""What each lever is worth: our model as its config says, and with one thing changed at a time.

python -m benchmarks.levers --dataset ml-100k --raw_dir ml-100k --work_dir outputs/levers_ml
python -m benchmarks.levers --dataset amazon-beauty --work_dir outputs/levers_beauty --levers "text alone + three shared codes" --seeds 0

A name with " + " in it is several levers at once: "three shared codes + mixtures of all codes". The data set is prepared once; every lever
has its own tokenizer and SFT stages for every seed. Leave one out, whole catalogue, seen items masked. Levers are judged on valid, by
NDCG@10 paired with the config's over the same cases, means over seeds, with Holm's correction for the number of levers; checkpoints are
chosen on some of these cases, in every row alike. Test is not looked at. Finished trainings are kept in --work_dir and not run again, a
stopped one goes on (its seconds are then those since). The last line is one JSON object.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks.case_ranks import mean_gains, rank_splits, save_ranks
from benchmarks.finished_rows import FinishedRows, Row, grouped, markdown, mean_figures
from benchmarks.harness import (
    announce,
    plain_console,
    print_figures,
    run_stage,
    timed,
)
from benchmarks.our_models import OURS, PLANS, ManyRunsConfig, Ours, training_commands
from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import ndcg_at
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.statistics import PairedTest, holm, paired_test
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.sft.validation import sample_cases

CONFIG = "as configured"
HEADER = "lever|seeds|valid R@10|valid N@10|N@10 less the config's (95 %)|p|CPU s"


@dataclass(frozen=True)
class Lever:
    """Flags added to the config's: of the tokenizer's stages, and of SFT."""

    tokenizer: str = ""
    sft: str = ""


@dataclass(frozen=True)
class Sizes:
    """What differs by data set. levels: of three codes that items share. clusters: of the first of them, fewer and more. layers: others
    than the recipe's."""

    levels: tuple[int, int, int]
    clusters: tuple[int, int]
    layers: int


SIZES = {
    "ml-100k": Sizes((64, 64, 64), (16, 256), 2),
    "amazon-beauty": Sizes((64, 256, 256), (16, 256), 2),
    "ml-1m": Sizes((128, 128, 128), (32, 512), 1),
}


SWITCHES = {  # of the quantizers, which run when they are named; most say something where items share codes
    "mixtures of all codes": "--assignment soft",
    "mixtures of four codes": "--assignment topk",
    "mixtures of four codes, even": "--assignment topk --soft_weights uniform",
    "mixtures of four codes, learnt": "--assignment topk --soft_weights learnt",
    "mixtures by Sinkhorn": "--assignment soft --soft_weights sinkhorn",
    "codes balanced by Sinkhorn": "--sinkhorn_epsilon 0.003",
    "first code counts double": "--coarse_weight 2",
    "even use, by entropy": "--diversity_weight 0.1",
    "even use, by variance": "--diversity_weight 0.1 --diversity_form variance",
    "dead codes to residuals": "--reset_every 50",
    "dead codes to k-means": "--reset_every 50 --reset_to kmeans",
    "start by soft k-means": "--codebook_init soft_kmeans",
    "start by a Gaussian mixture": "--codebook_init gmm",
    "encoder with dropout": "--dropout 0.1",
    "encoder with batch norm": "--batch_norm true",
    "levels' losses summed": "--level_reduction sum",
    "first level's LoRA twice as large": "--quantizer lora --layer0_multiplier 2",
    "LoRA, told the code before": "--quantizer lora --condition_on_previous true --condition_form one_hot",
    "FSQ": "--quantizer fsq",
}


def levers_of(dataset: str) -> dict[str, Lever]:
    """By the name of its row, the config itself first. Of the semantic IDs: the kind, the levels, their sizes, the sources; then of the
    model."""
    sizes = SIZES[dataset]
    first, *below = sizes.levels

    def shared(*levels: int) -> Lever:
        return Lever(f"--unique assign --level_sizes {' '.join(map(str, levels))}")

    def clusters(n: int) -> Lever:
        return Lever(f"--unique own_token --level_sizes {n}")

    return {
        CONFIG: Lever(),
        "residual k-means": Lever("--quantizer rqkmeans"),
        "LoRA-codebook RQ": Lever("--quantizer lora"),
        "RQ-VAE": Lever("--quantizer rqvae"),
        "random codes": Lever(OURS["random"].tokenizer),
        "fewer clusters, then own codes": clusters(sizes.clusters[0]),
        "more clusters, then own codes": clusters(sizes.clusters[1]),
        "two shared codes": shared(*below),
        "three shared codes": shared(*sizes.levels),
        "four shared codes": shared(first, *below, below[-1]),
        "three shared codes, falling": shared(4 * first, first, first // 2),
        "codes' rows alone": Lever(sft="--own_rows false"),
        "text alone": Lever(OURS["text"].tokenizer),
        "collaborative alone": Lever(OURS["collaborative"].tokenizer),
        "text of full weight": Lever("--sources text collaborative --weights 1.0 1.0"),
        "more passes, more items left out": Lever(sft="--num_train_epochs 45 --item_dropout 0.3"),
        "no item left out": Lever(sft="--item_dropout 0"),
        "dropout 0.3": Lever(sft="--dropout 0.3"),
        "half the width": Lever(sft="--hidden_size 64 --intermediate_size 128"),
        "twice the width": Lever(sft="--hidden_size 256 --intermediate_size 512"),
        "another layer more or less": Lever(sft=f"--num_hidden_layers {sizes.layers}"),
        "additive head": Lever(sft="--depth_head additive"),
        "transformer head": Lever(sft="--depth_head transformer"),
        "no smoothing": Lever(sft="--smoothing false"),
        **{name: Lever(flags) for name, flags in SWITCHES.items()},
    }


NAMES = tuple(name for name in levers_of("ml-100k") if name not in SWITCHES)
AND = " + "


def lever_of(dataset: str, name: str) -> Lever:
    """By its name, or by several names with AND between them: their flags one after the other."""
    levers = [levers_of(dataset)[part] for part in name.split(AND)]
    return Lever(
        *(" ".join(filter(None, flags)) for flags in zip(*((x.tokenizer, x.sft) for x in levers), strict=True))
    )


@dataclass
class LeversConfig(ManyRunsConfig):
    """Train the config's model with one thing changed at a time, and compare on valid."""

    levers: list[str] = field(
        default_factory=lambda: list(NAMES[1:]),
        metadata={
            "help": f"Any of {', '.join(map(repr, NAMES[1:]))}, or several joined by ' + '; the config itself always runs. Switches of "
            f"the quantizers, besides: {', '.join(map(repr, SWITCHES))}."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*NAMES[1:], *SWITCHES)
        unknown = [part for name in self.levers for part in name.split(AND) if part not in known]
        if unknown:
            raise InputError(f"--levers has {unknown[0]!r}; give any of {', '.join(map(repr, known))}.")


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(LeversConfig, arguments), plain_console()
    torch.set_num_threads(config.threads)
    announce(console, "levers", arguments)
    cases = sample_cases(config.prepared().cases("valid"), config.cases, seed=0)
    finished = FinishedRows(config.work_dir / "rows.json")
    asked = [(name, seed) for name in (CONFIG, *config.levers) for seed in config.seeds]
    rows = [run_or_find(name, seed, finished, config, cases, console) for name, seed in asked]
    table = summarise(rows, config.work_dir)
    console.print(f"\n## {config.dataset}: {len(cases):,} cases of valid\n")
    console.print(markdown(HEADER.split("|"), [in_words(line) for line in table]))
    print_figures({"dataset": config.dataset, "rows": table})


def run_or_find(
    name: str,
    seed: int,
    finished: FinishedRows,
    config: LeversConfig,
    cases: EvalCases,
    console: Console,
) -> Row:
    """One training of a lever, run unless it is finished, with a line on what came out."""
    commands = stages_of(config.dataset, lever_of(config.dataset, name), seed)
    row_name, made_from = f"{name} seed {seed}", {"commands": commands, "cases": config.cases}
    row = finished.find(row_name, made_from)
    if row is None:
        run_dir = config.work_dir / "runs" / row_name.replace(" ", "_")
        figures = train_and_measure(commands, run_dir, config, cases)
        about = {"lever": name, "seed": seed, "run_dir": str(run_dir.relative_to(config.work_dir))}
        row = finished.keep(row_name, made_from, about | figures)
        valid, seconds = row["valid"]["ndcg@10"], row["seconds"]
        console.print(f"{time.strftime('%H:%M:%S')}  {row_name}: valid NDCG@10 {valid:.4f}, {seconds:,.0f} s")
    return row


def stages_of(dataset: str, lever: Lever, seed: int) -> list[list[str]]:
    """The stages that make a lever's model; of two flags the later counts."""
    plan = PLANS[dataset]
    return training_commands(replace(plan, sft=f"{plan.sft} {lever.sft}"), Ours(lever.tokenizer, {}), (), seed)


def train_and_measure(commands: list[list[str]], run_dir: Path, config: LeversConfig, cases: EvalCases) -> Row:
    """The stages in a run directory of their own, going on where they were stopped; the ranks go to its ranks.npz."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "data").exists():
        (run_dir / "data").symlink_to((config.work_dir / "base" / "data").resolve(), target_is_directory=True)
    seconds = sum(run_stage(command, run_dir, config.threads) for command in commands)
    ranks, measuring = timed(lambda: rank_splits(Recommender.load(run_dir, "sft"), {"valid": cases}, run_dir.name))
    shutil.rmtree(run_dir / "sft" / "checkpoints", ignore_errors=True)
    return save_ranks(run_dir, ranks) | {"seconds": round(seconds + measuring, 1)}


def summarise(rows: list[Row], work_dir: Path) -> list[Row]:
    """One line per lever: means over its seeds, and on valid the paired difference of NDCG@10 from the config's, p corrected."""
    groups = {name: trainings for (name,), trainings in grouped(rows, "lever").items()}
    gains = {name: mean_gains(trainings, work_dir, "valid", ndcg_at) for name, trainings in groups.items()}
    table = []
    for name, trainings in groups.items():
        line: Row = {"lever": name, "seeds": len(trainings), "less": None, "p": None}
        line["valid"] = mean_figures(trainings, "valid")
        line["seconds"] = float(np.mean([row["seconds"] for row in trainings]))
        if name != CONFIG:
            line["less"] = paired_test(gains[name], gains[CONFIG], seed=0)
        table.append(line)
    compared = [line for line in table if line["less"] is not None]
    for line, p in zip(compared, holm([line["less"].p for line in compared]), strict=True):
        line["p"] = p
    return table


def in_words(line: Row) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    less: PairedTest | None = line["less"]
    return [
        line["lever"],
        str(line["seeds"]),
        f"{line['valid']['recall@10']:.4f}",
        f"{line['valid']['ndcg@10']:.4f}",
        f"{less.difference:+.4f} ({less.low:+.4f} to {less.high:+.4f})" if less else "",
        f"{line['p']:.4f}" if less else "",
        f"{line['seconds']:,.0f}",
    ]


if __name__ == "__main__":
    run_as_command(main)
