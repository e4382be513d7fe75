"""Files that are whole or not there: atomic writes, and the hashes that tell one file from another."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidrec.pipeline.errors import InputError

UMASK = os.umask(0o077)  # it can be read only by being set
os.umask(UMASK)
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")


def sha256(path: Path) -> str:
    """Hex sha256 of a file; of a folder, the sha256 over the sorted names and hashes of the files in it."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def temporary_of(path: Path) -> Path:
    """The path beside it that this process writes to first. Raises InputError for a device or a pipe, in whose place a file would come."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a device or a pipe, and a file would take its place; name a file.")
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it does not.

    Raises InputError as `temporary_of` does.
    """
    temporary = temporary_of(path)
    try:
        yield temporary
        let_others_read(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def let_others_read(file: Path) -> None:
    """Give a file the rights of any new file here: safetensors writes for the owner alone, and who serves a model is often another user."""
    file.chmod(0o666 & ~UMASK)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def read_text(path: Path) -> str:
    """A text file. Raises InputError when it cannot be read, or is in another encoding than UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run the stage that writes it again.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is no UTF-8 text ({error}); repair it or write it again.") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError when it is missing, unreadable or no JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: it holds no JSON ({error}); run the stage that writes it again."
        ) from error


def sweep_temporaries(folder: Path) -> None:
    """Delete the temporary files that processes which are no longer there have left in `folder`, at any depth."""
    import psutil

    for path in folder.rglob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match["process"])):
            path.unlink(missing_ok=True)
