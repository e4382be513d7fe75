"""The neural baselines as stages: what is tried, what is kept, what goes on where it stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sidrec.baselines import neural, sasrec, scorer
from sidrec.baselines.baseline import TrainingPlan
from sidrec.baselines.neural import NEURAL, NeuralBaseline, train_once
from sidrec.baselines.sasrec import SasRecSettings
from sidrec.baselines.sequence_model import SequenceScorer
from sidrec.data.dataset import Dataset
from sidrec.data.split import leave_one_out
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage

PLAN = TrainingPlan(Path("run"), epochs=2, minutes=5.0, seed=3, seeds=1, tune=False, overwrite=False)
QUIET = Screen("test", quiet=True)
HISTORY = [np.array([3, 9])]


def prepared(run_dir: Path, step: int = 1) -> Dataset:
    """A run with a finished data stage: 40 users who walk round a ring of 30 items."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", int((start + step * t) % 30), t) for u, start in enumerate(rng.integers(0, 30, 40)) for t in range(7)
    ]
    log = leave_one_out(pl.DataFrame(rows, schema=["user_id", "item_index", "timestamp"], orient="row"))
    items = pl.DataFrame({"item_id": [str(i) for i in range(30)], "item_index": range(30), "title": "t", "text": "t"})
    dataset = Dataset(items, log, {"name": "small", "protocol": "leave_one_out"})
    with Stage(run_dir, "data", {}).building(overwrite=True) as folder:
        dataset.save(folder)
    return dataset


def once(run_dir: Path, dataset: Dataset, plan: TrainingPlan, name: str = "sasrec_sampled") -> SequenceScorer:
    plan, settings = replace(plan, run_dir=run_dir), NeuralBaseline(name, NEURAL[name]).grid(plan)[0]
    return train_once(name, settings, plan.seed, dataset, dataset.cases("valid"), plan, QUIET)


def test_every_baseline_has_a_grid_of_the_same_size_that_keeps_its_loss_and_block() -> None:
    grids = {name: NeuralBaseline(name, NEURAL[name]).grid(replace(PLAN, tune=True)) for name in NEURAL}
    assert {len(grid) for grid in grids.values()} == {4}
    for name, grid in grids.items():
        assert len(set(grid)) == 4
        for settings, point in zip(grid, NEURAL[name].grid, strict=True):
            assert settings == replace(NEURAL[name], epochs=PLAN.epochs, **point)
        assert NeuralBaseline(name, NEURAL[name]).grid(PLAN) == grid[:1]


def test_the_setting_that_is_best_on_valid_is_kept_for_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepared(tmp_path)
    seen = []

    def pretend(*arguments: object) -> SequenceScorer:
        _, settings, seed, *_ = arguments
        seen.append((settings.dim, settings.dropout, seed))
        return SequenceScorer(sasrec.SasRec(30, settings), [], name=f"{settings.dim} {settings.dropout}")

    def rank(one: SequenceScorer, cases: object, masked: bool) -> np.ndarray:
        assert masked
        return np.array([0 if one.name == "128 0.2" else 99])

    monkeypatch.setattr(neural, "train_once", pretend)
    monkeypatch.setattr(scorer, "rank_cases", rank)
    plan = replace(PLAN, run_dir=tmp_path, tune=True, seeds=3)
    fitted = NeuralBaseline("sasrec", NEURAL["sasrec"]).fitted(dataset, dataset.cases("valid"), plan, QUIET)
    assert fitted.tuning.values == [0.0, 0.0, 1.0, 0.0]
    assert fitted.tuning.grid[fitted.tuning.chosen] == SasRecSettings.grid[2]
    assert [one.name for one in fitted.scorers] == ["128 0.2"] * 3
    assert seen == [(point["dim"], point["dropout"], 3) for point in SasRecSettings.grid] + [
        (128, 0.2, 4),
        (128, 0.2, 5),
    ]
    assert (fitted.trainings, fitted.cut_short) == (6, 0)


def test_a_training_cut_short_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        dataset = prepared(tmp_path / name)
    whole = once(tmp_path / "whole", dataset, PLAN)
    first = once(tmp_path / "cut", dataset, replace(PLAN, minutes=1e-9))
    assert first.cut_short
    assert len(first.valid_recall) == 1
    second = once(tmp_path / "cut", dataset, PLAN)
    assert not second.cut_short
    assert second.valid_recall == whole.valid_recall
    assert np.array_equal(second.scores(HISTORY), whole.scores(HISTORY))


@pytest.mark.parametrize("name", NEURAL)
def test_a_finished_training_is_loaded_and_scores_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepared(tmp_path)
    first = once(tmp_path, dataset, PLAN, name)
    monkeypatch.setattr(neural, "train", None)
    again = once(tmp_path, dataset, replace(PLAN, minutes=1e-9, overwrite=True), name)
    assert again.name == first.name == name
    assert again.valid_recall == first.valid_recall
    assert np.array_equal(again.scores(HISTORY), first.scores(HISTORY))


def test_other_data_are_refused_unless_overwritten(tmp_path: Path) -> None:
    before = once(tmp_path, prepared(tmp_path), PLAN).scores(HISTORY)
    other = prepared(tmp_path, step=7)
    with pytest.raises(InputError, match=r"was made from another \S+/data than the one there now"):
        once(tmp_path, other, PLAN)
    assert not np.array_equal(once(tmp_path, other, replace(PLAN, overwrite=True)).scores(HISTORY), before)
