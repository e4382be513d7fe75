"""One process a stage folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.pipeline.errors import InputError

if TYPE_CHECKING:
    from filelock import FileLock

ATTEMPTS, SECONDS_BETWEEN_ATTEMPTS = 100, 0.02


@contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in `folder` for the block.

    The operating system lets go of it when the process ends, by `kill -9` too. Raises InputError, naming the process at work, when
    another one holds it.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f"{name}.pid"
    lock = FileLock(folder / f"{name}.lock")
    process = _acquired_or_holder(lock, holder)
    if process is not None:
        raise InputError(
            f"{folder.parent / name} is being made by {process} right now; wait until it is done, or choose another --run_dir."
        )
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _acquired_or_holder(lock: FileLock, holder: Path) -> str | None:
    """None when the lock is acquired; else who holds it, in words.

    The holder writes its number a moment after it has the lock and deletes it a moment before it lets go, and a killed one leaves its
    number: so a number of no living process means to try again.
    """
    import psutil
    from filelock import Timeout

    for _ in range(ATTEMPTS):
        try:
            lock.acquire(timeout=0)
            return None
        except Timeout:
            time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        try:
            number = int(holder.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if psutil.pid_exists(number):
            return f"process {number}"
    return "another process"
