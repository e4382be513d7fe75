"""Batches of histories of similar length: so many items or so many rows each, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

JITTER = 0.1  # of a history's length: those that are nearly as long meet others at every pass


class LengthBatches(TrainerCallback, Sampler[list[int]]):
    """A pass's batches are a function of the seed, the pass and the size of a global batch alone.

    Each process takes every `n_processes`-th row of a global batch; with `parts`, as many batches one after the other, whose gradients are
    added up.
    """

    def __init__(
        self,
        lengths: list[int],
        ends: list[int],
        seed: int,
        process: int = 0,
        n_processes: int = 1,
        parts: int = 1,
        batch_items: int | None = None,
    ) -> None:
        """lengths: of every row. ends: where each global batch ends, the rows sorted by length (rising). batch_items: most items of a
        global batch, where its rows follow from that."""
        self.lengths, self.ends, self.batch_items = np.asarray(lengths), ends, batch_items
        self.seed, self.process, self.n_processes, self.parts, self.epoch = seed, process, n_processes, parts, 0

    @classmethod
    def of_items(
        cls, lengths: list[int], batch_items: int, seed: int, process: int = 0, n_processes: int = 1
    ) -> LengthBatches:
        """Global batches of at most `batch_items` items, padding included (or a row a process). lengths: in items."""
        ends = batch_ends(np.sort(lengths), batch_items, n_processes)
        return cls(lengths, ends, seed, process, n_processes, batch_items=batch_items)

    @classmethod
    def of_rows(
        cls, lengths: list[int], rows: int, seed: int, process: int = 0, n_processes: int = 1, parts: int = 1
    ) -> LengthBatches:
        """Global batches of `rows` rows, those of all processes and of `parts` batches whose gradients are added up; where they do not
        divide a pass, some batches have a few more."""
        sizes = [len(part) for part in np.array_split(np.arange(len(lengths)), max(1, len(lengths) // rows))]
        return cls(lengths, np.cumsum(sizes).tolist(), seed, process, n_processes, parts)

    def __len__(self) -> int:
        return len(self.ends) * self.parts

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch + 1e-6)  # passes that are over; a part of one after a resume

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        blurred = self.lengths * rng.uniform(1 - JITTER, 1 + JITTER, len(self.lengths))
        batches = np.split(np.argsort(blurred, kind="stable"), self.ends[:-1])
        shares = self.n_processes * self.parts
        for number in rng.permutation(len(batches)):
            for part in range(self.parts):
                yield batches[number][self.process + part * self.n_processes :: shares].tolist()


def batch_ends(lengths: np.ndarray, batch_items: int, n_processes: int) -> list[int]:
    """Where each batch of rows ends, the rows sorted by length (rising): length of the longest · rows ≤ `batch_items`, and at least a row
    for every process."""
    ends, first = [], 0
    for row, length in enumerate(lengths):
        if row - first >= n_processes and (row - first + 1) * length > batch_items:
            ends.append(row)
            first = row
    if ends and len(lengths) - first < n_processes:
        ends.pop()  # the last rows are too few for a batch of their own
    return [*ends, len(lengths)]
