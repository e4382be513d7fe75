"""How varied and how new recommended lists are: intra-list diversity and novelty."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from sidrec.data.metrics import NO_ITEM

PAIRS_TOGETHER = 1 << 18


def novelty(items: np.ndarray, counts: np.ndarray) -> float:
    """Mean surprise of the lists' entries, in bits: -log2 of the item's share of the training interactions, one added to every item.

    items: int64 [lists, k], NO_ITEM where there are fewer. counts: int64 [N], training interactions.
    """
    shares = (counts + 1) / (counts.sum() + len(counts))
    return float(-np.log2(shares[items[items != NO_ITEM]]).mean())


def diversity(items: np.ndarray, takers: sparse.csr_array) -> float | None:
    """Mean over lists of 1 - the mean cosine of two of its items' takers, 0 to 1; None where no list has two items.

    items: int64 [lists, k], NO_ITEM where there are fewer. takers: see `takers_of`.
    """
    first, second = np.triu_indices(items.shape[1], k=1)
    pairs = np.sort(np.stack([items[:, first], items[:, second]], axis=2), axis=2)  # [lists, pairs, 2]
    whole = (pairs != NO_ITEM).all(2)
    numbers = np.where(whole, pairs[..., 0] * takers.shape[0] + pairs[..., 1], -1)
    distinct, place = np.unique(numbers, return_inverse=True)
    cosines = np.zeros(len(distinct))
    for part in np.split(np.arange(len(distinct)), range(PAIRS_TOGETHER, len(distinct), PAIRS_TOGETHER)):
        one, other = np.divmod(distinct[part].clip(0), takers.shape[0])
        cosines[part] = takers[one].multiply(takers[other]).sum(1)
    counts = whole.sum(1)
    sums = (cosines[place.reshape(whole.shape)] * whole).sum(1)
    return float((1 - sums[counts > 0] / counts[counts > 0]).mean()) if counts.any() else None


def takers_of(train_sequences: list[np.ndarray], n_items: int) -> sparse.csr_array:
    """Sparse float64 [N, users]: row i has the users who took item i in training, scaled to length 1; 0 where nobody did."""
    users = np.repeat(np.arange(len(train_sequences)), [len(sequence) for sequence in train_sequences])
    entries = (np.ones(len(users)), (np.concatenate(train_sequences), users))
    takers = sparse.csr_array(entries, shape=(n_items, len(train_sequences)))
    takers.data[:] = 1  # an item taken twice counts once
    lengths = np.sqrt(takers.sum(1))
    return sparse.csr_array(takers.multiply(1 / np.maximum(lengths, 1)[:, None]))
