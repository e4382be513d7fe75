"""Histories as one sparse matrix: what item-KNN and SLIT multiply."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def history_matrix(histories: list[np.ndarray], n_items: int, decay: float = 1.0) -> sparse.csr_array:
    """Sparse float64 [B, N]: decay ** (items since) at each history item, its latest occurrence where it repeats; items of N and above
    count as ones since and have no entry."""
    lengths = [len(history) for history in histories]
    rows = np.repeat(np.arange(len(histories)), lengths)
    columns = np.concatenate(histories)
    ages = np.concatenate([np.arange(length)[::-1] for length in lengths])
    latest_first = np.lexsort((ages, columns, rows))
    rows, columns, ages = rows[latest_first], columns[latest_first], ages[latest_first]
    is_latest = np.ones(len(rows), bool)
    is_latest[1:] = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1])
    is_latest &= columns < n_items
    entries = (decay ** ages[is_latest].astype(np.float64), (rows[is_latest], columns[is_latest]))
    return sparse.csr_array(entries, shape=(len(histories), n_items))
