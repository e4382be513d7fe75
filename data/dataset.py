"""The prepared data set: a catalogue, an interaction log in time order, and which interaction is for what.

Files, in the run directory's `data/`:
    items.parquet         item_id (string, the user's own), item_index (0…N-1), title, text, any other column kept
    interactions.parquet  user_id (string), item_index, timestamp, split ("train" | "valid" | "test"); sorted by user, then time,
                          ties in input order
    left_out.parquet      which users and items of the source are not in the data, and by which rule (`sidrec.data.filters`)
    dataset.json          name, protocol, counts, and for synthetic data the parameters of its model
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import polars.selectors as cs

from sidrec.data.filters import LEFT_OUT
from sidrec.pipeline.files import atomic_path, read_json, write_json
from sidrec.pipeline.stage import require_finished

SplitName = Literal["valid", "test"]
ROW_GROUP_ROWS = 1 << 18


@dataclass(frozen=True)
class EvalCases:
    """Questions with known answers: which item does this user take next?

    user_ids: one per case. histories: item indices before the target, oldest first (int64 arrays, never empty).
    targets: int64 [cases], the item index taken next.
    """

    user_ids: list[str]
    histories: list[np.ndarray]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, indices: np.ndarray) -> EvalCases:
        """The cases at `indices`, in that order."""
        return EvalCases(
            [self.user_ids[i] for i in indices], [self.histories[i] for i in indices], self.targets[indices]
        )

    def first_of_shuffle(self, most: int, seed: int) -> EvalCases:
        """At most this many of the cases, the first of a shuffle by the seed, in their order.

        Baselines and blends are chosen on these. Checkpoints are chosen on those of `sidrec.sft.validation.sample_cases`, another draw:
        published figures depend on both.
        """
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:most]))


@dataclass(frozen=True)
class Dataset:
    items: pl.DataFrame
    interactions: pl.DataFrame
    info: dict[str, Any]
    left_out: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LEFT_OUT))

    @property
    def n_items(self) -> int:
        return len(self.items)

    @cached_property
    def titles(self) -> list[str]:
        """Title of item i at index i."""
        return self.items["title"].to_list()

    @cached_property
    def train_sequences(self) -> list[np.ndarray]:
        """Each user's training items, oldest first; users without any are left out."""
        train = self.interactions.filter(pl.col("split") == "train")
        grouped = train.group_by("user_id", maintain_order=True).agg("item_index")
        return [np.asarray(items, dtype=np.int64) for items in grouped["item_index"].to_list()]

    def cases(self, split: SplitName) -> EvalCases:
        """One case for every `split` interaction that has something before it; its history is all that the user did before."""
        users: list[str] = []
        histories: list[np.ndarray] = []
        targets: list[int] = []
        grouped = self.interactions.group_by("user_id", maintain_order=True).agg("item_index", "split")
        for user, items, splits in grouped.iter_rows():
            sequence = np.asarray(items, dtype=np.int64)
            for position, name in enumerate(splits):
                if name == split and position > 0:
                    users.append(user)
                    histories.append(sequence[:position])
                    targets.append(items[position])
        return EvalCases(users, histories, np.asarray(targets, dtype=np.int64))

    def save(self, folder: Path) -> list[Path]:
        """Write the four files, each atomically; return their paths."""
        paths = [folder / f"{name}.parquet" for name in ("items", "interactions", "left_out")]
        for path, frame in zip(paths, (self.items, self.interactions, self.left_out), strict=True):
            as_text = frame.lazy().with_columns(cs.by_dtype(pl.Categorical, pl.Enum).cast(pl.String))
            with atomic_path(path) as temporary:
                as_text.sink_parquet(temporary, row_group_size=ROW_GROUP_ROWS, engine="streaming")
        write_json(folder / "dataset.json", self.info)
        return [*paths, folder / "dataset.json"]

    @classmethod
    def load(cls, run_dir: Path) -> Dataset:
        """Read a finished `data` stage. Raises InputError when there is none."""
        folder = require_finished(run_dir, "data", f"sidrec prepare --run_dir {run_dir}")
        left_out = folder / "left_out.parquet"  # not there where an earlier version made the stage
        return cls(
            pl.read_parquet(folder / "items.parquet", glob=False),
            pl.read_parquet(folder / "interactions.parquet", glob=False),
            read_json(folder / "dataset.json"),
            pl.read_parquet(left_out, glob=False) if left_out.is_file() else pl.DataFrame(schema=LEFT_OUT),
        )
