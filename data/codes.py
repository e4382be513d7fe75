"""Ids as integers: Polars' categorical codes, four bytes per id. K-core, splits and numbering work on them.

Polars keeps the codes of an id for as long as a categorical column with it lives; nothing that is written depends on them.
"""

from __future__ import annotations

import numpy as np
import polars as pl


def codes(ids: pl.Series) -> np.ndarray:
    """uint32 [rows]: one code per distinct id.

    ids: categoricals, whose codes are the same in all of them that live at one time, or strings, whose codes hold in this array only.
    """
    return ids.cast(pl.Categorical).to_physical().to_numpy()


def ranks(ids: pl.Series) -> np.ndarray:
    """uint32 [rows]: the position of each row's id in the sorted list of distinct ids, as strings."""
    ids = ids.cast(pl.Categorical)  # lives until the end, so that `code` and `ordered` mean the same
    code = codes(ids)
    ordered = codes(ids.unique().cast(pl.String).sort().cast(pl.Categorical))
    rank = np.zeros(int(code.max(initial=0)) + 1, dtype=np.uint32)
    rank[ordered] = np.arange(len(ordered), dtype=np.uint32)
    return rank[code]


def run_ends(code: np.ndarray) -> np.ndarray:
    """int64 [runs]: the last row of every value, in an array [rows] whose equal values stand together."""
    assert code.ndim == 1, f"codes must be [rows], got {code.shape}"
    last = np.ones(len(code), dtype=bool)
    np.not_equal(code[1:], code[:-1], out=last[:-1])
    return np.flatnonzero(last)
