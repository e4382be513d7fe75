"""sha256 of the files of a run directory, each computed once for as long as the file is the same by size, time and place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, sha256, write_json

CACHE = ".hashes.json"
OUTSIDE = "outside/"


class FileHashes:
    """The hashes that are known of the files below `run_dir`, kept in its file `.hashes.json`; deleting that costs time only."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / CACHE
        try:
            known = read_json(self.path) if self.path.exists() else {}
        except InputError:
            known = {}
        self.known: dict[str, Any] = known if isinstance(known, dict) else {}
        self.is_new = False

    def sha256(self, file: Path) -> str:
        """Hex sha256 of a file."""
        state = file.stat()
        signature = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        name = self._name(file)
        entry = self.known.get(name)
        if isinstance(entry, list) and entry[:-1] == signature:
            return str(entry[-1])
        digest = sha256(file)
        self.known[name] = [*signature, digest]
        self.is_new = True
        return digest

    def described(self, file: Path) -> dict[str, Any]:
        """How a manifest describes a file: its sha256 and its size in bytes."""
        return {"sha256": self.sha256(file), "bytes": file.stat().st_size}

    @staticmethod
    def of_lines(lines: Iterable[str]) -> str:
        """Hex sha256 over sorted lines."""
        return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()

    def save(self) -> None:
        """Keep what was computed, for the next stage; where the run directory cannot be written, it is computed again."""
        if not self.is_new:
            return
        try:
            is_there = {name: name.startswith(OUTSIDE) or (self.run_dir / name).exists() for name in self.known}
            write_json(self.path, {name: entry for name, entry in self.known.items() if is_there[name]})
        except OSError:
            return
        self.is_new = False

    def _name(self, file: Path) -> str:
        """Of a file outside the run directory no path: others may read what lies in there."""
        file, run_dir = file.resolve(), self.run_dir.resolve()
        if file.is_relative_to(run_dir):
            return file.relative_to(run_dir).as_posix()
        return OUTSIDE + hashlib.sha256(os.fsencode(file)).hexdigest()[:32]
