"""By which figures RL chooses a checkpoint, and what it says of it."""

from __future__ import annotations

import pytest

from sidrec.rl.aims import bought, with_kept


def row(step: int, recall: float, ndcg: float, coverage: float, deep: float = 0.5) -> dict[str, float]:
    figures = {"recall@10": recall, "ndcg@10": ndcg, "coverage@10": coverage, "recall@50": deep}
    return {"step": step} | {f"eval_{name}": value for name, value in figures.items()}


@pytest.mark.parametrize(("recall", "counts"), [(0.191, True), (0.189, False)])
def test_an_aim_counts_where_recall_is_kept_within_the_margin(recall, counts):
    chosen = with_kept(row(1, recall, 0.1, 0.6), row(0, 0.2, 0.1, 0.4), "eval", margin=0.05)
    assert chosen["eval_kept_coverage@10"] == (0.6 if counts else 0.0)
    assert "eval_kept_value@10" not in chosen, "nothing measured it"


def test_what_was_bought_and_what_it_cost():
    first, best = row(0, 0.2, 0.1, 0.4), row(8, 0.19, 0.1, 0.5)
    sentence = bought(first, best, "eval_kept_coverage@10")
    assert sentence == "RL bought +25.0% coverage@10 on valid, for -5.0% Recall@10"
    assert "RL bought nothing" in bought(first, first, "eval_kept_coverage@10")
