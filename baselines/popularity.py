"""Popularity and recent popularity: the same list for everyone, by what was taken in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sidrec.baselines.scorer import more_popular_first, valid_recall
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.pipeline.screen import Screen

HALF_LIVES = tuple(4.0**-power for power in range(8))  # shares of the training log's time span


@dataclass(frozen=True)
class Popularity:
    """The same list for everyone. popularity: float [N], share of the training interactions, or of their weights."""

    popularity: np.ndarray
    name: str = "popularity"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return np.tile(self.popularity, (len(histories), 1))


def train_popularity(train_sequences: list[np.ndarray], n_items: int) -> np.ndarray:
    """Each item's share of the training interactions, float32 [N]."""
    counts = np.bincount(np.concatenate(train_sequences), minlength=n_items)
    return (counts / counts.sum()).astype(np.float32)


def fit_popularity(train_sequences: list[np.ndarray], n_items: int) -> Popularity:
    """Items by their number of training interactions."""
    return Popularity(train_popularity(train_sequences, n_items))


def fit_recent_popularity(items: np.ndarray, times: np.ndarray, n_items: int, half_life: float) -> Popularity:
    """Items by their training interactions, each weighted by 0.5 ** (age / half_life), ages counted from the newest one.

    items: int [interactions]; times: [interactions], in any unit; half_life: in the same unit. Items of no weight, or of the same, are
    ordered by their number of interactions.
    """
    ages = times.max() - times.astype(np.float64)
    weights = np.bincount(items, weights=0.5 ** (ages / half_life), minlength=n_items)
    counts = np.bincount(items, minlength=n_items)
    return Popularity(more_popular_first(weights / weights.sum(), counts), "recent_popularity")


def tune_recent_popularity(
    dataset: Dataset, valid: EvalCases, screen: Screen | None = None
) -> tuple[Popularity, Tuning]:
    """Recent popularity with the half-life of the best valid Recall@10, seen items masked.

    Grid: the time between the oldest and the newest training interaction, and 1/4, 1/16, … 1/16384 of it. screen: where its bar is drawn.
    """
    train = dataset.interactions.filter(pl.col("split") == "train")
    items, times = train["item_index"].to_numpy(), train["timestamp"].to_numpy()
    span = max(float(times.max()) - float(times.min()), 1.0)
    fitted = [fit_recent_popularity(items, times, dataset.n_items, span * share) for share in HALF_LIVES]
    recalls = []
    screen = screen or Screen("recent popularity", quiet=True)
    with screen.bar("recent popularity", len(fitted), "settings") as bar:
        for scorer in fitted:
            recalls.append(valid_recall(scorer, valid))
            bar.advance()
    tuning = Tuning([{"half_life": span * share} for share in HALF_LIVES], recalls)
    return fitted[tuning.chosen], tuning
