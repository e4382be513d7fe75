"""What the valid figures of a training say about its settings, for the end-of-stage summary."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sidrec.baselines.item_knn import fit_item_knn
from sidrec.baselines.markov import fit_markov
from sidrec.baselines.scorer import rank_cases
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import ndcg_at

EARLY = 0.5  # a best measurement before this share of the last one's steps came early
FELL = 0.05  # by so much less, in the mean, than the best one: less may be chance
FEWEST_MEASUREMENTS = 4
ORDER_COUNTS = 1.2  # Markov's NDCG@10 over item-KNN's: 0.7 on MovieLens-100K, 1.1 on Amazon Beauty, 1.4 on the demo, 1.6 on MovieLens-1M
MUCH_DROPOUT = 0.4
NEIGHBOURS, SHRINK, DECAY = 50, 5.0, 0.8  # of item-KNN: settings that are seldom far from the best of item-KNN's grid
MOST_PAIRS, MOST_SCORES = (
    300_000_000,
    1_000_000_000,
)  # pairs of items of one user, and scores, beyond which it is left out


def advice(measured: list[dict[str, Any]], best_step: int, *, regularised: bool) -> str | None:
    """One sentence on what to change, or None: the best figure came last, or early, and what came after it was clearly less.

    measured: rows of the log with `step` and `eval_ndcg@10`, one for each measurement on the valid cases. regularised: whether the model
    has dropout and item dropout to be raised (a model from scratch has).
    """
    steps = [row["step"] for row in measured]
    if len(steps) < FEWEST_MEASUREMENTS:
        return None
    if best_step == steps[-1]:
        return "the last measurement was the best one, so more training may help: raise num_train_epochs (with --overwrite true)"
    values = {row["step"]: row["eval_ndcg@10"] for row in measured}
    later = [value for step, value in values.items() if step > best_step]
    if best_step < EARLY * steps[-1] and np.mean(later) < (1 - FELL) * values[best_step]:
        remedy = (
            "raise dropout, item_dropout or weight_decay" if regularised else "lower learning_rate or num_train_epochs"
        )
        return f"the best measurement was at step {best_step} of {steps[-1]}, so the model learnt the log by heart after it: {remedy}"
    return None


def losses_in_words(losses: list[dict[str, Any]], best: dict[str, Any]) -> str | None:
    """Training's loss, with its dropout, beside valid's at the best measurement: far apart, the log is learnt by heart.

    losses: rows of the log with `loss` and `step`. best: the row of the best measurement, with `eval_loss`. None where a loss is missing.
    """
    before = [row["loss"] for row in losses if row["step"] <= best["step"]]
    valid = best.get("eval_loss")
    return (
        f"loss a code: {before[-1]:.3f} in training, with dropout, {valid:.3f} on valid" if before and valid else None
    )


class BaselineNdcgs(NamedTuple):
    """NDCG@10 of quick baselines on the valid cases, seen items masked."""

    item_knn: float
    markov: float

    def in_words(self) -> str:
        return f"NDCG@10 on valid: first-order Markov {self.markov:.4f}, item-KNN {self.item_knn:.4f}"


def baseline_ndcgs(dataset: Dataset, cases: EvalCases) -> BaselineNdcgs | None:
    """Of a plain item-KNN and of first-order Markov; None where that would take long."""
    sequences, n_items = dataset.train_sequences, dataset.n_items
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if (lengths**2).sum() > MOST_PAIRS or len(cases) * n_items > MOST_SCORES:
        return None
    scorers = fit_item_knn(sequences, n_items, NEIGHBOURS, SHRINK, DECAY), fit_markov(sequences, n_items)
    return BaselineNdcgs(*(float(ndcg_at(rank_cases(scorer, cases, masked=True), 10).mean()) for scorer in scorers))


def order_counts(ndcgs: BaselineNdcgs) -> bool:
    """Whether the last item alone says more of the next one than the whole history does to item-KNN."""
    return ndcgs.markov >= ORDER_COUNTS * ndcgs.item_knn


def dropout_in_doubt(ndcgs: BaselineNdcgs | None, dropout: float) -> str | None:
    """One sentence where the order of items counts for much, and the model has much dropout."""
    if ndcgs is None or dropout < MUCH_DROPOUT or not order_counts(ndcgs):
        return None
    return (
        f"the order of items counts for much in these data ({ndcgs.in_words()}), and dropout {dropout:g} may hold the model back: "
        "try --dropout 0.2 --item_dropout 0.1 --weight_decay 0.1 --num_hidden_layers 2"
    )


def against_item_knn(ndcg: float, ndcgs: BaselineNdcgs | None) -> str | None:
    """One sentence where the model's best NDCG@10 is below item-KNN's on the same cases: something is wrong for these data."""
    if ndcgs is None or ndcg >= ndcgs.item_knn:
        return None
    return (
        f"a plain item-KNN has NDCG@10 {ndcgs.item_knn:.4f} on the same cases, which is more: train longer (num_train_epochs), lower "
        "dropout and weight_decay, or look whether timestamps and item ids are right; `sidrec evaluate --models sft_blend` joins the two"
    )
