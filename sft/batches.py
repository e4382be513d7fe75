"""Batches by size: histories of similar length, so many that a batch has about the same number of items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

JITTER = 0.1  # of a history's length: those that are nearly as long meet others at every pass


class ItemBatches(TrainerCallback, Sampler[list[int]]):
    """A pass's batches are a function of the seed, the pass and the size of a global batch: the same for any number of processes.

    Each process takes every `n_processes`-th row of a global batch.
    """

    def __init__(self, lengths: list[int], batch_items: int, seed: int, process: int = 0, n_processes: int = 1) -> None:
        """lengths: of every row, in items. batch_items: of a global batch at most, padding included (or one row a process)."""
        self.lengths = np.asarray(lengths)
        self.batch_items = batch_items
        self.seed, self.process, self.n_processes, self.epoch = seed, process, n_processes, 0
        self.ends = batch_ends(np.sort(self.lengths), batch_items, n_processes)

    def __len__(self) -> int:
        return len(self.ends)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch + 1e-6)  # passes that are over; a part of one after a resume

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        blurred = self.lengths * rng.uniform(1 - JITTER, 1 + JITTER, len(self.lengths))
        batches = np.split(np.argsort(blurred, kind="stable"), self.ends[:-1])
        for number in rng.permutation(len(batches)):
            yield batches[number][self.process :: self.n_processes].tolist()


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
