"""A model's ranks in one small file: enough to compare it with another later, without either model.

The ranks of one row of the table on test, of every repeat, as bytes: what lies beyond the largest cutoff is the same to every metric.
About 20 KB for 20,000 cases and a training. The sha256 of cases says whether two files are of the same ones.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sidrec.data.metrics import CUTOFFS
from sidrec.evaluation import table
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json
from sidrec.pipeline.stage import require_finished

FORMAT = 1
BEYOND = CUTOFFS[-1]  # the rank of a target that no cutoff reaches
ENDING = ".ranks"


@dataclass(frozen=True)
class RankFile:
    """name: of the row. masked: whether seen items were left out. cases: sha256 of the cases' users and targets. users: int [cases], a
    number for each case's user. ranks: uint8 [repeats, cases], 0-based, BEYOND where it is that or more."""

    name: str
    masked: bool
    cases: str
    users: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, ranks: pl.DataFrame, name: str, masked: bool = True) -> RankFile:
        """One row of ranks.parquet, on test."""
        rows, by_repeat = table.rows_of(ranks, name, "test", masked), table.ranks_by_repeat(ranks, name, "test", masked)
        first = rows.head(by_repeat.shape[1])
        lines = (f"{user} {target}\n" for user, target in first.select("user_id", "target").iter_rows())
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        users = table.users_of(ranks, name, "test", masked).astype(np.uint32)
        return cls(name, masked, digest, users, np.minimum(by_repeat, BEYOND).astype(np.uint8))

    @classmethod
    def read(cls, place: str) -> RankFile:
        """place: such a file, or RUN:MODEL, a row of a run directory's evaluation. Raises InputError for what is neither."""
        path = Path(place)
        if path.is_file():
            return cls._of_file(path)
        run_dir, _, name = place.rpartition(":")
        if not run_dir:
            raise InputError(f"{place} is no file, and not of the form RUN:MODEL, such as outputs/ml-100k:sft.")
        folder = require_finished(Path(run_dir), "evaluation", f"sidrec evaluate --run_dir {run_dir} --models {name}")
        measured = read_json(folder / "comparison.json")["models"]
        if name not in measured:
            raise InputError(f"{folder} has no row {name!r}; it has {', '.join(measured)}.")
        return cls.of(pl.read_parquet(folder / "ranks.parquet", glob=False), name)

    @classmethod
    def _of_file(cls, path: Path) -> RankFile:
        try:
            with safe_open(path, framework="np") as stored:
                about = json.loads((stored.metadata() or {}).get("about", "{}"))
                version = about.get("format") if isinstance(about, dict) else None
                if version != FORMAT:
                    raise InputError(f"{path} has format {version}, and this version reads {FORMAT}.")
                ranks = stored.get_tensor("ranks")
                name, masked, cases = about["name"], about["masked"], about["cases"]
                users = stored.get_tensor("users") if "users" in stored.keys() else np.arange(ranks.shape[1])  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} cannot be read as a file of ranks ({error}); write it again.") from error
        fits = isinstance(name, str) and Path(name).name == name and isinstance(masked, bool) and isinstance(cases, str)
        fits_too = ranks.ndim == 2 and ranks.size and ranks.dtype == np.uint8 and users.shape == ranks.shape[1:]
        if not (fits and fits_too and users.dtype.kind in "iu"):
            raise InputError(
                f"{path} holds other things than ranks; write it again with `sidrec compare ranks … --write`."
            )
        return cls(name, masked, cases, users, ranks)

    def save(self, path: Path) -> None:
        about: dict[str, Any] = {"format": FORMAT, "name": self.name, "masked": self.masked, "cases": self.cases}
        tensors = {"ranks": self.ranks}
        if len(np.unique(self.users)) < len(self.users):  # else each case is another user's
            tensors["users"] = self.users
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"about": json.dumps(about, sort_keys=True)})
