"""What RL adds: on valid, beside the SFT model it began with, and beside SFT continued for as long.

python -m benchmarks.rl_gain --dataset ml-100k --run_dir outputs/ml-100k --work_dir outputs/rl_gain_ml

From the finished SFT model of --run_dir, every setting of SETTINGS is trained as a stage of its own; those of REPEATED with every seed,
the others with the first. Leave one out, whole catalogue, seen items masked. A checkpoint is chosen on the stage's valid users: the best
NDCG@10 of those that keep the SFT model's Recall@50, the SFT model among them. Settings are compared on all valid users, these among them;
test is not looked at. Differences are paired over the same cases, with a bootstrap interval over users. Finished rows are kept in
--work_dir and not run again. The last line is one JSON object.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console

from benchmarks import harness
from benchmarks.finished_rows import FinishedRows, Row, grouped, markdown, mean_figures
from benchmarks.harness import announce, check_seeds, plain_console, print_figures, run_stage
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import CUTOFFS, ndcg_at, ranks_in_lists, recall_at
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.coverage import count_items, spread
from sidrec.evaluation.statistics import PairedTest, paired_test
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.stage import require_finished
from sidrec.sft.validation import sample_cases

SFT, CONTINUED, RIVAL, OURS = "SFT", "SFT continued", "the rival's recipe", "all together"
PLAIN = "--inject_target false --sft_loss_weight 0"
BEAMS = f"--objective grpo --draw beams --importance_weights false {PLAIN}"
HITS = "--rewards exact_hit rank_penalty --reward_weights 1 1"
EXACT = "--kl_weight 0.001"
# one change each, from the second row on
SETTINGS = {
    RIVAL: f"{BEAMS} {HITS}",
    "constrained log π, exact KL": f"{BEAMS} {HITS} {EXACT}",
    "… and Gumbel groups, weighted": f"--objective grpo --draw gumbel {PLAIN} {HITS} {EXACT}",
    "… and the taken item in every group": f"--objective grpo --draw gumbel --importance_weights false --sft_loss_weight 0 {HITS} {EXACT}",
    "… and credit for leading codes": f"{BEAMS} --rewards exact_hit rank_penalty prefix_credit --reward_weights 1 1 0.2 {EXACT}",
    "… and credit code by code": f"{BEAMS} {HITS} {EXACT} --token_credit 0.2",
    "… and the SFT anchor": f"{BEAMS} {HITS} {EXACT} --sft_loss_weight 1",
    "… and open questions": f"{BEAMS} --rewards exact_hit rank_penalty history_score --reward_weights 1 1 1 {EXACT} --open_questions true",
    "S-DPO": "--objective s_dpo --rewards exact_hit --reward_weights 1 --sft_loss_weight 0",
    "SFT on the same questions": "--rewards exact_hit --reward_weights 0",
    OURS: EXACT,
}
REPEATED = (RIVAL, OURS)
HEADER = (
    "setting|seeds|kept steps|R@10|N@10|R@50|N@10 less SFT continued's (95 %)|less SFT's (95 %)|"
    "coverage|entropy|no signal|CPU s"
)


@dataclass(frozen=True)
class Plan:
    """rl: flags of every RL stage. further: flags of SFT continued, chosen so that it takes as many processor seconds."""

    rl: str
    further: str


PLANS = {
    "ml-100k": Plan(
        rl="--per_device_train_batch_size 1024 --max_steps 40 --eval_steps 20 --save_steps 20 --valid_users 1000",
        further="--max_items 200 --max_steps 500 --eval_steps 250 --save_steps 250 --valid_users 1000",
    ),
    "amazon-beauty": Plan(
        rl="--per_device_train_batch_size 1024 --max_steps 60 --eval_steps 20 --save_steps 20 --valid_users 2000",
        further="--max_items 50 --per_device_train_batch_size 64 --max_steps 600 --eval_steps 200 --save_steps 200 --valid_users 2000",
    ),
    "ml-1m": Plan(
        rl="--per_device_train_batch_size 512 --max_steps 60 --eval_steps 30 --save_steps 30 --valid_users 1000",
        further="--max_items 200 --max_steps 400 --eval_steps 200 --save_steps 200 --valid_users 1000",
    ),
}
FURTHER = "--eval_strategy steps --save_strategy steps --eval_on_start true --metric_for_best_model eval_ndcg@10"


@dataclass
class RlGainConfig:
    """Train RL in many ways from one SFT model, and compare them on test."""

    dataset: Literal["ml-100k", "amazon-beauty", "ml-1m"] = field(metadata={"help": "Whose plan: updates and batches."})
    run_dir: Path = field(metadata={"help": "Run directory of that data set with finished data, sid and sft stages."})
    work_dir: Path = field(metadata={"help": "Where runs and finished rows are kept; another one for each data set."})
    settings: list[str] = field(
        default_factory=lambda: list(SETTINGS), metadata={"help": f"Any of {', '.join(map(repr, SETTINGS))}."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of RL and of SFT continued."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of every row."})
    cases: int = field(default=10_000, metadata={"help": "Test cases, at most; drawn once, the same for every row."})
    threads: int = field(default=1, metadata={"help": "Threads of each stage."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.settings if name not in SETTINGS]
        if unknown:
            raise InputError(f"--settings has {unknown[0]!r}; give any of {', '.join(map(repr, SETTINGS))}.")
        check_seeds(self.seeds)
        for flag, value in (
            ("--cases", self.cases),
            ("--threads", self.threads),
            ("--learning_rate", self.learning_rate),
        ):
            if not value > 0:
                raise InputError(f"{flag} is {value}; it must be above 0.")


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(RlGainConfig, arguments), plain_console()
    torch.set_num_threads(config.threads)
    for stage in ("data", "sid", "sft"):
        require_finished(config.run_dir, stage, f"bash run_quickstart.sh {config.dataset} --run_dir {config.run_dir}")
    announce(console, "rl_gain", arguments)
    cases = sample_cases(Dataset.load(config.run_dir).cases("valid"), config.cases, seed=0)
    finished = FinishedRows(config.work_dir / "rows.json")
    first, *others = config.seeds
    asked = [(SFT, first)] + [(CONTINUED, seed) for seed in config.seeds]
    asked += [(name, seed) for name in config.settings for seed in ([first, *others] if name in REPEATED else [first])]
    rows = [run_or_find(name, seed, finished, config, cases, console) for name, seed in asked]

    table = summarise(rows, config.work_dir, cases)
    console.print(f"\n## {config.dataset}: {len(cases):,} valid cases\n")
    console.print(markdown(HEADER.split("|"), [in_words(line) for line in table.values()]))
    print_figures(key_figures(table) | {"rows": table})


def run_or_find(
    name: str, seed: int, finished: FinishedRows, config: RlGainConfig, cases: EvalCases, console: Console
) -> Row:
    """A setting's row, run unless it is finished, with a line on what came out."""
    plan = PLANS[config.dataset]
    origin = json.loads((config.run_dir / "sft" / "manifest.json").read_text(encoding="utf-8"))["outputs"]
    flags = SETTINGS.get(name, plan.further if name == CONTINUED else "")
    made_from = {
        "flags": f"{FURTHER} {flags}" if name == CONTINUED else flags,
        "plan": plan.rl,
        "rate": config.learning_rate,
        "cases": config.cases,
        "sft": origin,
    }
    row_name = f"{name} seed {seed}"
    row = finished.find(row_name, made_from)
    if row is None:
        run_dir = config.work_dir / "runs" / "".join(letter if letter.isalnum() else "_" for letter in row_name)
        seconds, stage = train(name, seed, run_dir, config)
        figures = training_figures(run_dir, stage)
        chosen = (config.run_dir, "sft") if figures["kept_step"] == 0 else (run_dir, stage)
        figures |= measure(run_dir, Recommender.load(*chosen), cases)
        about = {"setting": name, "seed": seed, "run_dir": str(run_dir.relative_to(config.work_dir))}
        row = finished.keep(row_name, made_from, about | figures | {"seconds": seconds})
        valid = row["valid"]["ndcg@10"]
        console.print(f"{time.strftime('%H:%M:%S')}  {row_name}: valid NDCG@10 {valid:.4f}, {seconds:.0f} s")
    return row


