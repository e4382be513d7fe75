"""The prepared data set: a catalogue, an interaction log in time order, and which interaction is for what.

Files, in the run directory's `data/`:
    items.parquet         item_id (string, the user's own), item_index (0…N-1), title, text, any other column kept
    interactions.parquet  user_id (string), item_index, timestamp, split ("train" | "valid" | "test"), any other column kept; sorted by
                          user, then time, ties in input order
    left_out.parquet      which users and items of the source are not in the data, and by which rule (`sidrec.data.filters`)
    dataset.json          name, protocol, counts, and for synthetic data the parameters of its model
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import polars.selectors as cs

from sidrec.data.filters import LEFT_OUT
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json, write_json
from sidrec.pipeline.stage import require_finished

SplitName = Literal["valid", "test"]
ROW_GROUP_ROWS = 1 << 18
NO_VALUES = ("user_id", "item_index", "timestamp", "split")  # columns of the log that say who, what and when


@dataclass(frozen=True)
class EvalCases:
    """Questions with known answers: which item does this user take next?

    user_ids: one per case. histories: item indices before the target, oldest first (int64 arrays, never empty).
    targets: int64 [cases], the item index taken next. Where a column of the log was asked for, values: float64 [cases], its value where
    the target was taken, and history_values: float64 arrays, those of the histories; NaN where an interaction has none.
    """

    user_ids: list[str]
    histories: list[np.ndarray]
    targets: np.ndarray
    values: np.ndarray | None = None
    history_values: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, indices: np.ndarray) -> EvalCases:
        """The cases at `indices`, in that order."""
        return EvalCases(
            [self.user_ids[i] for i in indices],
            [self.histories[i] for i in indices],
            self.targets[indices],
            None if self.values is None else self.values[indices],
            None if self.history_values is None else [self.history_values[i] for i in indices],
        )

    def first_of_shuffle(self, most: int, seed: int) -> EvalCases:
        """At most this many of the cases, the first of a shuffle by the seed, in their order.

        Baselines and blends are chosen on these. Checkpoints are chosen on those of `sidrec.sft.validation.sample_cases`, another draw:
        published figures depend on both.
        """
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:most]))


@dataclass(frozen=True)
class Dataset:
    """items, interactions, left_out, info: what the files of these names hold. folder: where they lie, which errors name. test_sample: most
    test cases that `cases` gives, and the seed that draws them; None: all."""

    items: pl.DataFrame
    interactions: pl.DataFrame
    info: dict[str, Any]
    left_out: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LEFT_OUT))
    folder: Path = Path("data")
    test_sample: tuple[int, int] | None = None

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def keeps_untaken(self) -> bool:
        """Whether the catalogue was prepared with the items that nobody has taken."""
        return bool(self.info.get("keep_untaken_items"))

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

    @cached_property
    def train_users(self) -> list[str]:
        """The user of each of `train_sequences`."""
        train = self.interactions.filter(pl.col("split") == "train")
        return train["user_id"].unique(maintain_order=True).to_list()

    def values(self, column: str) -> np.ndarray:
        """What a column of the log says of each interaction, such as its rating or price: float64 [interactions], NaN where it is empty.

        Switches are 0 and 1. Raises InputError, naming file and column, where the log has no such column, where it holds no numbers, an
        infinite one, or nothing at all.
        """
        file, log = self.folder / "interactions.parquet", self.interactions
        others = [name for name in log.columns if name not in NO_VALUES]
        if column not in others:
            cure = f"it has {', '.join(others)}" if others else "it has none beside user, item, time and split"
            if column in self.items.columns:
                cure = (
                    f"{self.folder / 'items.parquet'} has one, but a value is of an interaction, so join it to the log"
                )
            raise InputError(
                f"{file} has no column {column!r} with values of the interactions ({cure}); name another one."
            )
        cells = log[column]
        if cells.null_count() == len(cells):
            raise InputError(f"{file}: column {column!r} is empty in every row; name another one.")
        if not (cells.dtype.is_numeric() or cells.dtype == pl.Boolean):
            what = f"has type {cells.dtype}"
            if cells.dtype == pl.String:
                what = _text_in_words(cells, log["user_id"])
            raise InputError(
                f"{file}: column {column!r} {what}, where numbers are needed; correct it and prepare again."
            )
        values = cells.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        if np.isinf(values).any():
            row = int(np.isinf(values).argmax())
            user = log["user_id"][row]
            raise InputError(
                f"{file}: column {column!r} is {values[row]} in row {row} (user {user}); correct it and prepare again."
            )
        if np.isnan(values).all():
            raise InputError(f"{file}: column {column!r} is empty in every row; name another one.")
        return values

    def train_values(self, column: str) -> list[np.ndarray]:
        """`values` of each of `train_sequences`, float64 arrays. Raises InputError as `values` does."""
        log = self.interactions.select("user_id", "split", value=pl.Series(self.values(column)))
        grouped = log.filter(pl.col("split") == "train").group_by("user_id", maintain_order=True).agg("value")
        return [np.asarray(values, dtype=np.float64) for values in grouped["value"].to_list()]

    def cases(self, split: SplitName, value_column: str | None = None) -> EvalCases:
        """One case for every `split` interaction that has something before it, of test perhaps a sample; its history is all that the user
        did before.

        value_column: the column of the log that the cases' values come from; InputError is raised as `values` raises it.
        """
        users: list[str] = []
        histories: list[np.ndarray] = []
        targets: list[int] = []
        places: list[int] = []  # of the targets, in the log grouped by user
        grouped = self.interactions.group_by("user_id", maintain_order=True).agg("item_index", "split")
        first = 0
        for user, items, splits in grouped.iter_rows():
            sequence = np.asarray(items, dtype=np.int64)
            for position, name in enumerate(splits):
                if name == split and position > 0:
                    users.append(user)
                    histories.append(sequence[:position])
                    targets.append(items[position])
                    places.append(first + position)
            first += len(items)
        cases = EvalCases(users, histories, np.asarray(targets, dtype=np.int64))
        if value_column is not None:
            cases = self._with_values(cases, places, value_column)
        return cases.first_of_shuffle(*self.test_sample) if self.test_sample and split == "test" else cases

    def _with_values(self, cases: EvalCases, places: list[int], value_column: str) -> EvalCases:
        """`cases` with the column's values. places: of their targets, in the log grouped by user."""
        log = self.interactions.select("user_id", value=pl.Series(self.values(value_column)))
        values = log.group_by("user_id", maintain_order=True).agg("value").explode("value")["value"].to_numpy()
        before = [values[place - len(history) : place] for place, history in zip(places, cases.histories, strict=True)]
        return replace(cases, values=values[np.asarray(places, dtype=np.int64)], history_values=before)

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
            folder,
        )


def _text_in_words(cells: pl.Series, users: pl.Series) -> str:
    """How many texts no number can be read from, and the first one and its row; where all are numbers, of all texts."""
    is_text = cells.is_not_null() & cells.cast(pl.Float64, strict=False).is_null()
    is_text = is_text if is_text.any() else cells.is_not_null()
    row = int(is_text.arg_true()[0])
    return f"holds text in {is_text.sum():,} of {len(cells):,} rows, the first {cells[row]!r} in row {row} (user {users[row]})"
