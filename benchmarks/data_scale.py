"""How long the preparation of a large log takes, and how much memory.

python -m benchmarks.data_scale
python -m benchmarks.data_scale --rows 1000000

Writes a synthetic log in random order as one Parquet file, piece by piece, and a catalogue; prepares them (5-core,
leave-one-out, summary) in a process of its own. Prints the machine, then what the preparation prints; the last line is one JSON
object: rows, seconds (of the preparation), peak_gib (the largest resident memory of the preparing process).
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from benchmarks.harness import (
    KIB_PER_GIB,
    PREPARE,
    ROOT,
    announce,
    plain_console,
    print_figures,
    python_command,
    stage_environment,
)
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError

PIECE_ROWS = 1_000_000
ROWS_PER_USER, ROWS_PER_ITEM = 20, 100
USER_SKEW, ITEM_SKEW = 3.0, 3.0  # a uniform number to this power: the larger, the more the first ones take
FIRST_SECOND, SECONDS = 1_400_000_000, 300_000_000


@dataclass
class DataScaleConfig:
    """Prepare a large synthetic log, and say how long it took and how much memory."""

    rows: int = field(
        default=100_000_000, metadata={"help": "Interactions; a 20th as many users, a 100th as many items."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the synthetic log."})
    work_dir: Path | None = field(
        default=None,
        metadata={
            "help": "An empty or new folder for the log and the prepared data (35 bytes per row), deleted at the end. None: a "
            "temporary one."
        },
    )

    def __post_init__(self) -> None:
        if self.rows < ROWS_PER_ITEM:
            raise InputError(f"--rows is {self.rows}; it must be at least {ROWS_PER_ITEM}.")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; it must not be negative.")
        if (
            self.work_dir is not None
            and self.work_dir.exists()
            and (self.work_dir.is_file() or any(self.work_dir.iterdir()))
        ):
            raise InputError(f"--work_dir {self.work_dir} is not empty and would be deleted; give a new folder.")


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(DataScaleConfig, arguments)
    announce(plain_console(), "data_scale", arguments)
    with _folder(config.work_dir) as folder:
        write_log(folder / "log.parquet", config.rows, config.seed)
        write_catalogue(folder / "items.parquet", config.rows)
        figures = {"rows": config.rows, **prepare(folder)}
    print_figures(figures)


@contextmanager
def _folder(work_dir: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp()) if work_dir is None else work_dir
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def write_log(path: Path, rows: int, seed: int) -> None:
    """user_id, item_id (strings), timestamp (int64) of `rows` interactions in random order, with popular users and items."""
    rng = np.random.default_rng(seed)
    columns = ("writing the log", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with tempfile.TemporaryDirectory(dir=path.parent) as pieces, Progress(*columns) as progress:
        task = progress.add_task("rows", total=rows)
        files: list[Path] = []
        for start in range(0, rows, PIECE_ROWS):
            n = min(PIECE_ROWS, rows - start)
            users = (max(1, rows // ROWS_PER_USER) * rng.random(n) ** USER_SKEW).astype(np.int64)
            items = (max(1, rows // ROWS_PER_ITEM) * rng.random(n) ** ITEM_SKEW).astype(np.int64)
            piece = pl.DataFrame(
                {"user_id": users, "item_id": items, "timestamp": FIRST_SECOND + rng.integers(0, SECONDS, n)}
            ).with_columns(_name("u", "user_id"), _name("i", "item_id"))
            files.append(Path(pieces) / f"{len(files):05d}.parquet")
            piece.write_parquet(files[-1])
            progress.advance(task, n)
        pl.scan_parquet(files, glob=False).sink_parquet(path)


def write_catalogue(path: Path, rows: int) -> None:
    numbers = pl.int_range(max(1, rows // ROWS_PER_ITEM), eager=True).alias("item_id").to_frame()
    items = numbers.with_columns(_name("i", "item_id"), title=pl.format("Synthetic item number {}", "item_id"))
    items.write_parquet(path)


def _name(letter: str, column: str) -> pl.Expr:
    return pl.format(letter + "{}", column).alias(column)


def prepare(folder: Path) -> dict[str, float]:
    """Prepare the two files; the seconds it takes, and the peak of its memory in GiB (no less than this process's own)."""
    files = ["--interactions", str(folder / "log.parquet"), "--items", str(folder / "items.parquet")]
    start = time.perf_counter()
    command = python_command([*PREPARE, "--dataset", "own", *files], folder / "run")
    done = subprocess.run(command, cwd=ROOT, env=stage_environment(), check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.returncode)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB on Linux
    return {"seconds": round(seconds, 1), "peak_gib": round(peak / KIB_PER_GIB, 2)}


if __name__ == "__main__":
    run_as_command(main)
