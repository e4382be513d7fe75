"""What rewards of lists compare with: how much of each category lists should hold, and how popular what a user takes is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError

FEWEST_SHARE = 1e-2  # of an even share: an item or a category that lists hold less of counts as held so often
NO_CATEGORIES = ("item_id", "item_index")  # columns in which every item has its own value


@dataclass(frozen=True)
class Categories:
    """names: C categories. membership: float64 [N, C], an item's parts in them, which sum to 1, or to 0 where it has none. targets:
    float64 [C], the share of lists' items that each should have; they sum to 1."""

    names: list[str]
    membership: np.ndarray
    targets: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, column: str, quotas: Sequence[str]) -> Categories:
        """Of a column of the catalogue; texts with commas, and lists, name several categories, and an item counts for each alike.

        quotas: "drama=.3"; the categories that are not named share what is left as the training log has them. Raises InputError for a
        column that is not there or has no categories, and for quotas that cannot be.
        """
        file, others = (
            dataset.folder / "items.parquet",
            [name for name in dataset.items.columns if name not in NO_CATEGORIES],
        )
        if column not in others:
            raise InputError(
                f"{file} has no column {column!r} with categories of the items (it has {', '.join(others)}); name another one."
            )
        of_item = [categories_of(value) for value in dataset.items[column].to_list()]
        names = sorted({name for each in of_item for name in each})
        if len(names) < 2:
            raise InputError(
                f"{file}: column {column!r} has {len(names)} categories, and a quota needs two or more; name another one."
            )
        place = {name: number for number, name in enumerate(names)}
        membership = np.zeros((dataset.n_items, len(names)))
        for item, each in enumerate(of_item):
            for name in each:
                membership[item, place[name]] = 1 / len(each)
        counts = np.bincount(np.concatenate(dataset.train_sequences), minlength=dataset.n_items)
        return cls(names, membership, targets_of(counts @ membership, names, quotas))

    def shares(self, counts: np.ndarray) -> np.ndarray:
        """float64 [C], of how often each item is held, [N]: the categories' shares of it."""
        sums = counts @ self.membership
        return sums / max(sums.sum(), 1e-9)

    def lack(self, counts: np.ndarray) -> np.ndarray:
        """float32 [N]: log(target share / share in what is held), the mean over an item's categories; 0 for an item without one. counts:
        [N], how often each item is held."""
        floor = FEWEST_SHARE / len(self.names)
        logs = np.log(self.targets.clip(min=floor)) - np.log(self.shares(counts).clip(min=floor))
        return (self.membership @ logs).astype(np.float32)


def categories_of(value: object) -> list[str]:
    """The categories that a cell names, each once."""
    if value is None:
        return []
    parts = (
        value.to_list() if isinstance(value, pl.Series) else value if isinstance(value, list) else str(value).split(",")
    )
    return sorted({str(part).strip() for part in parts} - {""})


def targets_of(counts: np.ndarray, names: list[str], quotas: Sequence[str]) -> np.ndarray:
    """float64 [C], see `Categories.of`. counts: float64 [C], training interactions."""
    given: dict[int, float] = {}
    for quota in quotas:
        name, _, number = quota.rpartition("=")
        if name not in names:
            raise InputError(f"quotas has {quota!r}; write category=share with one of {', '.join(names[:20])}.")
        try:
            given[names.index(name)] = share = float(number)
        except ValueError as error:
            raise InputError(f"quotas has {quota!r}, whose share is no number; write {name}=0.3.") from error
        if not 0 <= share <= 1:
            raise InputError(f"quotas has {quota!r}, whose share is not within 0 and 1; write {name}=0.3.")
    left = 1 - sum(given.values())
    rest = np.array([0.0 if place in given else count for place, count in enumerate(counts)])
    if left < -1e-9 or (left > 1e-9 and not rest.sum()):
        raise InputError(
            f"quotas={' '.join(quotas)} add up to {1 - left:g}; make it 1, or less where categories are left to share the rest."
        )
    targets = max(left, 0.0) * rest / max(rest.sum(), 1e-9)
    for place, share in given.items():
        targets[place] = share
    return targets


@dataclass(frozen=True)
class Popularity:
    """How popular items are, and what users take. sequences: every user's training items. n_items: N."""

    sequences: Sequence[np.ndarray]
    n_items: int

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 [N], training interactions."""
        return np.bincount(np.concatenate([np.empty(0, np.int64), *self.sequences]), minlength=self.n_items)

    @cached_property
    def of_items(self) -> np.ndarray:
        """float32 [N]: log(1 + training interactions) less its mean over the catalogue, in its standard deviations."""
        logs = np.log1p(self.counts)
        return ((logs - logs.mean()) / max(logs.std(), 1e-9)).astype(np.float32)

    @cached_property
    def of_users(self) -> np.ndarray:
        """float32 [U]: the mean over each user's training items."""
        return np.array([self.of_items[items].mean() for items in self.sequences], dtype=np.float32)