def train(name: str, seed: int, run_dir: Path, config: RlGainConfig) -> tuple[float, str]:
    """Train a setting in a run directory that has the base's finished stages; processor seconds, and the stage to measure."""
    if run_dir.exists():
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True)
    for stage in ["data", "embeddings", "sid"] + ["sft"] * (name != CONTINUED):
        if (config.run_dir / stage).exists():  # codes that were given have no embeddings
            (run_dir / stage).symlink_to((config.run_dir / stage).resolve(), target_is_directory=True)
    if name == SFT:
        return 0.0, "sft"
    plan = PLANS[config.dataset]
    common = ["--seed", str(seed), "--learning_rate", str(config.learning_rate), "--disable_tqdm", "true"]
    if name == CONTINUED:
        start = ["--model_name_or_path", str((config.run_dir / "sft").resolve())]
        command = [*harness.SFT, *shlex.split(f"{FURTHER} {plan.further}"), *start]
        return run_stage([*command, *common], run_dir, config.threads), "sft"
    script = ["-m", "benchmarks.rival_recipe"] if name == RIVAL else harness.RL
    command = [*script, *shlex.split(f"{plan.rl} {SETTINGS[name]}")]
    return run_stage([*command, *common], run_dir, config.threads), "rl"


def measure(run_dir: Path, recommender: Recommender, cases: EvalCases) -> Row:
    """The model's figures on valid; the ranks go to the run directory's ranks.npy, for paired differences."""
    items = recommender.recommend(cases.histories, CUTOFFS[-1], exclude_seen=True).items
    ranks = ranks_in_lists(items, cases.targets)
    with atomic_path(run_dir / "ranks.npy") as temporary, temporary.open("wb") as handle:
        np.save(handle, ranks, allow_pickle=False)
    first_ten = spread(count_items(items[:, :10], recommender.trie.n_items))
    return {
        "valid": {
            "recall@10": float(recall_at(ranks, 10).mean()),
            "ndcg@10": float(ndcg_at(ranks, 10).mean()),
            "recall@50": float(recall_at(ranks, 50).mean()),
        },
        "coverage": first_ten["coverage"],
        "entropy": first_ten["entropy"],
    }


