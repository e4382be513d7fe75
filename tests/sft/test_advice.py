"""What is said about a training whose best measurement came last, early or in between."""

from __future__ import annotations

import pytest

from sidrec.sft.advice import advice

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


def test_a_training_that_ended_well_or_was_hardly_measured_gets_none() -> None:
    assert advice(MEASURED, 40, regularised=True) is None
    assert advice(MEASURED[:3], 30, regularised=True) is None
