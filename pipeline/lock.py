"""One process a stage folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sidrec.pipeline.errors import InputError


@contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in `folder` for the block.

    The operating system lets go of it when the process ends, by `kill -9` too. Raises InputError, naming the process at work, when
    another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f"{name}.pid"
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        process = holder.read_text(encoding="utf-8").strip() if holder.exists() else ""
        who = f"process {process}" if process else "another process"
        raise InputError(
            f"{folder.parent / name} is being made by {who} right now; wait until it is done, or choose another --run_dir."
        ) from error
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
