"""What is said about a training whose best measurement came last, early or in between."""

from __future__ import annotations

import numpy as np
import pytest
from run_dirs import small_dataset

from sidrec.baselines.item_knn import ItemKnn, fit_item_knn
from sidrec.data.metrics import mask_seen, ndcg_at, rank_of_target
from sidrec.sft import advice as advice_module
from sidrec.sft.advice import DECAY, NEIGHBOURS, SHRINK, advice, against_item_knn, apart, item_knn_ndcg

MEASURED = [{"step": step} for step in (10, 20, 30, 40, 50)]


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


def test_a_model_that_dropout_holds_back_is_told_by_its_losses() -> None:
    losses = [{"loss": 9.0, "step": 10}, {"loss": 2.0, "step": 20}, {"loss": 1.0, "step": 30}]
    assert "2.000 a code, is hardly below valid's, 2.050" in (apart(losses, {"step": 25, "eval_loss": 2.05}) or "")
    assert apart(losses, {"step": 25, "eval_loss": 2.5}) is None
    assert apart(losses, {"step": 30, "eval_loss": 2.05}) is None, "what counts is the loss at the best step"
    assert apart(losses, {"step": 5, "eval_loss": 2.05}) is None
    assert apart(losses, {"step": 25}) is None


def test_a_training_that_ended_well_or_was_hardly_measured_gets_none() -> None:
    assert advice(MEASURED, 40, regularised=True) is None
    assert advice(MEASURED[:3], 30, regularised=True) is None


def test_item_knn_is_measured_on_the_same_cases_unless_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_dataset()
    cases = dataset.cases("valid").take(np.arange(20))
    knn = fit_item_knn(dataset.train_sequences, dataset.n_items, NEIGHBOURS, SHRINK, DECAY)
    assert isinstance(knn, ItemKnn)
    ranks = rank_of_target(mask_seen(knn.scores(cases.histories), cases.histories), cases.targets)
    assert item_knn_ndcg(dataset, cases) == pytest.approx(ndcg_at(ranks, 10).mean())
    monkeypatch.setattr(advice_module, "MOST_PAIRS", 10)
    assert item_knn_ndcg(dataset, cases) is None


def test_a_model_below_item_knn_is_told_so() -> None:
    assert "a plain item-KNN has NDCG@10 0.2000" in (against_item_knn(0.1, 0.2) or "")
    assert against_item_knn(0.2, 0.2) is None
    assert against_item_knn(0.1, None) is None
