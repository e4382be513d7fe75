"""What the valid figures of a training say about its settings, for the end-of-stage summary."""

from __future__ import annotations

from typing import Any

EARLY = 0.5  # a best measurement before this share of the last one's steps came early
FEWEST_MEASUREMENTS = 4


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
