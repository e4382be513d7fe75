"""Baselines without gradient descent: popularity, recent popularity, item-KNN and a first-order Markov chain, all fitted on the
train part only.

A scorer has a `name` and `scores(histories) -> float32 [B, N]`. Item-KNN and Markov add a tiny multiple of the items' popularity,
so that items they know nothing of are ordered by it instead of being tied.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import polars as pl
from rich.progress import track
from scipy import sparse

from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import mask_seen, rank_of_target, recall_at

TIE_BREAK = 1e-6
HALF_LIVES = tuple(4.0**-power for power in range(8))  # of recent popularity: shares of the training log's time span
ROWS_TOGETHER = 512


class Scorer(Protocol):
    """Anything that gives every item of the catalogue a score after a history."""

    @property
    def name(self) -> str: ...

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Histories (item indices, oldest first) -> float32 [B, N], higher is better."""
        ...


@dataclass(frozen=True)
class Tuning:
    """What was tried and how it did. grid: the settings; values: the valid `metric` of each, seen items masked."""

    grid: list[dict[str, Any]]
    values: list[float]
    metric: str = "recall@10"

    @property
    def chosen(self) -> int:
        """The best one's index; of equal ones the first."""
        return int(np.argmax(self.values))


@dataclass(frozen=True)
class Popularity:
    """The same list for everyone. popularity: float32 [N], share of the training interactions, or of their weights."""

    popularity: np.ndarray
    name: str = "popularity"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return np.tile(self.popularity, (len(histories), 1))


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
        return (votes.toarray() + TIE_BREAK * self.popularity).astype(np.float32)


@dataclass(frozen=True)
class Markov:
    """transitions: sparse [N, N], probability of the next item after item i, where i was seen before; rows of others are empty."""

    transitions: sparse.csr_array
    popularity: np.ndarray
    name: str = "markov"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        last = np.array([history[-1] for history in histories])
        return (self.transitions[last].toarray() + TIE_BREAK * self.popularity).astype(np.float32)


def history_matrix(histories: list[np.ndarray], n_items: int, decay: float = 1.0) -> sparse.csr_array:
    """Sparse float64 [B, N]: decay ** (items since) at each history item, its latest occurrence where it repeats."""
    lengths = [len(history) for history in histories]
    rows = np.repeat(np.arange(len(histories)), lengths)
    columns = np.concatenate(histories)
    ages = np.concatenate([np.arange(length)[::-1] for length in lengths])
    latest_first = np.lexsort((ages, columns, rows))
    rows, columns, ages = rows[latest_first], columns[latest_first], ages[latest_first]
    is_latest = np.ones(len(rows), bool)
    is_latest[1:] = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1])
    entries = (decay ** ages[is_latest].astype(np.float64), (rows[is_latest], columns[is_latest]))
    return sparse.csr_array(entries, shape=(len(histories), n_items))


def train_popularity(train_sequences: list[np.ndarray], n_items: int) -> np.ndarray:
    """Each item's share of the training interactions, float32 [N]."""
    counts = np.bincount(np.concatenate(train_sequences), minlength=n_items)
    return (counts / counts.sum()).astype(np.float32)


def fit_popularity(train_sequences: list[np.ndarray], n_items: int) -> Popularity:
    """Items by their number of training interactions."""
    return Popularity(train_popularity(train_sequences, n_items))


def fit_recent_popularity(items: np.ndarray, times: np.ndarray, n_items: int, half_life: float) -> Popularity:
    """Items by their training interactions, each weighted by 0.5 ** (age / half_life), ages counted from the newest one.

    items: int [interactions]; times: [interactions], in any unit; half_life: in the same unit. Items of about no weight are
    ordered by their number of interactions.
    """
    ages = times.max() - times.astype(np.float64)
    weights = np.bincount(items, weights=0.5 ** (ages / half_life), minlength=n_items)
    counts = np.bincount(items, minlength=n_items)
    popularity = weights / weights.sum() + TIE_BREAK * counts / counts.sum()
    return Popularity(popularity.astype(np.float32), "recent_popularity")


