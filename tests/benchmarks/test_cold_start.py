"""The protocol of cold start: nothing of a held-out item is trained on, and its figures are those of plain counting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_dirs import small_dataset

from benchmarks.cold_start import HeldOut, pooled, with_others_cold
from sidrec.data import prepare
from sidrec.data.dataset import Dataset


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_training_row_has_a_held_out_item(seed: int, tmp_path: Path) -> None:
    whole = small_dataset()
    empty = pl.when(pl.col("item_index") < 6).then(pl.lit(" ")).otherwise(pl.col("text"))
    dataset = Dataset(whole.items.with_columns(text=empty), whole.interactions, whole.info)
    held_out = HeldOut.drawn(dataset, seed, 10_000)
    cold = held_out.is_cold.nonzero()[0]
    assert len(cold) == 6
    assert cold.min() >= 6  # items without a text are not drawn
    assert np.array_equal(held_out.is_cold, HeldOut.drawn(dataset, seed, 10).is_cold)
    prepare.main([*held_out.write(dataset, tmp_path), "--run_dir", str(tmp_path / "run")])
    run = Dataset.load(tmp_path / "run")
    assert run.items["item_id"].equals(dataset.items["item_id"])
    assert not np.isin(run.interactions["item_index"].to_numpy(), cold).any()
    counts = np.bincount(np.concatenate(run.train_sequences), minlength=60)
    assert not counts[cold].any()
    trained = dict(zip(run.train_users, run.train_sequences, strict=True))
    for split in ("valid", "test"):
        cases = held_out.cases[split]
        original = dict(zip(whole.cases(split).user_ids, whole.cases(split).targets, strict=True))
        for user, history, target in zip(cases.user_ids, cases.histories, cases.targets, strict=True):
            assert target == original[user]
            assert not held_out.is_cold[history].any()
            walk = trained[user]  # a case's target, and what comes after, is not trained on
            assert len(walk) <= len(history)
            assert np.array_equal(walk, history[: len(walk)])


def test_cold_places_are_filled_by_others_in_order() -> None:
    is_cold = np.arange(10) >= 6
    lists, cold = np.array([[0, 7, 1, 6], [2, 3, 4, 5]]), np.array([[9, 8, 7, 6], [6, 7, 8, 9]])
    assert with_others_cold(lists, cold, is_cold).tolist() == [[0, 9, 1, 8], [2, 3, 4, 5]]


def test_figures_are_counts_over_all_draws() -> None:
    names = ("as trained", "codes", "text", "knn_in_places", "knn")
    row = {
        "share": 1.0,
        "seconds": 1,
        "users": ["a", "b", "c", "d"],
        "is_cold": [True, False, False, False],
        "hits": {name: [name == "text", True, name == "as trained", False] for name in names},
        "among": {name: [name == "text"] for name in names},
        "cold_share": dict.fromkeys(names, 0.2),
    }
    figures = pooled([row, row])
    assert (figures["cases"], figures["cold_cases"], figures["event_share"]) == (8, 2, 0.25)
    assert (figures["text"]["among"], figures["text"]["in_the_list"], figures["text"]["among_less_knn"][0]) == (1, 1, 1)
    assert figures["text"]["warm"] == pytest.approx(1 / 3)
    assert figures["text"]["loss"][0] == pytest.approx(0.5)
    assert figures["as trained"]["loss"][0] == 0
