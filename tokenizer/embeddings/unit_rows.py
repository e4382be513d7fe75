"""Rows of one length, with a place for the items about which a source knows nothing."""

from __future__ import annotations

import numpy as np

EMPTY_NORM = 1e-4  # length of a row without evidence, where every other row has length 1
NOISE = 1e-6  # a row shorter than this share of the longest one is rounding noise, not evidence


def unit_rows(vectors: np.ndarray, seed: int, longest: float | None = None) -> np.ndarray:
    """Scale every row to length 1; a zero row becomes a tiny vector instead, and never NaN.

    vectors: [N, D], any float type. Returns float32 [N, D]. A row that is zero (or rounding noise: shorter than 1e-6
    of the longest row) becomes a vector of length 1e-4 in a direction drawn from `seed`, in row order: near the
    origin, so that it is close to no item in particular, yet not exactly equal to another such row. longest: the longest row's length
    where that is not among `vectors`.
    """
    assert vectors.ndim == 2, f"vectors must be [N, D], got {vectors.shape}"
    norms = np.linalg.norm(vectors, axis=1)
    empty = norms <= NOISE * (norms.max(initial=0.0) if longest is None else longest)
    rows = vectors / np.where(empty, 1.0, norms)[:, None]
    directions = np.random.default_rng(seed).standard_normal((int(empty.sum()), vectors.shape[1]))
    rows[empty] = EMPTY_NORM * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return rows.astype(np.float32)
