"""Item indices as callers give them: any sequence of whole numbers, and one sentence for anything else."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from sidrec.pipeline.errors import InputError


def item_indices(values: Any, name: str) -> np.ndarray:
    """int64 [n]. name: what the values are, for the sentence. Raises InputError for what is no sequence of whole numbers."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.max() > np.iinfo(np.int64).max:
        raise InputError(
            f"{name} is {_shown(values)}; it must be item indices, whole numbers one after the other, such as [3, 14]."
        )
    return array.astype(np.int64)


def item_histories(histories: Any) -> list[np.ndarray]:
    """Of every history its int64 [n]. Raises InputError naming the first that is none."""
    if isinstance(histories, str | bytes | dict) or not isinstance(histories, Iterable):
        raise InputError(f"the histories are {_shown(histories)}; give a list with one list of item indices for each.")
    return [item_indices(history, f"history {row}") for row, history in enumerate(histories)]


def at_least_one(value: Any, name: str) -> int:
    """`value` as an int. Raises InputError unless it is a whole number above 0."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} is {_shown(value)}; it must be a whole number above 0.")
    return number


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:60] + "…"
