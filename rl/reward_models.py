"""Rewards of what an item was or would be worth: a column of the log, such as the rating, and a model of it.

They are called as those of `sidrec.rl.rewards`, and find a question's values by its columns user (the place of the training sequence) and
history, which ends before the taken item. `sidrec.rl.dense_rewards` has their forms over the whole catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from sidrec.baselines.value_model import FOLDS, ValueModel, fit_value_model, without_nan
from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError


@dataclass(frozen=True)
class ValueSource:
    """A column of the log, for rewards. seed: of the value model."""

    dataset: Dataset
    column: str
    seed: int

    @cached_property
    def values(self) -> list[np.ndarray]:
        """Of each training sequence, NaN where an event has none."""
        return self.dataset.train_values(self.column)

    @cached_property
    def mean(self) -> float:
        """Of all of them. Raises InputError where it is not above 0: then no value is a multiple of it."""
        known = without_nan(self.values)
        mean = float(known.mean()) if len(known) else 0.0
        if not mean > 0:
            raise InputError(
                f"{self.dataset.folder / 'interactions.parquet'}: the mean of column {self.column!r} is {mean:g} in training, and "
                "logged_value divides by it; add a number to the column so that it is above 0, or reward by predicted_value."
            )
        return mean

    @cached_property
    def model(self) -> ValueModel:
        """Raises InputError where the column cannot be fitted."""
        return fit_value_model(self.dataset, self.column, FOLDS, self.seed)

    def share_of_mean(self, user: int, position: int) -> float:
        """The value of a user's training event as a multiple of the mean: 1 for the mean, and where it has none."""
        value = self.values[user][position]
        return 1.0 if np.isnan(value) else float(value) / self.mean

    def of_users(self, users: Sequence[int]) -> np.ndarray:
        """What every item would be worth to these users, by all their training events: float32 [U, N], in the unit of `predicted`."""
        return self.predicted(users, [self.dataset.train_sequences[user] for user in users])

    @cached_property
    def shares_of_mean(self) -> sparse.csr_array:
        """Sparse float64 [users, N]: the value of a user's training events with an item, their mean, as a multiple of the column's mean; 1
        where an event has none."""
        sequences = self.dataset.train_sequences
        users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        shares = np.nan_to_num(np.concatenate(self.values) / self.mean, nan=1.0)
        shape = (len(sequences), self.dataset.n_items)
        places = (users, np.concatenate(sequences))
        sums, counts = (sparse.csr_array((values, places), shape=shape) for values in (shares, np.ones(len(users))))
        counts.data = 1 / counts.data
        return sparse.csr_array(sums.multiply(counts))

    def predicted(self, users: Sequence[int], histories: Sequence[Any]) -> np.ndarray:
        """What every item would be worth after these histories, less the column's mean, in its standard deviations: float32 [P, N].

        users: places of training sequences, whose beginnings the histories are. Nothing after a history has a part in its row: see
        `sidrec.baselines.value_model`.
        """
        model = self.model
        values = model.values(
            [self.dataset.train_users[user] for user in users],
            [np.asarray(history, dtype=np.int64) for history in histories],
            [self.values[user][: len(history)] for user, history in zip(users, histories, strict=True)],
        )
        return (values - np.float32(model.mean)) / np.float32(model.deviation)


def logged_value(source: ValueSource) -> Callable[..., list[float]]:
    """A hit, weighted by what the taken item was worth to the user: its value as a multiple of the column's mean, else 0.

    A hit on an event without a value earns 1, as one of the mean.
    """
    assert source.mean > 0

    def logged_value(
        items: list[int], target: list[int], user: list[int], history: list[list[int]], **_columns: Any
    ) -> list[float]:
        rows = zip(items, target, user, history, strict=True)
        return [
            source.share_of_mean(place, len(before)) if item == wanted else 0.0 for item, wanted, place, before in rows
        ]

    return logged_value


def predicted_value(source: ValueSource) -> Callable[..., list[float]]:
    """What the drawn item would be worth to the user, hit or not, as a value model predicts it: less the column's mean, in its standard
    deviations."""
    assert source.model.fit.events  # fitted before training begins

    def predicted_value(items: list[int], user: list[int], history: list[list[int]], **_columns: Any) -> list[float]:
        questions = {(place, len(before)): before for place, before in zip(user, history, strict=True)}
        row_of = {question: row for row, question in enumerate(questions)}
        values = source.predicted([place for place, _ in questions], list(questions.values()))
        rows = [row_of[place, len(before)] for place, before in zip(user, history, strict=True)]
        return values[rows, items].astype(float).tolist()

    return predicted_value
