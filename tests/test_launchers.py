"""The same training by one process, by two, and by two under DeepSpeed ZeRO-2: the figures must agree.

Only two processes on the CPU (gloo) are run here. At its first run on a machine DeepSpeed compiles a part of itself: a minute or
two more, once.
"""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest
from run_dirs import ROOT, finished_sft_run, flags, make_run_dir, printed_logs, run_stage, start
from transformers import Trainer

from decoding.recommender import Recommender
from rl import grpo
from sft import train

pytestmark = pytest.mark.slow

ACCELERATE = Path(sys.executable).parent / "accelerate"
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="DeepSpeed compiles its CPU communication, which needs a C++ compiler"
)
LAUNCHERS = ["two_processes", pytest.param("zero2", marks=needs_compiler)]
# dropout is drawn by each process for itself; 59 cases do not halve
SFT = {
    "dropout": 0,
    "train_sampling_strategy": "sequential",
    "max_steps": 5,
    "eval_steps": 5,
    "save_steps": 5,
    "valid_users": 59,
}
RL = {"max_steps": 4, "eval_steps": 4, "save_steps": 4, "valid_users": 59}


def launch(script: str, launcher: list[str], arguments: list[str]) -> tuple[int, str, str]:
    """`accelerate launch launcher… script arguments…`: exit code, stdout, stderr."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    process = start(
        ACCELERATE, "launch", "--main_process_port", str(port), *launcher, script, *arguments, OMP_NUM_THREADS="1"
    )
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def launch_two(module, run_dir: Path, launcher: str, **changed: object) -> list[dict[str, float]]:
    """Train with half the batch in each of two processes; the printed log."""
    config = ["--config_file", str(ROOT / "configs" / "accelerate" / f"{launcher}.yaml")]
    script = {train: "sft/train.py", grpo: "rl/grpo.py"}[module]
    code, out, err = launch(script, config, flags(module, run_dir, **changed))
    assert code == 0, out + err
    return printed_logs(out)


def assert_agree(one: Trainer, two: list[dict[str, float]], names: list[str], digits: int, steps: int) -> None:
    """Printed figures have four significant digits; at most the last one's rounding may differ."""
    logged = [row for row in one.state.log_history if names[0] in row]
    printed = [row for row in two if names[0] in row]
    assert len(logged) == len(printed) == steps
    for name in names:
        expected = [row[name] for row in logged]
        assert [row[name] for row in printed] == pytest.approx(expected, rel=0.6 * 10 ** (1 - digits), abs=1e-9), name


@pytest.fixture(scope="module")
def sft_alone(tmp_path_factory) -> Trainer:
    return run_stage(train, make_run_dir(tmp_path_factory.mktemp("alone") / "run"), **SFT)


@pytest.fixture(scope="module")
def rl_alone(tmp_path_factory) -> Trainer:
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path_factory.mktemp("alone") / "run")
    return run_stage(grpo, run_dir, **RL)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_sft_by_two_processes_is_sft_by_one(sft_alone, tmp_path, launcher):
    run_dir = make_run_dir(tmp_path / "run")
    printed = launch_two(train, run_dir, launcher, **SFT | {"per_device_train_batch_size": 4})
    assert_agree(sft_alone, printed, ["loss"], digits=4, steps=5)
    assert_agree(sft_alone, printed, ["grad_norm"], digits=3, steps=5)
    assert_agree(sft_alone, printed, ["eval_recall@10", "eval_ndcg@10"], digits=4, steps=1)
    assert Recommender.load(run_dir, "sft").trie.n_items == 60


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_rl_by_two_processes_is_rl_by_one(rl_alone, tmp_path_factory, tmp_path, launcher):
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")
    printed = launch_two(grpo, run_dir, launcher, **RL | {"per_device_train_batch_size": 16})
    names = ["reward", "rewards/exact_hit/mean", "rewards/prefix_credit/mean", "grad_norm", "entropy"]
    assert_agree(rl_alone, printed, names, digits=3, steps=4)
    assert_agree(rl_alone, printed, ["eval_recall@10", "eval_ndcg@10"], digits=3, steps=2)
    assert Recommender.load(run_dir, "rl").trie.n_items == 60


@needs_compiler
@pytest.mark.parametrize("module", [train, grpo])
def test_no_process_deletes_the_best_checkpoint_before_all_have_read_it(module, tmp_path_factory, tmp_path):
    """The second process reads the best checkpoint two seconds after the first has; DeepSpeed reads one in each process."""
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")
    script = tmp_path / "late.py"
    script.write_text(
        f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from transformers import Trainer
from {module.__name__} import main

load = Trainer._load_best_model
Trainer._load_best_model = lambda self: (time.sleep(2 * int(os.environ["RANK"])), load(self))
main()
""",
        encoding="utf-8",
    )
    config = ["--config_file", str(ROOT / "configs" / "accelerate" / "zero2.yaml")]
    chosen = {train: SFT, grpo: RL}[module] | {"overwrite": True, "per_device_train_batch_size": 16}
    code, out, err = launch(str(script), config, flags(module, run_dir, **chosen))
    assert code == 0, out + err


def test_two_processes_that_accelerate_would_not_start_are_refused(tmp_path):
    run_dir = make_run_dir(tmp_path / "run")
    code, out, err = launch("sft/train.py", ["--num_processes", "2"], flags(train, run_dir, **SFT))
    assert code != 0
    assert "error: accelerate was asked for 2 processes but started one" in err
    assert "configs/accelerate/two_processes.yaml" in err
    assert not printed_logs(out)
    assert not (run_dir / "sft").exists()
