"""Do a model's probabilities mean what they say? Predicted chance against how often it came true.

The expected calibration error (ECE, arXiv 1706.04599) is the mean, weighted by cases, of the distance between the two in bins. Bins hold
equally many cases instead of equal spans of probability: over a catalogue most predictions are small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sidrec.evaluation.slices import quantile_groups
from sidrec.evaluation.statistics import bootstrap_interval

BINS = 10


def calibrate(
    predicted: np.ndarray, happened: np.ndarray, users: np.ndarray, seed: int, bins: int = BINS
) -> dict[str, Any]:
    """predicted: probabilities, float [B]; happened: bool [B]; users: [B], whose case it is.

    ece: the error; predicted, happened: means over all cases; bins: for each its cases, mean prediction, share that happened, and that
    share's 95 % bootstrap interval over users. Equal predictions share a bin, so there may be fewer than `bins`.
    """
    assert predicted.shape == happened.shape == users.shape
    assert len(predicted) > 0
    assert ((predicted >= 0) & (predicted <= 1)).all()
    group = quantile_groups(predicted, bins)
    rows: list[dict[str, Any]] = []
    for place in np.unique(group):
        member = group == place
        outcomes = happened[member].astype(np.float64)
        share = float(outcomes.mean())
        interval = list(bootstrap_interval(outcomes, seed, users=users[member]))
        mean = float(predicted[member].mean())
        rows.append({"cases": int(member.sum()), "predicted": mean, "happened": share, "interval": interval})
    error = sum(row["cases"] * abs(row["predicted"] - row["happened"]) for row in rows) / len(predicted)
    return {"ece": error, "predicted": float(predicted.mean()), "happened": float(happened.mean()), "bins": rows}


def calibrate_lists(
    items: np.ndarray, log_probs: np.ndarray, targets: np.ndarray, users: np.ndarray, seed: int
) -> dict[str, Any]:
    """top1: is the first item the one taken next, as probable as it said? top10: is it among the first ten, as probable as their sum?

    items: int [B, 10], best first; log_probs: float [B, 10], log π of them; targets: int [B]; users: [B], whose case it is.
    """
    assert items.shape == log_probs.shape
    hits = items == targets[:, None]
    probabilities = np.minimum(np.exp(log_probs.astype(np.float64)), 1.0)
    among_ten = np.minimum(probabilities.sum(axis=1), 1.0)
    return {
        "top1": calibrate(probabilities[:, 0], hits[:, 0], users, seed),
        "top10": calibrate(among_ten, hits.any(axis=1), users, seed),
    }
