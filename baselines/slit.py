"""SLIT (arXiv 2103.16104): a linear map from what a user took lately to what they take next, in closed form.

Every position of every training sequence is a row: s, its items so far, each worth `past` times the one after it, and t, the items
that follow, each worth `future` times the one before it. B minimises Σ |t - s B|² + ridge · |B|², so B = (SᵀS + ridge · I)⁻¹ SᵀT. A
history is scored by its items, each worth `decay` times the one after it, times B. It is fitted in seconds to minutes, and on small
data it is hard to beat. Of the paper's SLIST it is the half that knows the order; its weights of rows are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from sidrec.baselines.histories import history_matrix
from sidrec.baselines.popularity import train_popularity
from sidrec.baselines.scorer import more_popular_first, valid_recall
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.pipeline.screen import Screen

MATRICES = 6  # of items x items float32 numbers are held while it is tuned, at most
DENSE = 0.1  # share of entries that are not 0, above which a matrix is multiplied as a dense one
REACH = 30  # items before and after a position that are counted
MOST_CASES = 8000  # valid cases, drawn, that it is tuned on
LEAST_WEIGHT = 0.01  # those that would weigh less are not
ROWS_TOGETHER = 1 << 17  # positions whose rows are held at once

PASTS, FUTURES, RIDGES, DECAYS = (0.7, 0.9), (0.5, 0.9), (10.0, 100.0), (0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Slit:
    """weights: B, float32 [N, N], row i says what follows item i. popularity: float32 [N]. decay: weight of a history item relative to
    the one after it."""

    weights: np.ndarray
    popularity: np.ndarray
    decay: float
    name: str = "slit"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        recent = history_matrix(histories, len(self.popularity), self.decay).astype(np.float32)
        return more_popular_first(recent @ self.weights, self.popularity)


def fit_slit(
    train_sequences: list[np.ndarray], n_items: int, past: float, future: float, ridge: float, decay: float
) -> Slit:
    """past, future, decay: 0 (the nearest item alone) to 1; ridge: above 0."""
    squares, products = moments(train_sequences, n_items, past, future)
    weights = times(ridge_inverse(squares, ridge), products)
    return Slit(weights, train_popularity(train_sequences, n_items), decay)


def tune_slit(dataset: Dataset, valid: EvalCases, screen: Screen | None = None) -> tuple[Slit, Tuning]:
    """The SLIT with the best Recall@10 on MOST_CASES valid cases, seen items masked; of equal ones the first of the grid of PASTS, RIDGES,
    FUTURES, DECAYS. screen: where its bar is drawn."""
    sequences, n_items = dataset.train_sequences, dataset.n_items
    cases = valid.first_of_shuffle(MOST_CASES, seed=0)
    popularity = train_popularity(sequences, n_items)
    best, grid, recalls = None, [], []
    screen = screen or Screen("SLIT", quiet=True)
    with screen.bar("SLIT", len(PASTS) * len(FUTURES) * len(RIDGES) * len(DECAYS), "settings") as bar:
        for past in PASTS:
            of_futures = {future: moments(sequences, n_items, past, future) for future in FUTURES}
            squares = of_futures[FUTURES[0]][0]  # the same for all
            for ridge in RIDGES:
                inverse = ridge_inverse(squares, ridge)
                for future, (_, products) in of_futures.items():
                    weights = times(inverse, products)
                    for decay in DECAYS:
                        candidate = Slit(weights, popularity, decay)
                        recall = valid_recall(candidate, cases)
                        if best is None or recall > max(recalls):
                            best = candidate
                        grid.append({"past": past, "future": future, "ridge": ridge, "decay": decay})
                        recalls.append(recall)
                        bar.advance()
    assert best is not None
    return best, Tuning(grid, recalls)


def ridge_inverse(squares: sparse.csr_array, ridge: float) -> np.ndarray:
    """(squares + ridge · I)⁻¹, float32 [N, N]; squares is symmetric."""
    system = torch.from_numpy(squares.toarray())
    system.diagonal().add_(ridge)
    return torch.cholesky_inverse(torch.linalg.cholesky(system)).numpy()


def times(inverse: np.ndarray, products: sparse.csr_array) -> np.ndarray:
    """inverse · products, float32 [N, N]; inverse is symmetric. Few items follow one another, so products are seldom dense."""
    assert inverse.shape == products.shape == (len(inverse), len(inverse))
    if products.nnz > DENSE * len(inverse) ** 2:
        return (torch.from_numpy(inverse) @ torch.from_numpy(products.toarray())).numpy()
    return np.ascontiguousarray((products.T @ inverse).T)


def moments(
    train_sequences: list[np.ndarray], n_items: int, past: float, future: float
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """SᵀS and SᵀT over all positions of all training sequences, both sparse float32 [N, N]."""
    squares, products = (sparse.csr_array((n_items, n_items), dtype=np.float32) for _ in range(2))
    for before, after in positions(train_sequences, n_items, weights_of(past), weights_of(future)):
        squares, products = squares + before.T @ before, products + before.T @ after
    return squares, products


def weights_of(decay: float) -> np.ndarray:
    """1, decay, decay², …, float32: at most REACH of them, the first always, and others that are LEAST_WEIGHT or more."""
    powers = (decay ** np.arange(REACH)).astype(np.float32)
    return powers[: max(1, int((powers >= LEAST_WEIGHT).sum()))]


def positions(
    train_sequences: list[np.ndarray], n_items: int, past: np.ndarray, future: np.ndarray
) -> Iterator[tuple[sparse.csr_array, sparse.csr_array]]:
    """S and T, sparse float32 [rows, N], for blocks of about ROWS_TOGETHER positions that have an item before and one after.

    past, future: weights of the nearest item, the one beyond it, …. An item that comes twice counts twice.
    """
    sequences = [sequence for sequence in train_sequences if len(sequence) > 1]
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    block_of = (np.cumsum(lengths) - 1) // ROWS_TOGETHER
    for block in np.unique(block_of):
        first, last = np.searchsorted(block_of, [block, block + 1])
        items = np.concatenate(sequences[first:last])
        user = np.repeat(np.arange(last - first), lengths[first:last])
        place = np.flatnonzero(user[:-1] == user[1:])  # of the newest item before each position
        yield (
            _neighbours(items, user, place, -np.arange(len(past)), past, n_items),
            _neighbours(items, user, place, 1 + np.arange(len(future)), future, n_items),
        )


def _neighbours(
    items: np.ndarray, user: np.ndarray, place: np.ndarray, offsets: np.ndarray, weights: np.ndarray, n_items: int
) -> sparse.csr_array:
    """Sparse float32 [len(place), N]: weights[k] at the item at place + offsets[k], where that is of the same user."""
    at = place[:, None] + offsets
    inside = (at >= 0) & (at < len(items))
    at = at.clip(0, len(items) - 1)
    inside &= user[at] == user[place][:, None]
    rows, which = np.nonzero(inside)
    return sparse.csr_array((weights[which], (rows, items[at[rows, which]])), shape=(len(place), n_items))
