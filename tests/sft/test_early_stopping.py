"""Training ends after `early_stopping_patience` measurements without a better one, killed on the way or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_dirs import make_run_dir, run_stage, valid_figures, weights

from sidrec.pipeline.errors import InputError
from sidrec.sft import train
from sidrec.sft.early_stopping import early_stopping
from sidrec.sft.settings import SftConfig

# best at step 4; equal is not better; steps 10 and 12 would be better again
RECALLS = {2: 0.1, 4: 0.5, 6: 0.5, 8: 0.4, 10: 0.9, 12: 0.9}
FLAGS = {"early_stopping_patience": 2, "eval_steps": 2, "save_steps": 2}


class KilledError(BaseException):
    pass


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """Valid Recall@10 comes from RECALLS; the steps at which it was asked for. A step that is put in first kills the run there."""
    steps: list[int] = []

    def valid_metrics(trainer, *_) -> dict[str, float]:
        step = trainer.state.global_step
        if steps and steps[0] == -step:
            raise KilledError
        steps.append(step)
        return valid_figures(RECALLS[step])

    monkeypatch.setattr("sidrec.sft.validation.valid_metrics", valid_metrics)
    return steps


@pytest.fixture(scope="module")
def stopped_weights(tmp_path_factory) -> bytes:
    """Of a run that was left alone until it stopped."""
    run_dir = make_run_dir(tmp_path_factory.mktemp("alone") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sidrec.sft.validation.valid_metrics",
            lambda trainer, *_: valid_figures(RECALLS[trainer.state.global_step]),
        )
        trainer = run_stage(train, run_dir, **FLAGS)
    assert trainer.state.best_global_step == 4
    return weights(run_dir / "sft")


def steps_of(run_dir: Path) -> list[int]:
    return [row["step"] for row in json.loads((run_dir / "sft" / "valid.json").read_text())]


def test_a_plateau_ends_training_and_the_best_is_kept(tmp_path, measured, stopped_weights):
    run_dir = make_run_dir(tmp_path / "run")
    trainer = run_stage(train, run_dir, **FLAGS)
    assert measured == steps_of(run_dir) == [2, 4, 6, 8]
    assert trainer.state.global_step == 8
    assert weights(run_dir / "sft") == stopped_weights


def test_without_patience_nothing_stops(tmp_path, measured):
    run_stage(train, make_run_dir(tmp_path / "run"), **FLAGS | {"early_stopping_patience": 0})
    assert measured == [2, 4, 6, 8, 10, 12]


def test_a_resumed_run_goes_on_counting(tmp_path, measured, stopped_weights):
    """Killed at step 8, resumed from step 6, where one measurement had not been better."""
    run_dir = make_run_dir(tmp_path / "run")
    measured.append(-8)
    with pytest.raises(KilledError):
        run_stage(train, run_dir, **FLAGS)
    assert measured == [-8, 2, 4, 6]
    measured.clear()
    run_stage(train, run_dir, **FLAGS)
    assert measured == [8]
    assert steps_of(run_dir) == [2, 4, 6, 8]
    assert weights(run_dir / "sft") == stopped_weights


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_run_that_was_killed_after_it_stopped_measures_nothing_more(tmp_path, measured, monkeypatch, strategy):
    """It resumes from the checkpoint at which it stopped."""
    run_dir = make_run_dir(tmp_path / "run")
    flags = FLAGS | {"eval_strategy": strategy, "save_strategy": strategy, "save_total_limit": 5}
    if strategy == "epoch":  # 7 steps each
        flags |= {"max_steps": -1, "num_train_epochs": 5}
        for step, recall in ((7, RECALLS[8]), (14, 0.3), (21, 0.3)):
            monkeypatch.setitem(RECALLS, step, recall)

    def kill(_trainer: object) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run_stage(train, run_dir, at_end=kill, **flags)
    last = {"steps": 8, "epoch": 21}[strategy]
    assert measured[-1] == last
    assert (run_dir / "sft" / "checkpoints" / f"checkpoint-{last}").exists()
    before, saved = list(measured), weights(run_dir / "sft")
    run_stage(train, run_dir, **flags)
    assert measured == before == steps_of(run_dir)
    assert weights(run_dir / "sft") == saved


def test_a_run_that_was_killed_after_its_last_step_measures_nothing_more(tmp_path, measured, monkeypatch):
    """Its best measurement is the last, so that the last checkpoint is there to go on from, half way in an epoch."""
    monkeypatch.setitem(RECALLS, 12, 0.95)
    flags = FLAGS | {"early_stopping_patience": 0, "eval_steps": 1, "save_steps": 1}
    for step in range(1, 12, 2):
        monkeypatch.setitem(RECALLS, step, 0.0)

    def kill(_trainer: object) -> None:
        raise KilledError

    run_dir = make_run_dir(tmp_path / "run")
    with pytest.raises(KilledError):
        run_stage(train, run_dir, at_end=kill, **flags)
    saved = weights(run_dir / "sft")
    run_stage(train, run_dir, **flags)
    assert measured == steps_of(run_dir) == list(range(1, 13))
    assert weights(run_dir / "sft") == saved


def test_settings_under_which_it_could_not_act_are_refused():
    assert early_stopping(0) == []
    assert early_stopping(3)[0].early_stopping_patience == 3
    with pytest.raises(InputError, match="early_stopping_patience=-1 is negative"):
        SftConfig(early_stopping_patience=-1)
    with pytest.raises(InputError, match="load_best_model_at_end cannot be set here: the best checkpoint is always"):
        train.main(["--early_stopping_patience", "3", "--load_best_model_at_end", "false"])
