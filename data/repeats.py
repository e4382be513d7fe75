"""Rows of a log that say what an earlier one says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

ROWS_TOGETHER = 1 << 20  # compared at once
HASH_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)  # odd and far apart


def first_of_equals(keys: Sequence[np.ndarray]) -> np.ndarray:
    """bool [rows]: whether no row before it has the same keys. keys: one to three arrays of integers [rows].

    Equal rows have equal hashes, and only rows whose hash occurs again are compared: without repeats that is one sort of 8 bytes a row.
    """
    assert len({key.shape for key in keys}) == 1, f"keys must be [rows] each, got {[key.shape for key in keys]}"
    hashes = np.zeros(len(keys[0]), dtype=np.uint64)
    for key, factor in zip(keys, HASH_FACTORS, strict=False):
        hashes += key.astype(np.uint64) * np.uint64(factor)
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    is_first = np.ones(len(hashes), dtype=bool)
    if not len(repeated):
        return is_first
    suspects = np.flatnonzero(np.isin(hashes, repeated))
    n_parts = 1 + len(suspects) // ROWS_TOGETHER
    for part in range(n_parts):
        rows = suspects[hashes[suspects] % np.uint64(n_parts) == part]  # equal rows are in one part
        equal = pl.DataFrame({str(place): key[rows] for place, key in enumerate(keys)})
        is_first[rows] = equal.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return is_first


def count_again(users: np.ndarray, items: np.ndarray) -> int:
    """How many rows have the user and the item of another row before them. users, items: uint32 [rows]."""
    assert users.shape == items.shape, f"users {users.shape} and items {items.shape} must be [rows] each"
    pairs = np.sort(users.astype(np.uint64) << np.uint64(32) | items)
    return int((pairs[1:] == pairs[:-1]).sum())
