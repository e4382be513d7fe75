"""What is said about a training whose best measurement came last, early or in between."""

from __future__ import annotations

import numpy as np
import pytest
from run_dirs import small_dataset

from sidrec.baselines.item_knn import fit_item_knn
from sidrec.baselines.markov import fit_markov
from sidrec.data.metrics import mask_seen, ndcg_at, rank_of_target
from sidrec.sft import advice as advice_module
from sidrec.sft.advice import (
    DECAY,
    NEIGHBOURS,
    SHRINK,
    BaselineNdcgs,
    advice,
    against_item_knn,
    baseline_ndcgs,
    dropout_in_doubt,
    losses_in_words,
)

MEASURED = [{"step": step, "eval_ndcg@10": 0.2 - 0.01 * abs(step - 20) / 10} for step in (10, 20, 30, 40, 50)]


@pytest.mark.parametrize(
    ("best_step", "regularised", "words"),
    [
        (50, True, "raise num_train_epochs"),
        (20, True, "raise dropout, item_dropout or weight_decay"),
        (20, False, "lower learning_rate or num_train_epochs"),
    ],
)
def test_the_sentence_names_what_to_change(best_step: int, regularised: bool, words: str) -> None:
    assert words in (advice(MEASURED, best_step, regularised=regularised) or "")


def test_a_figure_that_only_wavers_says_nothing() -> None:
    wavering = [row | {"eval_ndcg@10": 0.2 - 0.002 * (row["step"] % 20 > 0)} for row in MEASURED]
    assert advice(wavering, 20, regularised=True) is None


def test_both_losses_of_the_best_step_are_said() -> None:
    losses = [{"loss": 9.0, "step": 10}, {"loss": 2.0, "step": 20}, {"loss": 1.0, "step": 30}]
    said = losses_in_words(losses, {"step": 25, "eval_loss": 2.05}) or ""
    assert "2.000 in training, with dropout, 2.050 on valid" in said
    assert losses_in_words(losses, {"step": 5, "eval_loss": 2.05}) is None
    assert losses_in_words(losses, {"step": 25}) is None


def test_dropout_is_questioned_where_the_order_counts() -> None:
    ordered, unordered = BaselineNdcgs(item_knn=0.1, markov=0.13), BaselineNdcgs(item_knn=0.1, markov=0.11)
    assert "try --dropout 0.2" in (dropout_in_doubt(ordered, 0.5) or "")
    assert dropout_in_doubt(ordered, 0.2) is None
    assert dropout_in_doubt(unordered, 0.5) is None
    assert dropout_in_doubt(None, 0.5) is None


def test_a_training_that_ended_well_or_was_hardly_measured_gets_none() -> None:
    assert advice(MEASURED, 40, regularised=True) is None
    assert advice(MEASURED[:3], 30, regularised=True) is None


def test_baselines_are_measured_on_the_same_cases_unless_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_dataset()
    cases = dataset.cases("valid").take(np.arange(20))
    knn = fit_item_knn(dataset.train_sequences, dataset.n_items, NEIGHBOURS, SHRINK, DECAY)
    expected = []
    for scorer in (knn, fit_markov(dataset.train_sequences, dataset.n_items)):
        ranks = rank_of_target(mask_seen(scorer.scores(cases.histories), cases.histories), cases.targets)
        expected.append(ndcg_at(ranks, 10).mean())
    assert baseline_ndcgs(dataset, cases) == pytest.approx(expected)
    monkeypatch.setattr(advice_module, "MOST_PAIRS", 10)
    assert baseline_ndcgs(dataset, cases) is None


def test_a_model_below_item_knn_is_told_so() -> None:
    ndcgs = BaselineNdcgs(item_knn=0.2, markov=0.0)
    assert "a plain item-KNN has NDCG@10 0.2000" in (against_item_knn(0.1, ndcgs) or "")
    assert against_item_knn(0.2, ndcgs) is None
    assert against_item_knn(0.1, None) is None
