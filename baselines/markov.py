"""Markov chains: what came next in training after the last item, or, with a decay, after each of the last items."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from sidrec.baselines.histories import history_matrix
from sidrec.baselines.popularity import train_popularity
from sidrec.baselines.scorer import more_popular_first, valid_recall
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.pipeline.screen import Screen

DECAYS = (0.2, 0.4, 0.6, 0.8, 0.9)


@dataclass(frozen=True)
class Markov:
    """transitions: sparse [N, N], probability of the next item after item i, where i was seen before; rows of others are empty. decay:
    weight of an item of the history relative to the one after it; 0: the last item alone."""

    transitions: sparse.csr_array
    popularity: np.ndarray
    decay: float = 0.0
    name: str = "markov"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        read = histories if self.decay else [history[-1:] for history in histories]
        weights = history_matrix(read, len(self.popularity), self.decay or 1.0)
        return more_popular_first((weights @ self.transitions).toarray(), self.popularity)


def fit_markov(train_sequences: list[np.ndarray], n_items: int) -> Markov:
    """P(next item | last item) from the training sequences' neighbouring pairs; unseen pairs and states fall back on popularity."""
    before = np.concatenate([sequence[:-1] for sequence in train_sequences])
    after = np.concatenate([sequence[1:] for sequence in train_sequences])
    counts = sparse.coo_array((np.ones(len(before)), (before, after)), shape=(n_items, n_items)).tocsr()
    totals = np.maximum(counts.sum(axis=1), 1.0)
    transitions = sparse.csr_array(counts.multiply(1.0 / totals[:, None]))
    return Markov(transitions, train_popularity(train_sequences, n_items))


def fit_markov_decay(train_sequences: list[np.ndarray], n_items: int, decay: float) -> Markov:
    """The same transitions, from every item of the history, each worth `decay` times the one after it."""
    return replace(fit_markov(train_sequences, n_items), decay=decay, name="markov_decay")


def tune_markov_decay(dataset: Dataset, valid: EvalCases, screen: Screen | None = None) -> tuple[Markov, Tuning]:
    """The one of DECAYS with the best valid Recall@10, seen items masked; of equal ones the first. screen: where its bar is drawn."""
    chain, recalls = fit_markov_decay(dataset.train_sequences, dataset.n_items, DECAYS[0]), []
    with (screen or Screen("Markov", quiet=True)).bar("Markov with decay", len(DECAYS), "settings") as bar:
        for decay in DECAYS:
            recalls.append(valid_recall(replace(chain, decay=decay), valid))
            bar.advance()
    tuning = Tuning([{"decay": decay} for decay in DECAYS], recalls)
    return replace(chain, decay=DECAYS[tuning.chosen]), tuning
