"""Residual k-means whose last level is a finite scalar grid: the quantizer `rqkmeans_fsq` (as QARM V2's Res-KmeansFSQ, arXiv 2602.08559).

What L - 1 levels of k-means leave over, r, is rounded on its leading principal directions v_1 … v_d, each to n_i values that are s_i apart
and symmetric around the mean m: C_{L-1}[k] = m + sum_i s_i (digit_i(k) - (n_i - 1) / 2) v_i, K = prod_i n_i. The directions are orthogonal,
so the nearest of the K vectors is found direction by direction: it is a codebook like the others, with d + 1 vectors in it that are learnt.
"""

from __future__ import annotations

import numpy as np

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.kmeans.residual_kmeans import fit
from sidrec.tokenizer.quantizers.fsq import points
from sidrec.tokenizer.quantizers.quantizer_settings import FsqSettings, KmeansSettings

STARTS = 40  # step widths tried per direction
ROUNDS = 20  # refinements of the best of them


def fit_with_grid(
    vectors: Rows, level_sizes: list[int], seed: int, kmeans: KmeansSettings, fsq: FsqSettings
) -> Codebooks:
    """L codebooks [K_l, D]; level_sizes: of all L levels, the last one is the grid's. vectors: [N, D].

    The grid is fitted to as many rows as k-means is, drawn at random. The same bytes for the same seed.
    """
    N = len(vectors)
    assert level_sizes[-1] == fsq.n_codes
    first = fit(vectors, level_sizes[:-1], seed, kmeans)
    sample = np.sort(np.random.default_rng(seed).permutation(N)[: kmeans.train_rows_per_code * max(level_sizes)])
    rows = np.asarray(vectors[sample], dtype=np.float32)
    grid = residual_grid(rows - first.reconstruct(first.encode(rows)), fsq.fsq_levels)
    return Codebooks([*first.books, grid], [*first.prices, np.zeros(len(grid), dtype=np.float32)])


def residual_grid(residuals: np.ndarray, levels: list[int]) -> np.ndarray:
    """The last codebook, float32 [K, D], fitted to residuals [n, D]; its codes number the grid's points as `fsq.points` does."""
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


def check_kmeans_fsq(fsq: FsqSettings, level_sizes: list[int], dimensions: int) -> None:
    """Raise InputError for settings that do nothing here, for a lone level, and for more grid dimensions than the vectors have."""
    default = FsqSettings()
    for name in ("fsq_tokens", "fsq_form"):
        if getattr(fsq, name) != getattr(default, name):
            raise InputError(f"{name} is set, but the quantizer 'rqkmeans_fsq' does not use it; leave it out.")
    if len(level_sizes) < 2:
        raise InputError(
            "rqkmeans_fsq needs two levels or more, the last one a grid; give more --level_sizes, or use fsq."
        )
    if len(fsq.fsq_levels) > dimensions:
        raise InputError(
            f"fsq_levels names {len(fsq.fsq_levels)} dimensions, but the item vectors have {dimensions}; name fewer."
        )
