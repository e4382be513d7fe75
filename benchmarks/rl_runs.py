"""What the benchmarks of RL share: which SFT models RL begins from, and the run directories that have those models' finished stages."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks import harness
from benchmarks.harness import check_at_least, run_stage
from sidrec.pipeline.stage import SEEDS, require_finished

STAGES = ("data", "embeddings", "sid", "sft")  # that RL begins with; codes that were given have no embeddings
RL_FLAGS = ["--disable_tqdm", "true", "--early_stopping_patience", "0"]  # of every training


@dataclass
class RlRunsConfig:
    """The settings that every benchmark of RL has."""

    dataset: Literal["ml-100k", "amazon-beauty", "ml-1m"] = field(metadata={"help": "The data set, for the output."})
    run_dir: Path = field(
        metadata={"help": "Run directory with finished data, sid and sft stages, and seeds/ for further seeds."}
    )
    work_dir: Path = field(metadata={"help": "Where runs and finished rows are kept; another one for each data set."})
    seeds: int = field(default=3, metadata={"help": "SFT models, each with its own seed, from which RL begins."})
    cases: int = field(
        default=10_000, metadata={"help": "Cases of a split, at most; drawn once, the same for every row."}
    )
    threads: int = field(default=1, metadata={"help": "Threads of each stage."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object as the last line."})

    def __post_init__(self) -> None:
        check_at_least(1, seeds=self.seeds, cases=self.cases, threads=self.threads)


def base_of(run_dir: Path, seed: int) -> Path:
    """The run directory of a seed's SFT model."""
    return run_dir / SEEDS / str(seed) if seed else run_dir


def require_sft_models(config: RlRunsConfig) -> None:
    """Raise InputError with the command that trains them, unless every seed's SFT model is finished."""
    command = f"accelerate launch sft/train.py --run_dir {config.run_dir} --seeds {config.seeds}"
    for seed in range(config.seeds):
        require_finished(base_of(config.run_dir, seed), "sft", command)


def folder_of(work_dir: Path, row_name: str) -> Path:
    """The run directory of a row."""
    return work_dir / "runs" / "".join(letter if letter.isalnum() else "_" for letter in row_name)


def begin_run(base: Path, run_dir: Path) -> None:
    """Make `run_dir` anew, with links to the base's finished stages."""
    if run_dir.exists():
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True)
    for stage in STAGES:
        if (base / stage).exists():
            (run_dir / stage).symlink_to((base / stage).resolve(), target_is_directory=True)


def train_rl(flags: list[str], run_dir: Path, seed: int, threads: int) -> float:
    """Run RL on a directory that `begin_run` has made; its processor seconds."""
    return run_stage([*harness.RL, *flags, "--seed", str(seed), *RL_FLAGS], run_dir, threads)
