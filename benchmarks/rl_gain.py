"""What RL adds to the accuracy of the SFT model it begins with, beside SFT that goes on for as many steps.

accelerate launch sft/train.py --run_dir outputs/ml-100k --seeds 3
python -m benchmarks.rl_gain --dataset ml-100k --run_dir outputs/ml-100k --work_dir outputs/rl_gain_ml --json

Every setting of SETTINGS is trained from the first seed's SFT model; OURS and the control from every seed's, those of --run_dir's seeds/.
All rows read the same histories at the same rate for the same steps, and differ in what is maximised. A checkpoint is chosen on the stage's
valid users: the best NDCG@10 of those that keep the SFT model's Recall@50, the SFT model among them. Settings are compared on all valid
users; on test stand OURS, the control and SFT alone, with differences paired over cases and seeds and a bootstrap interval over users.
Leave one out, whole catalogue, seen items left out. Finished rows are kept in --work_dir and not run again. The last line is one JSON
object.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks.finished_rows import FinishedRows, Row, grouped, markdown, mean_figures
from benchmarks.harness import announce, plain_console, print_figures
from benchmarks.rl_runs import RlRunsConfig, base_of, begin_run, folder_of, require_sft_models, train_rl
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import CUTOFFS, ndcg_at, ranks_in_lists, recall_at
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.coverage import count_items, spread
from sidrec.evaluation.statistics import PairedTest, paired_test
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json
from sidrec.sft.validation import sample_cases

SFT, CONTROL, OURS = "SFT", "SFT goes on", "hit@20"
SETTINGS = {
    CONTROL: "--rewards exact_hit --reward_weights 0 --sft_loss_weight 1",
    OURS: "--rewards hit_at_k --hit_k 20",
    "hit@5": "--rewards hit_at_k --hit_k 5",
    "hit@100": "--rewards hit_at_k --hit_k 100",
    "hit@1, 5, 20 and 100": "--rewards hit_at_k --hit_k 1 5 20 100",
    "hit of one draw": "--rewards exact_hit",
    "hit of one draw, over its deviation (GRPO)": "--rewards exact_hit --objective grpo",
    "hit@20 and credit for leading codes": "--rewards hit_at_k prefix_credit --reward_weights 1 0.2",
    "hit@20 and SFT": "--rewards hit_at_k --sft_loss_weight 1",
    "NDCG@10 of a drawn list": "--rewards ndcg_at_k --hit_k 10",
    "hit@20, a fifth of the items left out": "--rewards hit_at_k --item_dropout 0.2",
}
EVERY_SEED = (SFT, CONTROL, OURS)
METRICS = {
    "recall10": lambda ranks: recall_at(ranks, 10),
    "ndcg10": lambda ranks: ndcg_at(ranks, 10),
    "recall50": lambda ranks: recall_at(ranks, 50),
}
HEADER = "setting|seeds|chosen steps|R@10|N@10|R@50|N@10 less the control's (95 %)|coverage|CPU s"
TEST_HEADER = "on test|R@10|N@10|R@50"


@dataclass
class RlGainConfig(RlRunsConfig):
    """Train RL in many ways from one SFT model, and compare them."""

    settings: list[str] = field(
        default_factory=lambda: list(SETTINGS), metadata={"help": f"Any of {', '.join(map(repr, SETTINGS))}."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.settings if name not in SETTINGS]
        if unknown:
            raise InputError(f"--settings has {unknown[0]!r}; give any of {', '.join(map(repr, SETTINGS))}.")


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(RlGainConfig, arguments), plain_console()
    torch.set_num_threads(config.threads)
    require_sft_models(config)
    announce(console, "rl_gain", arguments)
    dataset = Dataset.load(config.run_dir)
    cases = {split: sample_cases(dataset.cases(split), config.cases, seed=0) for split in ("valid", "test")}
    finished = FinishedRows(config.work_dir / "rows.json")
    names = [SFT, *(name for name in SETTINGS if name in {*config.settings, CONTROL})]
    asked = [(name, seed) for name in names for seed in range(config.seeds) if seed == 0 or name in EVERY_SEED]
    rows = [run_or_find(name, seed, finished, config, cases, console) for name, seed in asked]

    table = summarise(rows, config.work_dir, np.asarray(cases["valid"].user_ids))
    console.print(f"\n## {config.dataset}: {len(cases['valid']):,} valid cases, the first seed's alone\n")
    console.print(markdown(HEADER.split("|"), [in_words(line) for line in table.values()]))
    figures = gains_on_test(rows, config.work_dir, np.asarray(cases["test"].user_ids), console)
    if config.json:
        print_figures(figures | {"seeds": config.seeds, "rows": table})


def run_or_find(
    name: str, seed: int, finished: FinishedRows, config: RlGainConfig, cases: dict[str, EvalCases], console: Console
) -> Row:
    """A setting's row, run unless it is finished, with a line on what came out."""
    base = base_of(config.run_dir, seed)
    origin = read_json(base / "sft" / "manifest.json")["outputs"]
    made_from = {"flags": SETTINGS.get(name, ""), "cases": config.cases, "sft": origin}
    row_name = f"{name} seed {seed}"
    row = finished.find(row_name, made_from)
    if row is None:
        run_dir = folder_of(config.work_dir, row_name)
        seconds, step = train(name, seed, base, run_dir, config.threads), 0
        if name != SFT:
            step = read_json(run_dir / "rl" / "log.json")["kept_step"]
        recommender = Recommender.load(run_dir, "sft" if name == SFT else "rl")
        about = {"setting": name, "seed": seed, "run_dir": str(run_dir.relative_to(config.work_dir)), "step": step}
        row = finished.keep(row_name, made_from, about | measure(run_dir, recommender, cases) | {"seconds": seconds})
        console.print(
            f"{time.strftime('%H:%M:%S')}  {row_name}: valid NDCG@10 {row['valid']['ndcg10']:.4f}, {seconds:.0f} s"
        )
    return row


