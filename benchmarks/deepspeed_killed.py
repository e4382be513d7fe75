"""A first DeepSpeed launch killed while it compiles: does the next one train, or wait for ever?

python -m benchmarks.deepspeed_killed
python -m benchmarks.deepspeed_killed --tries 1

At its first run on a machine DeepSpeed compiles a part of itself. Every try begins on a machine that has not: the compiler's cache is a
new folder. `accelerate launch --config_file configs/accelerate/zero2.yaml sft/train.py` is killed (SIGKILL, all of it) while that part
is being built, and started again with the cache as the kill left it: it must train to its end. The last line is one JSON object; the exit
code is 1 when a try fails. Needs a C++ compiler, and takes a minute or two per try.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.harness import (
    ROOT,
    announce,
    check_at_least,
    plain_console,
    print_figures,
    run_stage,
    stage_environment,
)
from benchmarks.small_run import kinds, write_raw
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError

COMPILERS = {"ninja", "c++", "g++", "clang++", "cc1plus", "nvcc"}
POLL_SECONDS = 0.02
MOST_SECONDS = 600  # a launch that takes longer hangs


@dataclass
class KilledConfig:
    """How often a first launch is killed."""

    tries: int = field(default=10, metadata={"help": "First launches that are killed, each with an empty cache."})
    spread_seconds: float = field(
        default=5.0,
        metadata={"help": "The kills come up to so many seconds after the compiler has begun, evenly spread."},
    )

    def __post_init__(self) -> None:
        check_at_least(1, tries=self.tries)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(KilledConfig, arguments), plain_console()
    if shutil.which("c++") is None:
        raise InputError(
            "there is no C++ compiler (c++), so DeepSpeed builds nothing that could be interrupted; install one."
        )
    announce(console, "deepspeed_killed", arguments)
    faults: list[str] = []
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stages = make_base(folder)
        for number in range(config.tries):
            machine, run_dir = folder / "machine", folder / "run"
            for new in (machine, run_dir):
                shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(folder / "base", run_dir)
            delay = config.spread_seconds * number / config.tries
            log = kill_while_compiling(launch(stages, run_dir, machine), machine, delay)
            start = time.monotonic()
            fault = trained(launch(stages, run_dir, machine), run_dir)
            seconds.append(round(time.monotonic() - start, 1))
            console.print(
                f"try {number + 1}: killed {delay:.1f} s after {log}; the next: {fault or 'trained'}, {seconds[-1]} s"
            )
            faults += [f"try {number + 1}: {fault}"] if fault else []
    figures = {"tries": config.tries, "next_launch_seconds": seconds, "faults": faults, "all_held": not faults}
    print_figures(figures)
    if faults:
        sys.exit(1)


def make_base(folder: Path) -> list[str]:
    """Finished `data`, `embeddings` and `sid` stages in `folder/base`; returns the command of the `sft` stage."""
    write_raw(folder)
    base, stages = folder / "base", kinds(folder)
    base.mkdir()
    for stage in ("data", "embeddings", "sid"):
        run_stage(stages[stage].command, base, threads=1)
    return stages["sft"].command


def launch(command: list[str], run_dir: Path, machine: Path) -> subprocess.Popen[bytes]:
    """Start the training under ZeRO-2 on the CPU, its output in launch.log beside `run_dir`. machine: where its caches are."""
    programs = Path(sys.executable).parent
    config = ROOT / "configs" / "accelerate" / "zero2.yaml"
    words = [str(programs / "accelerate"), "launch", "--config_file", str(config), *command, "--run_dir", str(run_dir)]
    environment = stage_environment(threads=1) | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",  # DeepSpeed looks for ninja
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CACHE_HOME": str(machine / "cache"),
        "TORCH_EXTENSIONS_DIR": str(machine / "extensions"),
    }
    with log_of(run_dir).open("wb") as log:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def log_of(run_dir: Path) -> Path:
    return run_dir.with_name("launch.log")


def kill_while_compiling(process: subprocess.Popen[bytes], machine: Path, delay: float) -> str:
    """Kill the launch and all that it started, `delay` seconds after its first sign of compiling; returns that sign.

    Raises InputError when it ends, or MOST_SECONDS pass, without one.
    """
    start, sign = time.monotonic(), None
    while sign is None and process.poll() is None and time.monotonic() - start < MOST_SECONDS:
        time.sleep(POLL_SECONDS)
        sign = sign_of_compiling(process.pid, machine)
    if sign is not None:
        time.sleep(delay)
    kill_all(process)
    if sign is None:
        raise InputError(
            "the launch compiled nothing, so there was nothing to interrupt; is DeepSpeed's part built in elsewhere?"
        )
    return sign


def sign_of_compiling(pid: int, machine: Path) -> str | None:
    """A compiler below the process, or a lock file of torch's in the caches; None where there is neither."""
    try:
        names = {child.name() for child in psutil.Process(pid).children(recursive=True)}
    except psutil.Error:
        return None
    compilers = sorted(names & COMPILERS)
    if compilers:
        return f"{compilers[0]} began"
    locks = [path for path in machine.rglob("lock") if path.is_file()]
    return "torch's lock appeared" if locks else None


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the launch, and to all below it, at once."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        below = []
    for child in below:
        child.send_signal(signal.SIGSTOP)  # so that none of them cleans up after another
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    for child in below:
        if child.is_running():
            child.kill()
    process.wait()
    psutil.wait_procs(below, timeout=30)


def trained(process: subprocess.Popen[bytes], run_dir: Path) -> str | None:
    """Wait for the launch; what is wrong with how it ended, None where it has trained a model."""
    try:
        code = process.wait(MOST_SECONDS)
    except subprocess.TimeoutExpired:
        kill_all(process)
        return f"hung for {MOST_SECONDS} s"
    if code or not (run_dir / "sft" / "model.safetensors").exists():
        words = log_of(run_dir).read_text(encoding="utf-8", errors="replace")[-500:]
        return f"ended with code {code}: {shlex.quote(words)}"
    return None


if __name__ == "__main__":
    run_as_command(main)
