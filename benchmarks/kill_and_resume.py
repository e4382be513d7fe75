"""Kill -9 in the middle of every stage: does the run that goes on end with what an undisturbed one ends with?

python -m benchmarks.kill_and_resume

Runs the demo once undisturbed, then again and again with SIGKILL to the whole process group after a few seconds, until it ends by
itself. Prints each kill with the stage that it hit, then whether the files are the same; the last line is one JSON object.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import (
    QUICKSTART_LINE,
    announce,
    plain_console,
    print_figures,
    quickstart_command,
)
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256

COMPARED = (
    "data/interactions.parquet",
    "sid/codes_all.npy",
    "sft/model.safetensors",
    "rl/model.safetensors",
    "evaluation/metrics.json",
    "evaluation/ranks.parquet",
    "evaluation/table.md",
)


@dataclass
class KillConfig:
    """When the demo is killed."""

    first_seconds: int = field(default=2, metadata={"help": "Seconds before the first kill."})
    step_seconds: int = field(default=7, metadata={"help": "Later kills come this many seconds later, modulo 40."})
    most_kills: int = field(default=60, metadata={"help": "Give up after this many kills."})


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(KillConfig, arguments), plain_console()
    announce(console, "kill_and_resume", arguments)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        run_for(undisturbed, seconds=None)
        hits: Counter[str] = Counter()
        while (stage := run_for(killed, config.first_seconds + hits.total() * config.step_seconds % 40)) is not None:
            hits[stage] += 1
            console.print(f"kill {hits.total()}: in {stage}")
            if hits.total() >= config.most_kills:
                raise InputError(f"the demo did not end within {config.most_kills} kills; raise --first_seconds.")
        same = {name: sha256(undisturbed / name) == sha256(killed / name) for name in COMPARED}
    for name, equal in same.items():
        console.print(f"{name}: {'the same bytes' if equal else 'DIFFERENT'}")
    figures = {"kills": hits.total(), "kills_by_stage": dict(hits), "same_table": same["evaluation/table.md"]}
    print_figures(figures | {"same_bytes": all(same.values())})


def run_for(run_dir: Path, seconds: float | None) -> str | None:
    """Run the demo; after `seconds` kill it and return the stage that was hit. None: it ended by itself."""
    command = quickstart_command("demo", run_dir)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        start = time.monotonic()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        output.seek(0)
        printed = output.read()
    if code is None:
        begun = re.findall(rf"^{QUICKSTART_LINE.pattern}", printed, re.MULTILINE)
        return begun[-1] if begun else "install"
    if code:
        raise InputError(f"the demo failed after {time.monotonic() - start:.0f} s: {printed[-500:]}")
    return None


if __name__ == "__main__":
    run_as_command(main)
