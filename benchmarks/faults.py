"""Faults by the thousand: damaged and exchanged files, odd settings, random bytes, kills. Does each end in success or in one sentence?

python -m benchmarks.faults --work_dir outputs/faults --json
python -m benchmarks.faults --work_dir outputs/faults --artefacts 200 --settings 200 --byte_strings 200 --kills 0 --processes 5
python -m benchmarks.faults --work_dir outputs/faults --commands serve drift export-events --kills 0

On a run directory of a small catalogue, for every stage and command:

    artefacts     one file that the project wrote is cut, mixed up, emptied, exchanged for another valid one, or lost; then a stage that
                  reads it, or wrote it, runs
    settings      one to three settings, by flags or by YAML, have odd values
    byte strings  one of the files that the project reads from others is damaged
    stores        the service's database is what something else made of it, is another program's, or is not there
    outputs       what a command writes is to go where it cannot, or where something is that would be lost
    kills         a stage is killed at its work (SIGKILL) and run again

Faults are counted: `tracebacks`, where a command ends with neither success nor one sentence and exit code 2; `silent`, where it ends with
success and its result differs from that of whole files; `lost`, where a file that was whole before, and is not the stage's own, has changed
or gone, or where a refused command has changed a file at all. `hung` commands took longer than a minute and were ended; they are no fault
where a setting asks for much. Most commands run in forked processes of this one, --processes of each kind as users run them; `repeated`
are those that a signal ended as forks, and that ran again as users run them. A stopped benchmark goes on where it was. The last line is one
JSON object; the exit code is 1 when there is a fault.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import HUNG
from benchmarks.fault_trials import TRIALS, SmallRun
from benchmarks.harness import announce, check_at_least, plain_console, print_figures
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config

PRELOADED = (
    "sidrec.data.build",
    "sidrec.evaluation.evaluate",
    "sidrec.evaluation.report.page",
    "sidrec.rl.practice",
    "sidrec.serving.answer",
    "sidrec.serving.bundle",
    "sidrec.serving.changes",
    "sidrec.serving.drift_figures",
    "sidrec.serving.routes",
    "sidrec.serving.source",
    "sidrec.serving.store_frame",
    "sidrec.sft.seeds",
    "sidrec.tokenizer.interchange",
    "sidrec.tokenizer.report.comparison",
    "sidrec.tokenizer.report.page",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)


@dataclass
class FaultsConfig:
    """Damage files, give odd settings and kill stages, and count what is not handled."""

    work_dir: Path = field(metadata={"help": "Where the small run, the results of trials and their number are kept."})
    artefacts: int = field(
        default=2000, metadata={"help": "Trials with a damaged or exchanged file of the project's own."}
    )
    settings: int = field(default=2000, metadata={"help": "Trials with odd settings."})
    byte_strings: int = field(default=2000, metadata={"help": "Trials with a damaged file of somebody else's."})
    stores: int = field(default=500, metadata={"help": "Trials with a damaged store of the service."})
    outputs: int = field(default=500, metadata={"help": "Trials with an odd place for what is written."})
    kills: int = field(default=100, metadata={"help": "Trials with a stage that is killed."})
    processes: int = field(
        default=50, metadata={"help": "Of each kind's trials, the first so many run as processes of their own."}
    )
    commands: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Of all these trials, only those of commands with one of these words in their names; none: all."
        },
    )
    workers: int = field(default=2, metadata={"help": "Trials at once."})
    seed: int = field(default=0, metadata={"help": "Seed of all that is drawn: trial n of a kind is always the same."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object as the last line."})

    def __post_init__(self) -> None:
        check_at_least(0, **{kind: getattr(self, kind) for kind in TRIALS})
        check_at_least(0, processes=self.processes, seed=self.seed)
        check_at_least(1, workers=self.workers)


@dataclass(frozen=True)
class Verdict:
    """What came of a trial. faults: any of tracebacks, silent, lost. printed: the last words of a command with a fault. repeated: see
    `benchmarks.child`."""

    kind: str
    number: int
    about: str
    code: int
    faults: list[str]
    printed: str
    repeated: bool = False


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(FaultsConfig, arguments), plain_console()
    announce(console, "faults", arguments)
    start = time.monotonic()
    for module in PRELOADED:
        importlib.import_module(module)
    small = SmallRun(config.work_dir.resolve())
    small.make()
    units = [(kind, number) for kind in TRIALS for number in range(getattr(config, kind))]
    wanted = [unit for unit in units if any(word in drawn(config, *unit)[0] for word in config.commands or [""])]
    done = {(verdict.kind, verdict.number): verdict for verdict in verdicts(config)}
    left = [unit for unit in wanted if unit not in done]
    console.print(f"{len(wanted):,} trials, {len(left):,} of them left")
    crew = [
        multiprocessing.get_context("fork").Process(target=work, args=(config, small, left, worker))
        for worker in range(config.workers)
    ]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    done = {(verdict.kind, verdict.number): verdict for verdict in verdicts(config)}
    figures = counted([done[unit] for unit in wanted if unit in done]) | {"seconds": round(time.monotonic() - start)}
    for verdict in (done[unit] for unit in wanted if unit in done and done[unit].faults):
        console.print(f"{verdict.kind} {verdict.number}: {', '.join(verdict.faults)}: {verdict.about}")
    if config.json:
        print_figures(figures)
    if any(figures[fault] for fault in ("tracebacks", "silent", "lost")) or figures["tried"] < len(wanted):
        sys.exit(1)


def work(config: FaultsConfig, small: SmallRun, units: list[tuple[str, int]], worker: int) -> None:
    """Do every `workers`-th trial, and note what came of it."""
    with (config.work_dir / f"verdicts-{worker}.jsonl").open("a", encoding="utf-8") as notes:
        for kind, number in units[worker :: config.workers]:
            name, rng = drawn(config, kind, number)
            with tempfile.TemporaryDirectory(dir=config.work_dir) as folder:
                outcome = TRIALS[kind][0](rng, name, small, Path(folder), number < config.processes)
            ended, faults = outcome.ended, outcome.faults
            printed = ended.printed if faults else ""
            verdict = Verdict(kind, number, outcome.about, ended.code, faults, printed, ended.repeated)
            notes.write(json.dumps(asdict(verdict)) + "\n")
            notes.flush()


def drawn(config: FaultsConfig, kind: str, number: int) -> tuple[str, np.random.Generator]:
    """What a trial is of: a command, or a reader; and what the rest of it is drawn by."""
    rng = np.random.default_rng([config.seed, list(TRIALS).index(kind), number])
    return str(rng.choice(TRIALS[kind][1])), rng


def verdicts(config: FaultsConfig) -> Iterator[Verdict]:
    """Of all trials so far, whoever made them."""
    for file in sorted(config.work_dir.glob("verdicts-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # the last one may be cut
                yield Verdict(**json.loads(line))


def counted(done: list[Verdict]) -> dict[str, Any]:
    faults = Counter(fault for verdict in done for fault in verdict.faults)
    return {
        "tried": len(done),
        "tried_by_kind": dict(Counter(verdict.kind for verdict in done)),
        "refused": sum(verdict.code == 2 for verdict in done),
        "hung": sum(verdict.code == HUNG for verdict in done),
        "repeated": sum(verdict.repeated for verdict in done),
        **{fault: faults[fault] for fault in ("tracebacks", "silent", "lost")},
    }


if __name__ == "__main__":
    run_as_command(main)
