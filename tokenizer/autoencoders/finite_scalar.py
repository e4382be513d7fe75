"""Finite scalar quantization (FSQ, arXiv 2309.15505): every latent dimension is bounded and rounded to one of a few levels.

With levels (n_1, …, n_d), half_i = floor(n_i / 2) and y = bound(z), dimension i is rounded to ẑ_i = round(half_i y_i) / half_i, one of n_i
values from -1 on; an even n_i has one more below zero than above. On a symmetric grid half_i = (n_i - 1) / 2 instead, and the values are
-1 + 2 j / (n_i - 1), j = 0 … n_i - 1: from -1 to 1, without zero for an even n_i (vector-quantize-pytorch's preserve_symmetry). The code
is the ẑ of all d dimensions as one number,

    k = sum_i (half_i ẑ_i + half_i) prod_{j < i} n_j,      0 <= k < K = prod_i n_i,

so that K is what the levels give (7 5 5 5 5: 4,375) and never a rounder number. Only the encoder before it and the decoder after it learn.

A semantic ID of several tokens takes a group of d dimensions per token (`groups`), or the same d dimensions for all tokens (`residual`):
token l rounds what the tokens before have left over, to the grid shrunk by (n_i - 1)^l. Both are codebooks whose vectors add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sidrec.tokenizer.codebooks import Codebooks


def halves(levels: Sequence[int], symmetric: bool = False) -> Tensor:
    """half_i, float64 [d]: values of dimension i are 1 / half_i apart."""
    counts = torch.tensor(levels, dtype=torch.float64)
    return (counts - 1) / 2 if symmetric else counts // 2


def bound(z: Tensor, levels: Sequence[int], symmetric: bool = False) -> Tensor:
    """Squash each dimension into the range of its levels: round(bound(z)) has exactly `levels[i]` values in dimension i.

    h = (levels - 1) (1 + eps) / 2, o = .5 where levels is even and the grid is not symmetric, else 0; bound(z) = (tanh(z + s) h - o) /
    half. The shift s = atanh(o / h) puts z = 0 on a value. With 2 levels it
    is 0 instead: o / h is nearly 1 there, and the border between the two values would lie at z = -3.8, where no latent comes; so it
    lies at z = 0. z: [n, e], levels: e whole numbers. Returns [n, e].
    """
    assert z.shape[1] == len(levels)
    counts = torch.tensor(levels, dtype=z.dtype, device=z.device)
    half = (counts - 1) * (1 + 1e-3) / 2
    offset = torch.where((counts % 2 == 0) & (not symmetric), 0.5, 0.0).to(z.dtype)
    shift = torch.where(counts == 2, 0.0, torch.atanh(offset / half)).to(z.dtype)
    return (torch.tanh(z + shift) * half - offset) / halves(levels, symmetric).to(z)


def nearest_point(bounded: Tensor, levels: Sequence[int], symmetric: bool = False) -> Tensor:
    """The nearest point of the grid, dimension by dimension; what lies beyond the grid goes to its edge. [n, e] to [n, e]."""
    assert bounded.shape[1] == len(levels)
    counts, half = torch.tensor(levels).to(bounded), halves(levels, symmetric).to(bounded)
    between = counts // 2 - half  # .5 where zero is no value but lies between two
    steps = torch.minimum(torch.maximum(torch.round(bounded * half - between), -(counts // 2)), (counts - 1) // 2)
    return (steps + between) / half


def points(levels: Sequence[int], symmetric: bool = False) -> np.ndarray:
    """Every point of the grid, float32 [K, d], in the order of their codes: the first dimension changes fastest."""
    sizes = np.array(levels)
    steps = np.concatenate([[1], np.cumprod(sizes)[:-1]])  # prod_{j < i} n_j
    digits = np.arange(math.prod(levels))[:, None] // steps % sizes
    half = halves(levels, symmetric).numpy()
    return ((digits - half) / half).astype(np.float32)


def codes_of(grid_points: Tensor, levels: Sequence[int], symmetric: bool = False) -> Tensor:
    """The code of each grid point [n, d], int64 [n]."""
    counts = torch.tensor(levels, device=grid_points.device)
    steps = torch.cat([counts.new_ones(1), counts.cumprod(0)[:-1]])
    half = halves(levels, symmetric).to(grid_points)
    return (torch.round(grid_points * half + half).long() * steps).sum(1)


def grid_codebooks(levels: Sequence[int], tokens: int, form: str, symmetric: bool = False) -> Codebooks:
    """The grids of all tokens as codebooks: [K, tokens * d] each for `groups`, zero outside the token's own d; [K, d] for `residual`."""
    grid, d = points(levels, symmetric), len(levels)
    if form == "residual":
        shrink = 1.0 / (np.array(levels, dtype=np.float64) - 1)
        return Codebooks([(grid * shrink**token).astype(np.float32) for token in range(tokens)])
    assert form == "groups"
    books = [np.zeros((len(grid), tokens * d), dtype=np.float32) for _ in range(tokens)]
    for token, book in enumerate(books):
        book[:, token * d : (token + 1) * d] = grid
    return Codebooks(books)
