"""What the valid figures of a training say about its settings, for the end-of-stage summary."""

from __future__ import annotations

from typing import Any

import numpy as np

from sidrec.baselines.item_knn import fit_item_knn
from sidrec.baselines.scorer import rank_cases
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import ndcg_at

EARLY = 0.5  # a best measurement before this share of the last one's steps came early
FEWEST_MEASUREMENTS = 4
HELD_BACK = 0.96  # training's loss over valid's; 0.58 on Amazon Beauty, 0.958 on MovieLens-100K
NEIGHBOURS, SHRINK, DECAY = 50, 5.0, 0.8  # of item-KNN: settings that are seldom far from the best of item-KNN's grid
MOST_PAIRS, MOST_SCORES = (
    300_000_000,
    1_000_000_000,
)  # pairs of items of one user, and scores, beyond which it is left out


def advice(measured: list[dict[str, Any]], best_step: int, *, regularised: bool) -> str | None:
    """One sentence on what to change, or None: the best figure came last, or early.

    measured: rows of the log with `step`, one for each measurement on the valid cases. regularised: whether the model has dropout and
    item dropout to be raised (a model from scratch has).
    """
    steps = [row["step"] for row in measured]
    if len(steps) < FEWEST_MEASUREMENTS:
        return None
    if best_step == steps[-1]:
        return "the last measurement was the best one, so more training may help: raise num_train_epochs (with --overwrite true)"
    if best_step < EARLY * steps[-1]:
        remedy = (
            "raise dropout, item_dropout or weight_decay" if regularised else "lower learning_rate or num_train_epochs"
        )
        return f"the best measurement was at step {best_step} of {steps[-1]}, so the model learnt the log by heart after it: {remedy}"
    return None


def apart(losses: list[dict[str, Any]], best: dict[str, Any]) -> str | None:
    """One sentence where training's loss, with its dropout, is hardly below valid's without: the model is held back.

    losses: rows of the log with `loss` and `step`. best: the row of the best measurement, with `eval_loss`. None, too, where a loss is
    missing.
    """
    before = [row["loss"] for row in losses if row["step"] <= best["step"]]
    valid = best.get("eval_loss")
    if not before or valid is None or before[-1] < HELD_BACK * valid:
        return None
    return (
        f"the loss in training, {before[-1]:.3f} a code, is hardly below valid's, {valid:.3f}: dropout may hold the model back; lower "
        "dropout, item_dropout and weight_decay, and see whether NDCG@10 rises"
    )


def item_knn_ndcg(dataset: Dataset, cases: EvalCases) -> float | None:
    """NDCG@10 of a plain item-KNN on the valid cases, seen items masked; None where that would take long."""
    lengths = np.array([len(sequence) for sequence in dataset.train_sequences], dtype=np.int64)
    if (lengths**2).sum() > MOST_PAIRS or len(cases) * dataset.n_items > MOST_SCORES:
        return None
    knn = fit_item_knn(dataset.train_sequences, dataset.n_items, NEIGHBOURS, SHRINK, DECAY)
    return float(ndcg_at(rank_cases(knn, cases, masked=True), 10).mean())


def against_item_knn(ndcg: float, knn_ndcg: float | None) -> str | None:
    """One sentence where the model's best NDCG@10 is below item-KNN's on the same cases: something is wrong for these data."""
    if knn_ndcg is None or ndcg >= knn_ndcg:
        return None
    return (
        f"a plain item-KNN has NDCG@10 {knn_ndcg:.4f} on the same cases, which is more: train longer (num_train_epochs), lower dropout and "
        "weight_decay, or look whether timestamps and item ids are right; `sidrec evaluate --models sft_blend` joins the two"
    )
