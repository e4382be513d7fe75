"""The rows that codebooks are learnt on, split over the processes of one run (`accelerate launch`, torchrun).

Every process holds some blocks of them; sums and counts are added up over the processes. A block's sum is made in float32 and the
blocks' sums are added in float64, so that the result does not depend on how many processes there are. Without a process group, all
rows are this process's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sidrec.tokenizer.embeddings.item_vectors import CHUNK, Rows
from sidrec.tokenizer.kmeans.distributed import rank_and_processes, summed

DEALT = 16_384  # rows of a block; a power of two


@dataclass(frozen=True)
class TrainingRows:
    """values: float32 [n, D], this process's rows; positions: int64 [n], where they lie among the `total` rows of all processes.

    Position p is in block p // block; blocks are dealt to the processes in turn.
    """

    values: torch.Tensor
    positions: torch.Tensor
    total: int
    block: int = DEALT

    @classmethod
    def read(cls, vectors: Rows, items: torch.Tensor) -> TrainingRows:
        """This process's share of `vectors` at `items` (int64 [total], ascending), read piece by piece."""
        rank, processes = rank_and_processes()
        positions = torch.arange(len(items))
        positions = positions[positions // DEALT % processes == rank]
        values = torch.empty(len(positions), vectors.shape[1])
        for start in range(0, len(positions), CHUNK):
            here = items[positions[start : start + CHUNK]].numpy()
            values[start : start + CHUNK] = torch.from_numpy(np.asarray(vectors[here], dtype=np.float32))
        return cls(values, positions, len(items))

    def with_values(self, values: torch.Tensor) -> TrainingRows:
        """Other values at the same positions."""
        assert len(values) == len(self.positions)
        return TrainingRows(values, self.positions, self.total, self.block)

    def thinned(self, most: int) -> TrainingRows:
        """Every 2^j-th row, with the largest j that leaves at least `most`; all rows when there are fewer than twice as many."""
        stride = 1
        while self.total // (2 * stride) >= most and 2 * stride <= self.block:
            stride *= 2
        positions = self.positions[::stride] // stride
        return TrainingRows(
            self.values[::stride].contiguous(), positions, -(-self.total // stride), self.block // stride
        )

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """The rows at `positions` [k], on every process: [k, D]."""
        place = torch.full((self.total,), -1)  # of each position among this process's rows
        place[self.positions] = torch.arange(len(self.positions))
        local = place[positions]
        rows = torch.zeros(len(positions), self.values.shape[1])
        rows[local >= 0] = self.values[local[local >= 0]]
        return summed(rows)

    def whole(self, figures: torch.Tensor) -> torch.Tensor:
        """Every process's `figures` [n, ...], one per row of its own, in the order of positions: [total, ...]."""
        together = torch.zeros(self.total, *figures.shape[1:], dtype=figures.dtype)
        together[self.positions] = figures
        return summed(together)

    def means(self, codes: torch.Tensor, old: torch.Tensor, move_empty: bool = True) -> torch.Tensor:
        """Mean of each code's rows, [K, D]. codes: int64 [n].

        A code without rows moves to one of the worst fitting rows, or stays where it is.
        """
        counts = summed(torch.bincount(codes, minlength=len(old)))
        sums = torch.zeros(old.shape, dtype=torch.float64)
        for rows, block_codes in zip(self.values.split(self.block), codes.split(self.block), strict=True):
            sums += torch.zeros_like(old).index_add_(0, block_codes, rows)
        means = (summed(sums) / counts.clamp_min(1)[:, None]).float()
        empty = (counts == 0).nonzero().flatten()
        if not move_empty:
            means[empty] = old[empty]
        elif len(empty):
            errors = self.whole((self.values - means[codes]).square().sum(1))
            means[empty] = self.at(errors.sort(descending=True, stable=True).indices[: len(empty)])
        return means
