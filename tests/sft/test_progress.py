"""What a training shows: the time left by what was measured, one line, and the figures in log.txt."""

from __future__ import annotations

import math
import shutil
import warnings
from types import SimpleNamespace

import pytest
from run_dirs import finished_sft_run, logged, make_run_dir, run_stage

from sidrec.pipeline.screen import Screen
from sidrec.rl import grpo
from sidrec.sft import progress, train
from sidrec.sft.progress import MEASURED_SECONDS, MEASURED_STEPS, ShowProgress, TimeLeft, validations_to_come


def test_time_left_by_the_steps_and_validations_so_far():
    left = TimeLeft()
    assert math.isnan(left.seconds(10, 2))
    left.count_step(30)  # the first one warms up
    for _ in range(MEASURED_STEPS - 1):
        left.count_step(2)
    assert not left.is_known
    assert left.seconds(10, 2) == 20, "nobody knows yet how long a validation takes"
    left.count_step(2)
    assert left.is_known
    left.validations += [4, 6]
    assert left.seconds(10, 2) == 10 * 2 + 2 * 5
    left.count_step(8)  # it is corrected while training runs
    assert left.seconds(10, 2) == pytest.approx(10 * 3 + 2 * 5)
    slow = TimeLeft()
    slow.count_step(1)
    slow.count_step(MEASURED_SECONDS)
    assert slow.is_known, "nobody waits for five steps of ten seconds"


@pytest.mark.parametrize(
    ("strategy", "step", "epoch", "expected"),
    [("steps", 0, 0.0, 4), ("steps", 7, 0.7, 3), ("steps", 10, 1.0, 2), ("epoch", 5, 0.5, 2), ("epoch", 10, 1.0, 1)],
)
def test_validations_to_come(strategy, step, epoch, expected):
    """16 steps, ten of them an epoch: one every five steps, or at the end of each epoch that is begun."""
    args = SimpleNamespace(eval_strategy=SimpleNamespace(value=strategy))
    state = SimpleNamespace(max_steps=16, global_step=step, eval_steps=5, epoch=epoch)
    assert validations_to_come(args, state) == expected


def test_the_screen_stays_quiet_and_the_log_has_the_figures(tmp_path, capfd, monkeypatch):
    run_dir = make_run_dir(tmp_path / "run")
    capfd.readouterr()
    trainer = run_stage(
        train, run_dir, disable_tqdm="false", at_end=lambda _: warnings.warn("of a library", stacklevel=1)
    )
    out = capfd.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if "item-KNN" not in line] == [
        "sft",
        "sft",
        f"  the model is in {run_dir / 'sft'}, what training logged in {run_dir / 'sft' / 'log.txt'}",
    ]
    rows = logged(run_dir / "sft")
    assert [row["loss"] for row in rows if "loss" in row] == [
        row["loss"] for row in trainer.state.log_history if "loss" in row
    ]
    assert "UserWarning: of a library" in (run_dir / "sft" / "log.txt").read_text(encoding="utf-8")


def test_what_was_foretold_after_a_minute_stands_beside_what_training_took(tmp_path, monkeypatch):
    """A clock by which a step takes 2 seconds and a validation 4; 60 steps, a validation after every 20th, so 132 seconds."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0]))
    screen = Screen("sft", quiet=True)
    shown, state = (
        ShowProgress(screen, "a model"),
        SimpleNamespace(global_step=0, max_steps=60, eval_steps=20, epoch=0.0),
    )
    args = SimpleNamespace(disable_tqdm=True, eval_strategy=SimpleNamespace(value="steps"))
    state.is_world_process_zero = True
    with screen.logging_to(tmp_path / "log.txt"):
        shown.on_train_begin(args, state, None)
        for step in range(1, 61):
            state.global_step, now[0] = step, now[0] + (2 if step < 50 else 3)
            shown.on_step_end(args, state, None)
            if step % 20 == 0:
                now[0] += 4
                shown.on_evaluate(args, state, None, {})
        shown.on_train_end(args, state, None)
    row = logged(tmp_path)[-1]
    assert (row["seconds"], row["foretold_seconds"]) == (143.0, 132.0), "foretold after 84 seconds, 40 steps"


def test_rl_says_what_it_does_in_one_line(tmp_path_factory, tmp_path, capsys):
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")
    capsys.readouterr()
    run_stage(grpo, run_dir, max_steps=8)
    begin, summary, files = capsys.readouterr().out.splitlines()
    assert begin.startswith("rl: 0.01M parameters, 120 questions, groups of 8, on cpu; 8 steps, about ")
    assert summary.startswith("rl: valid Recall@10 ")
    assert str(run_dir / "rl" / "log.txt") in files
    assert any("zero_signal" in row for row in logged(run_dir / "rl"))
