"""The same command started twice at once, and a command killed at its work: what becomes of the run directory?

python -m benchmarks.twice_at_once
python -m benchmarks.twice_at_once --tries 3 --stages data sid sft

For every stage, on a small catalogue: two processes of one command begin together; one must do the work, the other must end with one
sentence (exit code 2, naming the process at work) or find the stage finished. Then the process that holds the stage's lock is killed
(SIGKILL) at moments spread over its work; the next one must begin at once. After each try the stage's files must be the bytes that one
process makes alone; compared are all files that two processes alone make alike, and by all means `small_run.Kind.result`. The last line
is one JSON object; the exit code is 1 when a try fails.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness import (
    ROOT,
    announce,
    check_at_least,
    plain_console,
    print_figures,
    python_command,
    stage_environment,
)
from benchmarks.small_run import Kind, kinds, output_hashes, write_raw
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json

POLL_SECONDS = 0.005
MOST_SECONDS = 300  # a command that takes longer hangs
SLACK_SECONDS = 2.0  # of the next process's start, beside twice what a start takes alone


STAGES = tuple(kinds(Path()))


@dataclass
class TwiceConfig:
    """How often each stage is tried, and which."""

    tries: int = field(default=20, metadata={"help": "Tries of each stage: so many pairs, and so many kills."})
    stages: list[str] = field(
        default_factory=lambda: list(STAGES), metadata={"help": f"Any of {' '.join(STAGES)}; those before are made."}
    )
    threads: int = field(default=1, metadata={"help": "Threads of each process."})

    def __post_init__(self) -> None:
        check_at_least(1, tries=self.tries, threads=self.threads)
        unknown = [name for name in self.stages if name not in STAGES]
        if unknown or not self.stages:
            raise InputError(f"--stages has {unknown or 'nothing'}; give one or more of {' '.join(STAGES)}.")


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(TwiceConfig, arguments), plain_console()
    announce(console, "twice_at_once", arguments)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_raw(folder)
        last = max(config.stages, key=STAGES.index)
        for stage in STAGES[: STAGES.index(last) + 1]:
            trial = Trial.of(stage, folder, config.threads)
            if stage in config.stages:
                figures[stage] = trial.pairs(config.tries) | trial.kills(config.tries)
                show(console, stage, figures[stage])
    all_held = not any(of_stage[key] for of_stage in figures.values() for key in ("pair_faults", "kill_faults"))
    print_figures({"tries": config.tries, "stages": figures, "all_held": all_held})
    if not all_held:
        sys.exit(1)


@dataclass(frozen=True)
class Ended:
    """How a process ended. lock_at, end_at: seconds after its start at which it was seen to hold the stage's lock (None: never), and at
    which it ended; code None: it hung, and was killed."""

    pid: int
    code: int | None
    printed: str
    lock_at: float | None
    end_at: float


class Running:
    """A process of the stage's command, its output kept in a file."""

    def __init__(self, trial: Trial, run_dir: Path) -> None:
        self.holder = run_dir / ".locks" / f"{trial.stage}.pid"
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed in `wait`)
        self.start = time.monotonic()
        self.lock_at: float | None = None
        self.process = subprocess.Popen(
            python_command(trial.kind.command, run_dir),
            cwd=ROOT,
            env=stage_environment(trial.threads),
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def poll(self) -> bool:
        """Whether it still runs; notes when it holds the lock."""
        if self.lock_at is None and holder_of(self.holder) == self.process.pid:
            self.lock_at = self.seconds()
        return self.process.poll() is None and self.seconds() < MOST_SECONDS

    def wait(self) -> Ended:
        while self.poll():
            time.sleep(POLL_SECONDS)
        end_at, code = self.seconds(), self.process.poll()
        self.process.kill()
        self.process.wait()
        self.output.seek(0)
        printed = self.output.read()
        self.output.close()
        return Ended(self.process.pid, code, printed, self.lock_at, end_at)


def holder_of(pid_file: Path) -> int | None:
    """The process that a stage's lock names, None where there is none."""
    try:
        return int(pid_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Trial:
    """A stage to try. folder: its `base` has the stages before, its `base/STAGE` what one process makes alone. alone: how that went."""

    stage: str
    kind: Kind
    folder: Path
    threads: int
    alone: Ended
    expected: dict[str, str]

    @classmethod
    def of(cls, stage: str, folder: Path, threads: int) -> Trial:
        """Make the stage alone, in `base` and in a copy; what is alike in both is what every try must make."""
        kind = kinds(folder)[stage]
        base = folder / "base"
        base.mkdir(exist_ok=True)
        draft = cls(stage, kind, folder, threads, Ended(0, 0, "", None, 0.0), {})
        again = draft.new_run_dir("again")
        ends = [Running(draft, run_dir).wait() for run_dir in (base, again)]
        failed = next((end for end in ends if end.code != 0), None)
        if failed is not None:
            raise InputError(f"the stage {stage!r} alone ended with code {failed.code}: {failed.printed[-1000:]}")
        first, second = (output_hashes(run_dir / stage) for run_dir in (base, again))
        shutil.rmtree(again)
        expected = {name: digest for name, digest in first.items() if second.get(name) == digest}
        missing = [name for name in kind.result if name not in expected]
        if missing:
            raise InputError(f"two processes alone make different {missing[0]} in the stage {stage!r}.")
        return cls(stage, kind, folder, threads, max(ends, key=lambda end: end.lock_at or 0.0), expected)

    def new_run_dir(self, name: str) -> Path:
        """A run directory with the finished stages that this one reads."""
        run_dir = self.folder / name
        run_dir.mkdir()
        for stage in self.kind.reads:
            shutil.copytree(self.folder / "base" / stage, run_dir / stage)
        return run_dir

    def pairs(self, tries: int) -> dict[str, Any]:
        """Start the command twice at once, `tries` times; how the second processes ended, and what went wrong."""
        if self.alone.lock_at is None:
            raise InputError(f"the stage {self.stage!r} takes no lock; nothing keeps a second process out.")
        endings: Counter[str] = Counter()
        faults: list[str] = []
        for number in range(tries):
            run_dir = self.new_run_dir(f"{self.stage}-pair")
            first, second = (Running(self, run_dir) for _ in range(2))
            finished = None
            while first.poll() | second.poll():
                finished = finished or finished_mark(run_dir / self.stage)
                time.sleep(POLL_SECONDS)
            ends = sorted((first.wait(), second.wait()), key=lambda end: (end.lock_at is None, end.lock_at))
            ending = how_second_ended(*ends)
            if finished not in (None, finished_mark(run_dir / self.stage)):
                ending = Ending("worked too", "the finished stage was written a second time")
            faults += [f"pair {number + 1}: {fault}" for fault in (ending.fault, self.difference(run_dir)) if fault]
            endings[ending.name] += 1
            shutil.rmtree(run_dir)
        return {"pairs": tries, "second": dict(endings), "pair_faults": faults}

    def kills(self, tries: int) -> dict[str, Any]:
        """Kill the holder of the lock, `tries` times, and run the command again; how fast that began, and what went wrong."""
        faults: list[str] = []
        starts: list[float] = []
        alone_at = self.alone.lock_at or 0.0
        for number in range(tries):
            run_dir = self.new_run_dir(f"{self.stage}-kill")
            self.kill_holder(run_dir, share=(number + 0.5) / tries)
            end = Running(self, run_dir).wait()
            starts.append(end.end_at if end.lock_at is None else end.lock_at)
            reasons = [self.difference(run_dir)]
            if end.code != 0:
                reasons.append(f"the next process ended with code {end.code}: {end.printed[-300:]}")
            elif starts[-1] > 2 * alone_at + SLACK_SECONDS:
                reasons.append(f"the next process began after {starts[-1]:.1f} s, alone after {alone_at:.1f} s")
            faults += [f"kill {number + 1}: {reason}" for reason in reasons if reason]
            shutil.rmtree(run_dir)
        slowest = {"start_alone_seconds": round(alone_at, 2), "slowest_start_after_kill_seconds": round(max(starts), 2)}
        return {"kills": tries, **slowest, "kill_faults": faults}

    def kill_holder(self, run_dir: Path, share: float) -> None:
        """Run the command and kill it when it has held the lock for `share` of the time that it holds it alone.

        A process that has ended by then is started anew, and killed earlier. One that is refused, because an earlier one's lock outlives
        it, is the fault that is looked for: the next process will tell it.
        """
        work = self.alone.end_at - (self.alone.lock_at or 0.0)
        for attempt in range(8):
            running = Running(self, run_dir)
            while running.poll() and (
                running.lock_at is None or running.seconds() - running.lock_at < share * work / 2**attempt
            ):
                time.sleep(POLL_SECONDS)
            code = running.process.poll()
            running.process.kill()
            running.wait()
            was_killed, was_refused = code is None and running.lock_at is not None, bool(code)
            if was_killed or was_refused:
                return
            shutil.rmtree(run_dir / self.stage, ignore_errors=True)  # killed early, it has made none
        raise InputError(f"the stage {self.stage!r} could not be killed at its work: it ended sooner, eight times.")

    def difference(self, run_dir: Path) -> str | None:
        """The first file that is not as one process makes it alone, in words; None where all are."""
        hashes = output_hashes(run_dir / self.stage)
        odd = [name for name, digest in self.expected.items() if hashes.get(name) != digest]
        return f"{odd[0]} is not what one process makes alone" if odd else None


def finished_mark(folder: Path) -> tuple[int, int] | None:
    """What changes when a finished stage is written again: its manifest's file number and time; None while it is not finished."""
    manifest = folder / "manifest.json"
    try:
        status = manifest.stat()
        return (status.st_ino, status.st_mtime_ns) if read_json(manifest)["finished"] else None
    except (OSError, InputError):  # the folder is being put in its place
        return None


@dataclass(frozen=True)
class Ending:
    """How the second of two processes ended, and what is wrong with that (None: nothing)."""

    name: str
    fault: str | None = None


def how_second_ended(worked: Ended, second: Ended) -> Ending:
    """Judge a pair. worked: the process that had the lock first, where one of them is known to; second: the other one."""
    if worked.code != 0:
        return Ending("both failed", f"the process at work ended with code {worked.code}: {worked.printed[-300:]}")
    lines = [line for line in second.printed.splitlines() if line.startswith("error: ")]
    if "Traceback" in second.printed or len(lines) > 1:
        return Ending("no sentence", second.printed[-300:])
    if second.code == 2 and lines:
        if f"process {worked.pid} " in lines[0]:
            return Ending("refused")
        if "finished by another process" in lines[0]:
            return Ending("found it finished")
        return Ending("refused for another reason", lines[0])
    if second.code == 0 and second.lock_at is None:
        return Ending("found it finished")
    return Ending("worked too", f"the second process ended with code {second.code}: {second.printed[-300:]}")


def show(console: Console, stage: str, figures: dict[str, Any]) -> None:
    endings = ", ".join(f"{name} {count}" for name, count in figures["second"].items())
    console.print(
        f"{stage}: {figures['pairs']} pairs (second: {endings}); {figures['kills']} kills, the next began after "
        f"{figures['slowest_start_after_kill_seconds']} s at most (alone {figures['start_alone_seconds']} s)"
    )
    for fault in figures["pair_faults"] + figures["kill_faults"]:
        console.print(f"  {fault}")


if __name__ == "__main__":
    run_as_command(main)
