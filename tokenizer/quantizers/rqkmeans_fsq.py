"""Residual k-means whose last level is a finite scalar grid (as QARM V2's Res-KmeansFSQ, arXiv 2602.08559).

What L - 1 levels of k-means leave over, r, is rounded on its leading principal directions v_1 … v_d, each to n_i values that are s_i apart
and symmetric around the mean m: C_{L-1}[k] = m + sum_i s_i (digit_i(k) - (n_i - 1) / 2) v_i, K = prod_i n_i. The directions are orthogonal,
so the nearest of the K vectors is found direction by direction: it is a codebook like the others, with d + 1 vectors in it that are learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.autoencoders.grid_settings import GridSettings
from sidrec.tokenizer.kmeans.settings import KmeansSettings
from sidrec.tokenizer.quantizers.kind import Kind
from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes, default_level_sizes

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer

STARTS = 40  # step widths tried per direction
ROUNDS = 20  # refinements of the best of them


@dataclass
class RqkmeansFsq(KmeansSettings, GridSettings, Kind):
    """The grid is fitted to as many rows as k-means is, drawn at random."""

    summary: ClassVar[str] = "residual k-means whose last level is a finite scalar grid"

    def __post_init__(self) -> None:
        KmeansSettings.__post_init__(self)
        GridSettings.__post_init__(self)

    def choose_level_sizes(self, asked: list[int], shape: tuple[int, ...], unique: str) -> list[int]:
        """The last one is what `fsq_levels` give."""
        if asked and asked[-1] != self.n_codes:
            raise InputError(
                f"the last of level_sizes is {asked[-1]}, but fsq_levels {' '.join(map(str, self.fsq_levels))} give {self.n_codes} codes; "
                f"write {self.n_codes} there."
            )
        sizes = [*(asked or default_level_sizes(shape[0], unique))[:-1], self.n_codes]
        check_level_sizes(sizes, shape[0], clustered=len(sizes) - 1, unique=unique == "assign")
        return sizes

    def check(self, vectors: Rows, level_sizes: list[int]) -> None:
        """A lone level has no residual to round, and the grid cannot have more dimensions than the vectors."""
        if len(level_sizes) < 2:
            raise InputError(
                "a grid of residuals needs two levels or more, the last one the grid; give more --level_sizes, or use the quantizer fsq."
            )
        if len(self.fsq_levels) > vectors.shape[1]:
            raise InputError(
                f"fsq_levels names {len(self.fsq_levels)} dimensions, but the item vectors have {vectors.shape[1]}; name fewer."
            )

    def exact_levels(self, n_levels: int) -> int:
        """All but the grid."""
        return n_levels - 1 if self.clusters == "exact" else 0

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        """L codebooks [K_l, D], the last one the grid."""
        from sidrec.tokenizer.codebooks import Codebooks
        from sidrec.tokenizer.kmeans.residual_kmeans import fit
        from sidrec.tokenizer.quantizer import Quantizer

        self.check(vectors, level_sizes)
        assert level_sizes[-1] == self.n_codes
        first = fit(vectors, level_sizes[:-1], seed, self, screen)
        n_train = self.train_rows_per_code * max(level_sizes)
        sample = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:n_train])
        rows = np.asarray(vectors[sample], dtype=np.float32)
        grid = residual_grid(rows - first.reconstruct(first.encode(rows)), self.fsq_levels)
        return Quantizer(Codebooks([*first.books, grid], [*first.prices, np.zeros(len(grid), dtype=np.float32)]))


def residual_grid(residuals: np.ndarray, levels: list[int]) -> np.ndarray:
    """The last codebook, float32 [K, D], fitted to residuals [n, D]; its codes number the grid's points as `finite_scalar.points` does."""
    from sidrec.tokenizer.autoencoders.finite_scalar import points

    mean = residuals.mean(axis=0, dtype=np.float64)
    centred = residuals - mean
    _, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    leading = directions[:, ::-1][:, : len(levels)].T  # [d, D]
    steps = [step_width(centred @ direction, n) for direction, n in zip(leading, levels, strict=True)]
    sizes = np.array(levels)
    digits = np.rint(points(levels) * (sizes // 2) + sizes // 2)  # [K, d], 0 … n_i - 1
    return (mean + ((digits - (sizes - 1) / 2) * steps) @ leading).astype(np.float32)


def step_width(values: np.ndarray, n: int) -> float:
    """s, for which the n values s (j - (n - 1) / 2), j = 0 … n - 1, have the least squared error to `values`, float64 [rows].

    Alternates between rounding (values to j) and least squares (j to s), from the best of many s, since one start may be a poor one.
    """

    def rounded(step: float) -> np.ndarray:
        return np.clip(np.rint(values / step + (n - 1) / 2), 0, n - 1) - (n - 1) / 2

    spread = float(values.std())
    if spread == 0:
        return 0.0
    starts = spread * np.linspace(0.5, 6.0, STARTS) / n
    step = min(starts, key=lambda start: float(np.square(values - start * rounded(start)).sum()))
    for _ in range(ROUNDS):
        digits = rounded(step)
        step = float(values @ digits) / float(digits @ digits)
    return float(step)
