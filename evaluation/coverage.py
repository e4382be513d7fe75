"""How much of the catalogue recommended lists show, and how evenly: coverage, Gini coefficient, entropy."""

from __future__ import annotations

import math

import numpy as np

from sidrec.data.metrics import NO_ITEM
from sidrec.tokenizer.report.sid_metrics import entropy, gini


def count_items(items: np.ndarray, n_items: int) -> np.ndarray:
    """How often each item stands in the lists, int64 [N]. items: int of any shape, -1 for "no item"."""
    return np.bincount(items[items != NO_ITEM], minlength=n_items)


def spread(counts: np.ndarray) -> dict[str, float]:
    """coverage: share of the catalogue with a count above 0. gini: 0 when all items have the same count, near 1 when one has all.
    entropy: of a drawn entry's item, in nats; effective_items: e^entropy, so many equally frequent items would have that entropy.

    counts: int [N], not all 0.
    """
    assert counts.sum() > 0, "there is no item in any list"
    nats = entropy(counts)
    coverage = float((counts > 0).mean())
    return {"coverage": coverage, "gini": gini(counts), "entropy": nats, "effective_items": math.exp(nats)}


def lorenz(counts: np.ndarray) -> np.ndarray:
    """Share of all entries that the rarest 0, 1, …, N items have together, float64 [N + 1]. counts: int [N]."""
    return np.concatenate([[0.0], np.cumsum(np.sort(counts)) / counts.sum()])
