"""A run that is killed, at any moment, and run again ends with the very bytes of a run that was left alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from run_dirs import assert_one_sentence, flags, logged, make_run_dir, run_stage, start, weights
from safetensors.torch import save_file

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import require_finished
from sidrec.rl import grpo
from sidrec.sft import train
from sidrec.sft.checkpoints import is_whole, last_whole_checkpoint, remove_checkpoints, seal
from sidrec.sft.settings import SftTrainerConfig

OFTEN = {train: {"eval_steps": 1, "save_steps": 1, "item_dropout": 0.3}, grpo: {"eval_steps": 1, "save_steps": 1}}
SCRIPTS = {train: "sft/train.py", grpo: "rl/grpo.py"}


def write_checkpoint(folder: Path, step: int, world_size: int = 1) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.ones(2)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(2)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    seal(checkpoint, world_size)
    return checkpoint


def change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_files_of_others_are_left_alone(tmp_path):
    write_checkpoint(tmp_path, 3)
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-old", "checkpoint-7"}


def test_a_checkpoint_is_of_a_number_of_processes(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 3, world_size=2)
    assert is_whole(checkpoint, world_size=2)
    assert not is_whole(checkpoint)


def test_the_newest_whole_checkpoint_by_number(tmp_path):
    assert last_whole_checkpoint(tmp_path / "none yet") is None
    for step in (8, 100, 20):
        write_checkpoint(tmp_path, step)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize(
    "damage",
    [
        lambda checkpoint: (checkpoint / "sealed.json").unlink(),
        lambda checkpoint: (checkpoint / "sealed.json").write_text('{"files": {'),
        lambda checkpoint: (checkpoint / "sealed.json").write_text("[]"),
        lambda checkpoint: (checkpoint / "optimizer.pt").unlink(),
        lambda checkpoint: (checkpoint / "deep").mkdir() or (checkpoint / "deep" / "shard.bin").touch(),
        lambda checkpoint: change_a_byte(checkpoint / "model.safetensors"),
        lambda checkpoint: shutil.copyfile(checkpoint / "scheduler.pt", checkpoint / "rng_state.pth"),
        lambda checkpoint: [path.unlink() for path in checkpoint.iterdir()],
    ],
    ids=[
        "not sealed",
        "half a seal",
        "an odd seal",
        "no optimizer",
        "a stranger",
        "another weight",
        "exchanged",
        "empty",
    ],
)
def test_a_broken_checkpoint_is_deleted_and_the_one_before_it_taken(tmp_path, damage):
    write_checkpoint(tmp_path, 9)
    damage(write_checkpoint(tmp_path, 10))
    (tmp_path / "checkpoint-9" / "rng_state.pth").write_bytes(b"other numbers")
    seal(tmp_path / "checkpoint-9", 1)
    sealed, said = (tmp_path / "checkpoint-10" / "sealed.json").exists(), []
    assert last_whole_checkpoint(tmp_path, say=said.append) == str(tmp_path / "checkpoint-9")
    assert [str(tmp_path / "checkpoint-10") in sentence for sentence in said] == [True] * sealed
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]
    damage(tmp_path / "checkpoint-9")
    assert last_whole_checkpoint(tmp_path) is None


def write_with_best(folder: Path, step: int, best: int) -> Path:
    checkpoint = write_checkpoint(folder, step)
    state = {"global_step": step, "best_model_checkpoint": f"/moved/since/checkpoint-{best}"}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    seal(checkpoint, 1)
    return checkpoint


def test_the_best_checkpoint_must_be_whole_too(tmp_path):
    """Trainer loads it at the end: were it another, so would be the model."""
    first = write_checkpoint(tmp_path, 2)
    best, last = (write_with_best(tmp_path, step, best=4) for step in (4, 6))
    assert last_whole_checkpoint(tmp_path) == str(last)
    change_a_byte(best / "model.safetensors")
    said = []
    assert last_whole_checkpoint(tmp_path, say=said.append) == str(first)
    assert any("checkpoint-4, the best so far, is not as it was written" in sentence for sentence in said)
    assert not best.exists()


def test_all_processes_of_a_run_may_look_at_once(tmp_path):
    """They find the same checkpoint, and none trips over a broken one that another is deleting."""
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        write_checkpoint(folder, 1)
        broken = write_checkpoint(folder, 2)
        (broken / "trainer_state.json").unlink()
        for i in range(50):
            (broken / f"shard{i}.bin").touch()
        with ThreadPoolExecutor(8) as pool:
            checkpoints = set(pool.map(last_whole_checkpoint, [folder] * 8))
        assert checkpoints == {str(folder / "checkpoint-1")}


def test_checkpoints_are_removed_with_their_folder(tmp_path):
    write_checkpoint(tmp_path / "checkpoints", 1)
    remove_checkpoints(tmp_path / "checkpoints")
    remove_checkpoints(tmp_path / "checkpoints")
    assert list(tmp_path.iterdir()) == []


def test_what_is_measured_must_be_saved():
    def settings(**changed: object) -> SftTrainerConfig:
        chosen = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 5, "save_steps": 5}
        return SftTrainerConfig(**(chosen | changed))

    settings()
    settings(eval_strategy="epoch", save_strategy="epoch", save_steps=10)
    settings(save_strategy="best", save_steps=10)
    settings(eval_steps=None, logging_steps=10, save_steps=10)  # transformers measures as often as it logs
    with pytest.raises(InputError, match="save_steps=10 is not eval_steps=5"):
        settings(save_steps=10)
    with pytest.raises(InputError, match="save_strategy=epoch is not eval_strategy=steps"):
        settings(save_strategy="epoch")


def start_stage(module, run_dir: Path) -> subprocess.Popen[str]:
    return start(sys.executable, SCRIPTS[module], *flags(module, run_dir, **OFTEN[module]))


def whole_checkpoints(folder: Path) -> set[int]:
    """Steps of the checkpoints from which training would go on: a file that is there may still be empty."""
    return {int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*") if is_whole(path)}


def signal_after_checkpoint(process: subprocess.Popen[str], folder: Path, step: int, number: signal.Signals) -> str:
    """Send the signal as soon as a checkpoint of at least `step` is written; the process's output, both kinds."""
    limit = time.monotonic() + 200
    while max(whole_checkpoints(folder), default=-1) < step:
        assert process.poll() is None, f"it ended before checkpoint {step}: {process.communicate()}"
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (-number, 130), f"it ended before the signal: {process.returncode} {out} {err}"
    return out + err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    run_dir = make_run_dir(tmp_path_factory.mktemp("undisturbed") / "run")
    for module in (train, grpo):
        run_stage(module, run_dir, **OFTEN[module])
    return run_dir


