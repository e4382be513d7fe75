"""Item-KNN: each item of the history votes for the items that the same users took, the latest item the most.

A tiny multiple of the items' popularity orders items that the history says nothing of.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import sparse

from sidrec.baselines.histories import history_matrix
from sidrec.baselines.popularity import train_popularity
from sidrec.baselines.scorer import more_popular_first, valid_recall
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.pipeline.screen import Screen

SHRINKS, NEIGHBOURS, DECAYS = (0.0, 5.0, 20.0), (20, 50), (1.0, 0.9, 0.8, 0.7)


@dataclass(frozen=True)
class ItemKnn:
    """similarities: sparse [N, N], row i holds the neighbours that item i votes for. decay: weight of a history item relative to
    the one after it; 1 counts all alike."""

    similarities: sparse.csr_array
    popularity: np.ndarray
    decay: float
    name: str = "item_knn"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        votes = history_matrix(histories, len(self.popularity), self.decay) @ self.similarities
        return more_popular_first(votes.toarray(), self.popularity)


def fit_item_knn(
    train_sequences: list[np.ndarray], n_items: int, neighbours: int, shrink: float, decay: float = 1.0
) -> ItemKnn:
    """Cosine of the items' binary user vectors, |users of both| / (sqrt(|users of i| |users of j|) + shrink).

    Of each item the `neighbours` most similar others are kept (ties: the lower index). A candidate's score is the sum of its
    similarities to the history's items, each weighted by decay ** (items since).
    """
    similarities = cosine_similarities(train_sequences, n_items, shrink)
    return ItemKnn(keep_largest(similarities, neighbours), train_popularity(train_sequences, n_items), decay)


def cosine_similarities(train_sequences: list[np.ndarray], n_items: int, shrink: float) -> sparse.csr_array:
    """The shrunk cosine of every two items with a common user; sparse [N, N], no diagonal."""
    users = history_matrix(train_sequences, n_items)
    common = (users.T @ users).tocoo()
    item_users = users.sum(axis=0)
    others = common.row != common.col
    rows, columns, counts = common.row[others], common.col[others], common.data[others]
    cosines = counts / (np.sqrt(item_users[rows] * item_users[columns]) + shrink)
    return sparse.csr_array((cosines, (rows, columns)), shape=(n_items, n_items))


def keep_largest(matrix: sparse.csr_array, count: int) -> sparse.csr_array:
    """The `count` largest entries of each row; of equal ones the lower column."""
    return keep_first(places_in_rows(matrix), count)


def places_in_rows(matrix: sparse.csr_array) -> tuple[sparse.coo_array, np.ndarray]:
    """The matrix's entries sorted by row, then falling value, then column, and each one's place (0, 1, …) in its row."""
    entries = matrix.tocoo()
    order = np.lexsort((entries.col, -entries.data, entries.row))
    rows, columns, values = entries.row[order], entries.col[order], entries.data[order]
    places = np.arange(len(rows)) - np.searchsorted(rows, np.arange(matrix.shape[0]))[rows]
    return sparse.coo_array((values, (rows, columns)), shape=matrix.shape), places


def keep_first(sorted_entries: tuple[sparse.coo_array, np.ndarray], count: int) -> sparse.csr_array:
    """Of what `places_in_rows` gives, the entries at places below `count`."""
    entries, places = sorted_entries
    is_first = places < count
    return sparse.csr_array(
        (entries.data[is_first], (entries.row[is_first], entries.col[is_first])), shape=entries.shape
    )


def tune_item_knn(dataset: Dataset, valid: EvalCases, screen: Screen | None = None) -> tuple[ItemKnn, Tuning]:
    """The item-KNN with the best valid Recall@10, seen items masked; of equal ones the first of the grid.

    Grid: shrink 0, 5, 20; neighbours 20, 50, all; decay 1, 0.9, 0.8, 0.7. screen: where its bar is drawn.
    """
    sequences, n_items = dataset.train_sequences, dataset.n_items
    popularity = train_popularity(sequences, n_items)
    settings = list(product(SHRINKS, (*NEIGHBOURS, n_items), DECAYS))
    best, recalls = None, [-1.0]
    by_shrink = {shrink: places_in_rows(cosine_similarities(sequences, n_items, shrink)) for shrink in SHRINKS}
    screen = screen or Screen("item-KNN", quiet=True)
    with screen.bar("item-KNN", len(settings), "settings") as bar:
        for shrink, neighbours, decay in settings:
            candidate = ItemKnn(keep_first(by_shrink[shrink], neighbours), popularity, decay)
            recall = valid_recall(candidate, valid)
            if recall > max(recalls):
                best = candidate
            recalls.append(recall)
            bar.advance()
    assert best is not None
    names = ("shrink", "neighbours", "decay")
    return best, Tuning([dict(zip(names, row, strict=True)) for row in settings], recalls[1:])
