"""One process a stage folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidrec.pipeline.errors import InputError


@contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in `folder` for the block.

    The operating system lets go of it when the process ends, by `kill -9` too. Raises InputError, naming the process at work, when
    another one holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f"{name}.pid"
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = _living_process(holder)
        raise InputError(
            f"{folder.parent / name} is being made by {who} right now; wait until it is done, or choose another --run_dir."
        ) from error
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _living_process(holder: Path) -> str:
    """Who holds the lock, in words. The holder writes its number a moment after it has the lock; before, one that was killed may stand
    there."""
    import psutil

    for _ in range(50):
        try:
            number = int(holder.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            number = 0
        if number and psutil.pid_exists(number):
            return f"process {number}"
        time.sleep(0.02)
    return "another process"
