"""A first-order Markov chain: the last item alone says what comes next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from sidrec.baselines.popularity import train_popularity
from sidrec.baselines.scorer import more_popular_first


@dataclass(frozen=True)
class Markov:
    """transitions: sparse [N, N], probability of the next item after item i, where i was seen before; rows of others are empty."""

    transitions: sparse.csr_array
    popularity: np.ndarray
    name: str = "markov"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        last = np.array([history[-1] for history in histories])
        return more_popular_first(self.transitions[last].toarray(), self.popularity)


def fit_markov(train_sequences: list[np.ndarray], n_items: int) -> Markov:
    """P(next item | last item) from the training sequences' neighbouring pairs; unseen pairs and states fall back on popularity."""
    before = np.concatenate([sequence[:-1] for sequence in train_sequences])
    after = np.concatenate([sequence[1:] for sequence in train_sequences])
    counts = sparse.coo_array((np.ones(len(before)), (before, after)), shape=(n_items, n_items)).tocsr()
    totals = np.maximum(counts.sum(axis=1), 1.0)
    transitions = sparse.csr_array(counts.multiply(1.0 / totals[:, None]))
    return Markov(transitions, train_popularity(train_sequences, n_items))