def assert_same_result(run_dir: Path, undisturbed: Path, stage: str) -> None:
    assert weights(run_dir / stage) == weights(undisturbed / stage)
    assert (run_dir / stage / "valid.json").read_text() == (undisturbed / stage / "valid.json").read_text()
    assert not (run_dir / stage / "checkpoints").exists()
    require_finished(run_dir, stage, "")


@pytest.mark.slow
def test_kill_and_interrupt_sft_then_kill_rl(undisturbed, tmp_path):
    """SIGKILL, a half-written checkpoint, Ctrl-C, completion; then the same folder's RL, SIGKILL and completion."""
    run_dir = make_run_dir(tmp_path / "run")
    checkpoints = run_dir / "sft" / "checkpoints"
    process = start_stage(train, run_dir)
    signal_after_checkpoint(process, checkpoints, 2, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="is not finished; run `it` again"):
        require_finished(run_dir, "sft", "it")

    reached = max(whole_checkpoints(checkpoints))
    assert reached < 9
    half = checkpoints / f"checkpoint-{reached + 1}"
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(checkpoints / f"checkpoint-{reached}", half)
    (half / "sealed.json").unlink()
    (half / "model.safetensors").write_bytes(b"half")

    (run_dir / "sft" / "log.txt").unlink()
    process = start_stage(train, run_dir)
    output = signal_after_checkpoint(process, checkpoints, reached + 1, signal.SIGINT)
    assert process.returncode == 130
    assert "interrupted: what was finished is kept; run the same command again to go on." in output
    assert_one_sentence(output)
    epochs = [row["epoch"] for row in logged(run_dir / "sft")]
    assert min(epochs) == pytest.approx((reached + 1) / 7, rel=1e-3), (
        "7 steps an epoch; earlier steps are not done again"
    )

    trainer = run_stage(train, run_dir, **OFTEN[train])
    assert trainer.state.global_step == 12
    assert_same_result(run_dir, undisturbed, "sft")

    process = start_stage(grpo, run_dir)
    signal_after_checkpoint(process, run_dir / "rl" / "checkpoints", 2, signal.SIGKILL)
    run_stage(grpo, run_dir, **OFTEN[grpo])
    assert_same_result(run_dir, undisturbed, "rl")


@pytest.mark.parametrize("module", [train, grpo], ids=["sft", "rl"])
def test_killed_after_the_last_step_before_the_stage_was_closed(undisturbed, tmp_path, module):
    """Training is over, the model is saved, the manifest is not: running again saves the same model."""
    run_dir = shutil.copytree(undisturbed, tmp_path / "run")
    stage = SCRIPTS[module].partition("/")[0]
    shutil.rmtree(run_dir / stage)

    class KilledError(BaseException):
        pass

    def kill(_trainer: object) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run_stage(module, run_dir, at_end=kill, **OFTEN[module])
    run_stage(module, run_dir, **OFTEN[module])
    assert_same_result(run_dir, undisturbed, stage)
