"""Our models as the table of results trains them: what their semantic IDs are made from, and each data set's flags."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.harness import PREPARE, RL, SFT, TOKENIZE, check_at_least, check_seeds, prepare_flags, run_stage
from sidrec.data.dataset import Dataset


@dataclass(frozen=True)
class Ours:
    """tokenizer: flags that say what the semantic IDs are made from. models: of `sidrec evaluate`, by the name of their row."""

    tokenizer: str
    models: dict[str, str]


OURS = {
    "random": Ours("--quantizer random", {"sft": "SFT, random codes"}),
    "text": Ours("--sources text --weights 1.0", {"sft": "SFT, text"}),
    "collaborative": Ours("--sources collaborative --weights 1.0", {"sft": "SFT, collaborative"}),
    "both": Ours(
        "",  # as the data set's config says
        {
            "sft": "SFT, both",
            "rl": "SFT + RL, both",
            "sft_blend": "SFT, blended",
            "rl_blend": "SFT + RL, blended",
            "sft_ensemble": "SFT, ensemble of the seeds, blended",
            "rl_ensemble": "SFT + RL, ensemble of the seeds, blended",
        },
    ),
}


@dataclass(frozen=True)
class Plan:
    """Flags of a data set's stages. minutes: most of one training of a neural baseline, more than it needs. valid_cases: most that rows
    are measured on, 0 for all."""

    tokenizer: str
    sft: str
    rl: str
    minutes: int
    valid_cases: int = 0


PLANS = {
    "ml-100k": Plan(
        tokenizer="--config configs/tokenizer/ml-100k.yaml",
        sft="--config configs/sft/ml-100k.yaml",
        rl="--config configs/rl/ml-100k.yaml",
        minutes=60,
    ),
    "amazon-beauty": Plan(
        tokenizer="--config configs/tokenizer/amazon-beauty.yaml",
        sft="--config configs/sft/amazon-beauty.yaml",
        rl="--config configs/rl/amazon-beauty.yaml",
        minutes=240,
        valid_cases=4000,
    ),
    "ml-1m": Plan(
        tokenizer="--config configs/tokenizer/ml-1m.yaml",
        sft="--config configs/sft/ml-1m.yaml",
        rl="--config configs/rl/ml-1m.yaml",
        minutes=240,
    ),
}


@dataclass
class ManyRunsConfig:
    """Of a benchmark that trains our model of a data set many times, each in a run directory under --work_dir/runs."""

    dataset: Literal["ml-100k", "amazon-beauty", "ml-1m"] = field(metadata={"help": "Whose config."})
    work_dir: Path = field(metadata={"help": "Where runs and finished rows are kept; another one for each data set."})
    raw_dir: Path | None = field(
        default=None,
        metadata={
            "help": "The publisher's unpacked files, or a folder with interactions.parquet and items.csv, taken as they are. Left out: "
            "a download."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of tokenizer and SFT, for every row."}
    )
    cases: int = field(default=10_000, metadata={"help": "Valid cases at most; drawn once, the same for every row."})
    threads: int = field(default=1, metadata={"help": "Threads of each stage."})

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_at_least(1, cases=self.cases, threads=self.threads)

    def prepared(self) -> Dataset:
        """The data set, prepared in --work_dir/base unless it is there."""
        base = self.work_dir / "base"
        base.mkdir(parents=True, exist_ok=True)
        run_stage([*PREPARE, *prepare_flags(self.dataset, self.raw_dir)], base, self.threads)
        return Dataset.load(base)


def training_commands(plan: Plan, ours: Ours, models: Iterable[str], seed: int) -> list[list[str]]:
    """The stages that one of our runs is made by, before it is measured."""
    seeded = ["--seed", str(seed)]
    tokenizer = [*shlex.split(f"{plan.tokenizer} {ours.tokenizer}"), *seeded]
    quiet = ["--disable_tqdm", "true", *seeded]
    commands = [[*TOKENIZE, *tokenizer], [*SFT, *shlex.split(plan.sft), *quiet]]
    if "rl" in models:
        commands.append([*RL, *shlex.split(plan.rl), *quiet])
    return commands
