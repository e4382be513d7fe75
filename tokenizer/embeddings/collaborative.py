"""Who takes what after what → item vectors: truncated SVD of the shifted positive PMI of co-occurring items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.embeddings.truncated_svd import truncated_svd
from sidrec.tokenizer.embeddings.unit_rows import unit_rows


def cooccurrence(
    sequences: list[np.ndarray], n_items: int, window: int, screen: Screen | None = None
) -> sparse.csr_array:
    """Weighted counts of items near each other: 1/d for every two positions of one user that lie d <= `window` apart.

    sequences: each user's items (indices below `n_items`) in time order. Returns a symmetric sparse float64 [n_items,
    n_items] with an empty diagonal (an item beside itself says nothing about others).
    """
    assert window >= 1, f"window must be at least 1, got {window}"
    items = np.concatenate(sequences) if sequences else np.zeros(0, dtype=np.int64)
    user = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    counts = sparse.csr_array((n_items, n_items), dtype=np.float64)
    distances = range(1, min(window, len(items) - 1) + 1)
    with (screen or Screen("", quiet=True)).bar("pairs of items", len(distances), "distances") as bar:
        for distance in distances:
            first, second = items[:-distance], items[distance:]
            counted = (user[:-distance] == user[distance:]) & (first != second)
            pairs = (first[counted], second[counted])
            weights = np.full(len(pairs[0]), 1.0 / distance)
            counts = counts + sparse.coo_array((weights, pairs), shape=counts.shape).tocsr()  # adds equal pairs up
            bar.advance()
    return (counts + counts.T).tocsr()


def shifted_ppmi(counts: sparse.csr_array, negatives: float = 1.0, alpha: float = 0.75) -> sparse.csr_array:
    """Shifted positive pointwise mutual information of an item-item count matrix #(i, j).

    SPPMI(i, j) = max( log( #(i, j) / (#(i) · P_alpha(j)) ) - log(negatives), 0 ),
    #(i) = sum over j of #(i, j),  P_alpha(j) = #(j)^alpha / sum over j' of #(j')^alpha.
    `alpha` < 1 smooths the contexts' distribution, so that rare contexts do not get the largest values. Sparse [N, N]
    in and out.
    """
    assert counts.shape[0] == counts.shape[1]
    assert negatives >= 1
    totals = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = totals**alpha
    context = smoothed / max(smoothed.sum(), np.finfo(np.float64).tiny)
    pairs = counts.tocoo()
    row, column = pairs.coords
    values = np.log(pairs.data / (totals[row] * context[column])) - np.log(negatives)
    positive = values > 0
    entries = (values[positive], (row[positive], column[positive]))
    return sparse.coo_array(entries, shape=counts.shape).tocsr()


def ppmi_svd(
    sequences: list[np.ndarray],
    n_items: int,
    dim: int,
    seed: int,
    window: int = 10,
    negatives: float = 1,
    screen: Screen | None = None,
) -> np.ndarray:
    """Embed items by truncated SVD of SPPMI = U S V^T, rows U·sqrt(S) scaled to length 1 (Levy & Goldberg, NIPS 2014).

    What word2vec's skip-gram with `negatives` negative samples factorises implicitly, computed directly: no training,
    one seed. The counts are `cooccurrence`'s, the formula `shifted_ppmi`'s; pass training sequences only. screen: where progress is
    shown. Returns float32 [n_items, D], D = `dim` or less where the data allow less. An item without positive PMI (never seen in
    training, or always alone) gets a vector of length 1e-4 in a direction drawn from `seed` (see `unit_rows`): close
    to no item in particular. Raises InputError when that is all items.
    """
    assert dim >= 1, f"dim must be at least 1, got {dim}"
    matrix = shifted_ppmi(cooccurrence(sequences, n_items, window, screen), negatives)
    if matrix.nnz == 0:
        raise InputError(
            "the training part of interactions.parquet has no two items that occur together more often than by chance, "
            "so there is nothing to make collaborative vectors from; leave the source out with --sources text --weights 1."
        )
    left, singular, _ = truncated_svd(matrix, dim, seed, screen)
    return unit_rows(left * np.sqrt(singular), seed)


@dataclass(frozen=True)
class Unknown:
    """What stands for the collaborative vector of an item that comes later, about which the log says nothing: float32 [D], of length 1e-4,
    as `ppmi_svd` gives the first item of the catalogue without evidence."""

    vector: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, seed: int) -> Unknown:
        """vectors: float32 [N, D], of the catalogue."""
        return cls(unit_rows(np.zeros((1, vectors.shape[1])), seed)[0])

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [n, D], one row for each of the texts, whatever they say."""
        return np.tile(self.vector, (len(texts), 1))

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and arrays, from which `restored` makes it again."""
        return {}, {"vector": self.vector}

    @classmethod
    def restored(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Unknown:
        return cls(arrays["vector"])
