"""The vectors that items are coded from: the sources side by side, scaled as they are read, the files left on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

CHUNK = 16_384  # rows worked on at once
PIECE = 1024  # rows scaled at once: they stay in the cache, which is four times as fast
SHORTEST = 1e-2  # in a weighted row, lengths under this share of the longest stay proportionally short
LARGEST, SMALLEST = 1e15, 1e-15  # sums of squares of such numbers fit into float32


@dataclass(frozen=True)
class SourceScale:
    """How the rows of a source, [N, width], are scaled: divided by their length, but at least by `floor`, then times `weight`."""

    width: int
    weight: float
    floor: float

    def number_type(self, of_source: np.dtype) -> np.dtype:
        """In which type lengths are measured: one in which squares neither overflow nor vanish."""
        if not SMALLEST < self.floor / SHORTEST < LARGEST:
            return np.dtype(np.float64)
        return np.dtype(np.float32) if of_source == np.float16 else of_source


class ItemVectors:
    """[N, D] float32 rows, made when they are asked for: every row of a source has length 1, times the source's weight.

    sources: arrays [N, D_s] of any number type, memory-mapped or not; weights: one number per source. Rows shorter than 1 % of
    their source's longest row are divided by that 1 % only, so that an item about which a source knows nothing stays near that
    source's origin. Indexed by a slice or by an array of item indices, as an array is.

    floors: what rows of each source are divided by at least; default: 1 % of its longest row. Items that come later need those of the
    items before.
    """

    def __init__(self, sources: list[np.ndarray], weights: list[float], floors: list[float] | None = None) -> None:
        assert len({len(source) for source in sources}) == 1, f"sources differ in rows: {[s.shape for s in sources]}"
        self.sources, self.blocks = sources, [source.shape[1] for source in sources]  # D_s
        self.shape = (len(sources[0]), sum(self.blocks))
        floors = floors or [SHORTEST * (longest_row(source) or 1.0) for source in sources]
        self.scales = tuple(SourceScale(*scale) for scale in zip(self.blocks, weights, floors, strict=True))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        blocks = [np.asarray(source[rows]) for source in self.sources]  # of a slice, still on disk
        scaled = np.empty((len(blocks[0]), self.shape[1]), dtype=np.float32)
        columns = np.cumsum([0, *self.blocks])
        for start in range(0, len(scaled), PIECE):
            here = slice(start, start + PIECE)
            for s, scale in enumerate(self.scales):
                block = blocks[s][here].astype(scale.number_type(blocks[s].dtype), copy=False)
                norms = np.linalg.norm(block, axis=1, keepdims=True).astype(np.float64)
                into = scaled[here, columns[s] : columns[s + 1]]
                np.divide(scale.weight * block, np.maximum(norms, scale.floor), out=into, casting="same_kind")
        return scaled


class Rows(Protocol):
    """What is read row by row: an array [n, d], memory-mapped or not, or rows that are made when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


def chunks(rows: Rows) -> Iterator[tuple[slice, np.ndarray]]:
    """Consecutive pieces of at most CHUNK rows: where they lie, and the rows, float32 [n, D]."""
    for start in range(0, len(rows), CHUNK):
        where = slice(start, min(start + CHUNK, len(rows)))
        yield where, np.asarray(rows[where], dtype=np.float32)


def longest_row(source: np.ndarray) -> float:
    """The largest row norm of [N, D], read chunk by chunk."""
    pieces = (np.asarray(source[start : start + PIECE], dtype=np.float32) for start in range(0, len(source), PIECE))
    with np.errstate(over="ignore"):
        longest = max((float(np.linalg.norm(piece, axis=1).max()) for piece in pieces), default=0.0)
    if SMALLEST < longest < LARGEST:
        return longest
    pieces = (np.asarray(source[start : start + PIECE], dtype=np.float64) for start in range(0, len(source), PIECE))
    return max((float(np.linalg.norm(piece, axis=1).max()) for piece in pieces), default=0.0)