def tune_recent_popularity(dataset: Dataset, valid: EvalCases) -> tuple[Popularity, Tuning]:
    """Recent popularity with the half-life of the best valid Recall@10, seen items masked.

    Grid: the time between the oldest and the newest training interaction, and 1/4, 1/16, … 1/16384 of it.
    """
    train = dataset.interactions.filter(pl.col("split") == "train")
    items, times = train["item_index"].to_numpy(), train["timestamp"].to_numpy()
    span = max(float(times.max()) - float(times.min()), 1.0)
    fitted = [fit_recent_popularity(items, times, dataset.n_items, span * share) for share in HALF_LIVES]
    recalls = [float(recall_at(rank_cases(each, valid, masked=True), 10).mean()) for each in fitted]
    tuning = Tuning([{"half_life": span * share} for share in HALF_LIVES], recalls)
    return fitted[tuning.chosen], tuning


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
    kept = places < count
    return sparse.csr_array((entries.data[kept], (entries.row[kept], entries.col[kept])), shape=entries.shape)


def tune_item_knn(dataset: Dataset, valid: EvalCases) -> ItemKnn:
    """The first of what `try_item_knn` gives."""
    return try_item_knn(dataset, valid)[0]


def try_item_knn(dataset: Dataset, valid: EvalCases) -> tuple[ItemKnn, Tuning]:
    """The item-KNN with the best valid Recall@10, seen items masked; of equal ones the first of the grid.

    Grid: shrink 0, 5, 20; neighbours 20, 50, all; decay 1, 0.9, 0.8, 0.7.
    """
    sequences, n_items = dataset.train_sequences, dataset.n_items
    popularity = train_popularity(sequences, n_items)
    shrinks = (0.0, 5.0, 20.0)
    grid = list(product(shrinks, (20, 50, n_items), (1.0, 0.9, 0.8, 0.7)))
    best, recalls = None, [-1.0]
    by_shrink = {shrink: places_in_rows(cosine_similarities(sequences, n_items, shrink)) for shrink in shrinks}
    for shrink, neighbours, decay in track(grid, "item-KNN: settings tried", transient=True):
        candidate = ItemKnn(keep_first(by_shrink[shrink], neighbours), popularity, decay)
        recall = float(recall_at(rank_cases(candidate, valid, masked=True), 10).mean())
        if recall > max(recalls):
            best = candidate
        recalls.append(recall)
    assert best is not None
    names = ("shrink", "neighbours", "decay")
    return best, Tuning([dict(zip(names, settings, strict=True)) for settings in grid], recalls[1:])


def fit_markov(train_sequences: list[np.ndarray], n_items: int) -> Markov:
    """P(next item | last item) from the training sequences' neighbouring pairs; unseen pairs and states fall back on popularity."""
    before = np.concatenate([sequence[:-1] for sequence in train_sequences])
    after = np.concatenate([sequence[1:] for sequence in train_sequences])
    counts = sparse.coo_array((np.ones(len(before)), (before, after)), shape=(n_items, n_items)).tocsr()
    totals = np.maximum(counts.sum(axis=1), 1.0)
    transitions = sparse.csr_array(counts.multiply(1.0 / totals[:, None]))
    return Markov(transitions, train_popularity(train_sequences, n_items))


def gains(scorer: Scorer, histories: list[np.ndarray]) -> np.ndarray:
    """What each item would gain if the scorer's ranking of the items outside the history were right, float32 [B, N].

    It is 1 / log2(1 + place), NDCG's discount, at places 1, 2, … (ties: the lower index first), and 0 for an item of the history.
    """
    scores = mask_seen(scorer.scores(histories), histories)
    order = np.argsort(-scores, axis=1, kind="stable")
    discounts = (1 / np.log2(2 + np.arange(scores.shape[1]))).astype(np.float32)
    found = np.empty(scores.shape, dtype=np.float32)
    np.put_along_axis(found, order, np.broadcast_to(discounts, scores.shape), axis=1)
    return np.where(np.isneginf(scores), np.float32(0), found)


def rank_cases(scorer: Scorer, cases: EvalCases, masked: bool) -> np.ndarray:
    """Ranks of the cases' targets over the whole catalogue, int64 [B]; `masked`: without each case's history items."""
    ranks = []
    for start in range(0, len(cases), ROWS_TOGETHER):
        part = cases.take(np.arange(start, min(start + ROWS_TOGETHER, len(cases))))
        scores = scorer.scores(part.histories)
        assert scores.shape[0] == len(part)
        ranks.append(rank_of_target(mask_seen(scores, part.histories) if masked else scores, part.targets))
    return np.concatenate(ranks)
