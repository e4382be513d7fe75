"""The main job, timed: raw data to a trained recommender and its table, as a user runs it.

python -m benchmarks.main_job --dataset demo
python -m benchmarks.main_job --dataset ml-100k --raw_dir ml-100k

Prints the machine, then what the quickstart prints, then seconds a stage and the key figures; the last line is one JSON object.
Installation is not timed. The exit code is the quickstart's.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.harness import (
    QUICKSTART_LINE,
    ROOT,
    describe_machine,
    plain_console,
    print_figures,
    quickstart_command,
)
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError


@dataclass
class MainJobConfig:
    """Run the quickstart from nothing, and say how long it took and how good the result is."""

    dataset: Literal["demo", "ml-100k", "ml-1m"] = field(
        default="demo", metadata={"help": "The data set, as for run_quickstart.sh."}
    )
    raw_dir: Path | None = field(
        default=None,
        metadata={"help": "Folder with MovieLens's unpacked files (ml-* only). None: they are downloaded."},
    )
    run_dir: Path | None = field(
        default=None,
        metadata={"help": "An empty or new run directory, kept. None: a temporary one, deleted at the end."},
    )

    def __post_init__(self) -> None:
        if (
            self.run_dir is not None
            and self.run_dir.exists()
            and (self.run_dir.is_file() or any(self.run_dir.iterdir()))
        ):
            raise InputError(
                f"--run_dir {self.run_dir} is not empty, so finished stages would be skipped; give a new folder."
            )


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(MainJobConfig, arguments), plain_console()
    subprocess.run(["bash", "-c", "source ./install.sh"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() if config.run_dir is None else nullcontext(config.run_dir) as folder:
        run_dir = Path(folder).resolve()
        raw = [] if config.raw_dir is None else ["--raw_dir", str(config.raw_dir.resolve())]
        command = quickstart_command(config.dataset, run_dir, *raw)
        console.print(f"{describe_machine()}\n{shlex.join(command)}")
        code, seconds, stage_seconds = run_timed(command)
        if code:
            sys.exit(code)
        figures = {"seconds": round(seconds, 1), "stage_seconds": stage_seconds} | key_figures(run_dir / "evaluation")
    show(console, figures)
    print_figures(figures)


def run_timed(
    command: list[str], clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float, dict[str, float]]:
    """Run `command`, passing its output on; return its exit code, its seconds, and the seconds of each stage it began.

    A stage begins with the line `── N/M name: …` and ends where the next one begins. Should this process be interrupted, the command and
    all it started are terminated.
    """
    begun: list[tuple[str, float]] = []
    start = clock()
    # a session of its own, so that all of it can be stopped
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if begins := QUICKSTART_LINE.match(line):
                    begun.append((begins.group(1), clock()))
                sys.stdout.write(line)
                sys.stdout.flush()
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    end = clock()
    ends = [time_begun for _, time_begun in begun[1:]] + [end]
    stage_seconds = (
        {name: round(later - earlier, 1) for (name, earlier), later in zip(begun, ends, strict=True)} if begun else {}
    )
    return code, end - start, stage_seconds


def key_figures(evaluation: Path) -> dict[str, Any]:
    """Of a run's `evaluation/`: Recall@10 with seen items masked (test, where no split is named), and faults in all lists."""
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    comparison = json.loads((evaluation / "comparison.json").read_text(encoding="utf-8"))
    baseline, oracle = comparison["best_baseline"], comparison["oracle"]
    checks = comparison["list_checks"].values()

    def recall10(model: str, split: str) -> float:
        return metrics[model][split]["masked"]["recall@10"]

    return {
        "recall10_sft": recall10("sft", "test"),
        "recall10_rl": recall10("rl", "test"),
        "recall10_oracle": oracle["test"]["expected"]["10"] if oracle else None,
        "recall10_best_baseline": recall10(baseline, "test"),
        "best_baseline": baseline,
        "recall10_valid_sft": recall10("sft", "valid"),
        "recall10_valid_rl": recall10("rl", "valid"),
        "invalid": sum(check["invalid"] for check in checks),
        "duplicates": sum(check["repeats"] for check in checks),
        "short_lists": sum(check["short"] for check in checks),
    }


def show(console: Console, figures: dict[str, Any]) -> None:
    table = Table("stage", title="the main job")
    table.add_column("seconds", justify="right")
    for name, seconds in figures["stage_seconds"].items():
        table.add_row(name, f"{seconds:,.1f}")
    table.add_row("all", f"{figures['seconds']:,.1f}")
    console.print(table)
    oracle = figures["recall10_oracle"]
    possible = f", the best possible {oracle:.4f}" if oracle else ""
    console.print(
        f"test Recall@10, seen items masked: SFT {figures['recall10_sft']:.4f}, RL {figures['recall10_rl']:.4f}, "
        f"{figures['best_baseline']} (best baseline) {figures['recall10_best_baseline']:.4f}{possible}"
    )


if __name__ == "__main__":
    run_as_command(main)
