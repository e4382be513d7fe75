"""What the benchmarks share: how a stage is run, what is said of the machine and the command, times, and the closing JSON line."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
from rich.console import Console

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.provenance import machine

Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parent.parent
# the stages as users run them: what stands behind `python`
PREPARE = ["-m", "sidrec", "prepare"]
TOKENIZE = ["-m", "sidrec", "tokenize"]
SFT = ["sft/train.py"]
RL = ["rl/grpo.py"]
EVALUATE = ["-m", "sidrec", "evaluate"]
# the two halves of `TOKENIZE`
EMBED = ["-m", "sidrec.tokenizer.embed"]
QUANTIZE = ["-m", "sidrec.tokenizer.quantize"]
KIB_PER_GIB = 1 << 20
QUICKSTART_LINE = re.compile(r"── \d+/\d+ (\w+): ")  # with which run_quickstart.sh begins a stage, and the stage's name


def plain_console() -> Console:
    """A console that prints text as it is: no markup, no colours for numbers, lines as long as they are."""
    return Console(soft_wrap=True, highlight=False, markup=False)


def announce(console: Console, benchmark: str, arguments: list[str] | None) -> str:
    """Print the machine and the command that a figure came from; return the command.

    arguments: those that the benchmark's `main` was called with, None for the process's own.
    """
    flags = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", f"benchmarks.{benchmark}", *map(str, flags)])
    console.print(f"{describe_machine()}\n{command}")
    return command


def describe_machine() -> str:
    """Processor, the cores that this process may use, accelerator, memory, Python and torch, in one line."""
    memory = f"{psutil.virtual_memory().total / 2**30:.1f} GiB"
    return f"{machine()}, {memory}, Python {platform.python_version()}, torch {version('torch')}"


def print_figures(figures: dict[str, Any]) -> None:
    """Print the benchmark's last line: its figures as one JSON object."""
    sys.stdout.write(json.dumps(figures, default=vars) + "\n")
    sys.stdout.flush()


def name_of(command: list[str]) -> str:
    """What a stage's command calls: "prepare", "sidrec.tokenizer.embed", "sft/train.py"."""
    words = [word for word in command[:3] if word not in ("-m", "sidrec")]
    return words[0]


def python_command(command: list[str], run_dir: Path) -> list[str]:
    """The full command line of a stage (one of the lists above, and its flags) on a run directory, by this very Python."""
    return [sys.executable, *command, "--run_dir", str(run_dir.resolve())]


def stage_environment(threads: int | None = None) -> dict[str, str]:
    """The environment that a stage is run in: this process's, with this checkout's package and, where given, a number of threads."""
    package = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": package} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})


class Cost(NamedTuple):
    """Of a stage that has ended: its processor seconds, and the largest resident memory of any of its processes."""

    cpu_seconds: float
    peak_gib: float


def run_stage(command: list[str], run_dir: Path, threads: int) -> float:
    """Run a stage of the project on `run_dir`, its output added to log.txt there; returns its processor seconds.

    Raises InputError with its last words when it fails.
    """
    return cost_of_stage(command, run_dir, threads).cpu_seconds


def cost_of_stage(command: list[str], run_dir: Path, threads: int) -> Cost:
    """As `run_stage`; other than clock time, what it returns does not depend on what else the machine does."""
    return cost_of(python_command(command, run_dir), run_dir / "log.txt", threads)


def cost_of(command: list[str], log: Path, threads: int) -> Cost:
    """Run a command line of the project, its output added to `log`. Raises InputError with its last words when it fails."""
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=stage_environment(threads),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        words = " ".join(log.read_text(encoding="utf-8").splitlines()[-1:])
        raise InputError(f"{shlex.join(command)} ended with code {process.returncode} ({words}); see {log}.")
    return Cost(round(used.ru_utime + used.ru_stime, 1), round(used.ru_maxrss / KIB_PER_GIB, 2))


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and the processor seconds of all threads of this process that it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median processor seconds of a call, after one that is not counted."""
    work()
    return statistics.median(timed(work)[1] for _ in range(repeats))


def prepare_flags(dataset: str, raw_dir: Path | None) -> list[str]:
    """Flags of `PREPARE`: files of one's own are read as they are, the publisher's as the data set's config says."""
    if raw_dir is not None and (raw_dir / "interactions.parquet").exists():
        raw = raw_dir.resolve()
        files = ["--interactions", str(raw / "interactions.parquet"), "--items", str(raw / "items.csv")]
        return ["--dataset", "own", *files, "--k_user", "1", "--k_item", "1", "--protocol", "leave_one_out"]
    flags = ["--config", f"configs/data/{dataset}.yaml"]
    return flags if raw_dir is None else [*flags, "--raw_dir", str(raw_dir.resolve())]


def quickstart_command(dataset: str, run_dir: Path, *flags: str) -> list[str]:
    return ["bash", str(ROOT / "run_quickstart.sh"), dataset, *flags, "--run_dir", str(run_dir)]


def check_seeds(seeds: list[int]) -> None:
    """Raise InputError unless they are one or more different numbers from 0."""
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {seeds} must be one or more different numbers from 0.")


def check_at_least(least: int, **values: int) -> None:
    """Raise InputError, naming the flag, for a value below `least`."""
    for name, value in values.items():
        if value < least:
            raise InputError(f"--{name} is {value}; it must be at least {least}.")