def training_figures(run_dir: Path, stage: str) -> Row:
    """Which step was kept (0: the SFT model), and the mean share of groups without a signal."""
    folder = run_dir / stage
    measured = json.loads((folder / "valid.json").read_text(encoding="utf-8"))
    best, zero_signal = max(measured, key=lambda row: row["eval_ndcg@10"]), None
    if stage == "rl":
        log = json.loads((folder / "log.json").read_text(encoding="utf-8"))
        best = next(row for row in measured if row["step"] == log["kept_step"])
        zero_signal = float(np.mean([row["zero_signal"] for row in log["log"] if "zero_signal" in row]))
    elif measured[0]["step"] == 0 and best["eval_recall@50"] < measured[0]["eval_recall@50"]:
        best = measured[0]  # the same rule as RL's
    return {"kept_step": best["step"], "zero_signal": zero_signal}


def summarise(rows: list[Row], work_dir: Path, cases: EvalCases) -> dict[str, Row]:
    """One line per setting: means over its seeds, and the paired differences of NDCG@10 from SFT's and from SFT continued's."""
    groups = {name: trainings for (name,), trainings in grouped(rows, "setting").items()}
    users = np.asarray(cases.user_ids)

    def gains(name: str) -> np.ndarray:
        """NDCG@10 of every case, the mean over the setting's seeds: float64 [cases]."""
        return np.mean([ndcg_at(np.load(work_dir / row["run_dir"] / "ranks.npy"), 10) for row in groups[name]], axis=0)

    table: dict[str, Row] = {}
    for name, trainings in groups.items():
        steps = " ".join(str(row["kept_step"]) for row in trainings)
        line: Row = {"setting": name, "seeds": len(trainings), "kept_steps": steps}
        line["valid"] = mean_figures(trainings, "valid")
        for figure in ("coverage", "entropy", "seconds"):
            line[figure] = float(np.mean([row[figure] for row in trainings]))
        shares = [row["zero_signal"] for row in trainings if row["zero_signal"] is not None]
        line["zero_signal"] = float(np.mean(shares)) if shares else None
        line["less"] = {
            other: paired_test(gains(name), gains(other), seed=0, users=users) for other in (CONTINUED, SFT)
        }
        table[name] = line
    return table


def key_figures(table: dict[str, Row]) -> Row:
    """What the table comes to for "all together" and for the rival's recipe, beside SFT continued; None where a row was not asked for."""
    continued = table[CONTINUED]["valid"]

    def relative(name: str, which: str) -> float | None:
        return getattr(table[name]["less"][CONTINUED], which) / continued["ndcg@10"] if name in table else None

    ours = table.get(OURS)
    return {
        "ndcg10_gain": relative(OURS, "difference"),
        "ndcg10_low": relative(OURS, "low"),
        "recall50_ratio": ours["valid"]["recall@50"] / table[SFT]["valid"]["recall@50"] if ours else None,
        "zero_signal": ours["zero_signal"] if ours else None,
        "rival_ndcg10_gain": relative(RIVAL, "difference"),
    }


def in_words(line: Row) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    valid, zero_signal = line["valid"], line["zero_signal"]

    def difference(other: str) -> str:
        less: PairedTest = line["less"][other]
        return "" if line["setting"] == other else f"{less.difference:+.4f} ({less.low:+.4f} to {less.high:+.4f})"

    return [
        line["setting"],
        str(line["seeds"]),
        line["kept_steps"],
        *(f"{valid[metric]:.4f}" for metric in ("recall@10", "ndcg@10", "recall@50")),
        difference(CONTINUED),
        difference(SFT),
        f"{line['coverage']:.3f}",
        f"{line['entropy']:.2f}",
        "" if zero_signal is None else f"{zero_signal:.0%}",
        f"{line['seconds']:.0f}",
    ]


if __name__ == "__main__":
    run_as_command(main)