def train(name: str, seed: int, base: Path, run_dir: Path, threads: int) -> float:
    """Train a setting in a run directory that has the base's finished stages; its processor seconds."""
    begin_run(base, run_dir)
    return 0.0 if name == SFT else train_rl(shlex.split(SETTINGS[name]), run_dir, seed, threads)


def measure(run_dir: Path, recommender: Recommender, cases: dict[str, EvalCases]) -> Row:
    """The model's figures on valid. Every case's rank, of valid and test, goes to the run directory, for paired differences."""
    figures: Row = {}
    for split, asked in cases.items():
        items = recommender.recommend(asked.histories, CUTOFFS[-1], exclude_seen=True).items
        ranks = ranks_in_lists(items, asked.targets)
        with atomic_path(run_dir / f"{split}-ranks.npy") as temporary, temporary.open("wb") as handle:
            np.save(handle, ranks, allow_pickle=False)
        if split == "valid":
            figures["valid"] = {metric: float(gain(ranks).mean()) for metric, gain in METRICS.items()}
            figures["coverage"] = spread(count_items(items[:, :10], recommender.trie.n_items))["coverage"]
    return figures


def gains(rows: list[Row], metric: str, split: str, work_dir: Path) -> np.ndarray:
    """A metric of every case, the mean over the rows: float64 [cases]."""
    ranks = [np.load(work_dir / row["run_dir"] / f"{split}-ranks.npy", allow_pickle=False) for row in rows]
    return np.mean([METRICS[metric](one) for one in ranks], axis=0)


def summarise(rows: list[Row], work_dir: Path, users: np.ndarray) -> dict[str, Row]:
    """One line per setting: its figures on valid with the first seed, and the paired difference of NDCG@10 from the control's."""
    groups = {name: trainings for (name,), trainings in grouped(rows, "setting").items()}
    control = gains(groups[CONTROL][:1], "ndcg10", "valid", work_dir)
    table: dict[str, Row] = {}
    for name, trainings in groups.items():
        first = trainings[:1]
        table[name] = {
            "setting": name,
            "seeds": len(trainings),
            "steps": " ".join(str(row["step"]) for row in trainings),
            "valid": mean_figures(first, "valid"),
            "coverage": first[0]["coverage"],
            "seconds": float(np.mean([row["seconds"] for row in trainings])),
            "less_control": paired_test(gains(first, "ndcg10", "valid", work_dir), control, seed=0, users=users),
        }
    return table


def gains_on_test(rows: list[Row], work_dir: Path, users: np.ndarray, console: Console) -> Row:
    """Relative gains of OURS over the control on test, their mean over seeds; low, high: of NDCG@10, over users. None where OURS was not
    asked for."""
    groups = {name: trainings for (name,), trainings in grouped(rows, "setting").items() if name in EVERY_SEED}
    on_test = {
        name: {metric: gains(trainings, metric, "test", work_dir) for metric in METRICS}
        for name, trainings in groups.items()
    }
    console.print(f"\nMeans over {len(groups[SFT])} seeds:\n")
    lines = [[name, *(f"{values[metric].mean():.4f}" for metric in METRICS)] for name, values in on_test.items()]
    console.print(markdown(TEST_HEADER.split("|"), lines))
    ours, control, sft = (on_test.get(name) for name in (OURS, CONTROL, SFT))
    assert control is not None
    assert sft is not None
    figures: Row = {"control_gain": control["ndcg10"].mean() / sft["ndcg10"].mean() - 1}
    for metric in METRICS:
        less = None if ours is None else paired_test(ours[metric], control[metric], seed=0, users=users)
        scale = control[metric].mean()
        figures[f"{metric}_gain"] = None if less is None else less.difference / scale
        figures[f"{metric}_low"] = None if less is None else less.low / scale
        figures[f"{metric}_high"] = None if less is None else less.high / scale
    return figures | {"low": figures["ndcg10_low"], "high": figures["ndcg10_high"]}


def in_words(line: Row) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    less: PairedTest = line["less_control"]
    return [
        line["setting"],
        str(line["seeds"]),
        line["steps"],
        *(f"{line['valid'][metric]:.4f}" for metric in METRICS),
        "" if line["setting"] == CONTROL else f"{less.difference:+.4f} ({less.low:+.4f} to {less.high:+.4f})",
        f"{line['coverage']:.3f}",
        f"{line['seconds']:.0f}",
    ]


if __name__ == "__main__":
    run_as_command(main)
