"""The same training by one process and by two, under every launcher's config: the figures must agree.

Only two processes on the CPU (gloo) are run here. At its first run on a machine DeepSpeed compiles a part of itself: a minute or
two more, once.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_dirs import ROOT, flags, logged, make_run_dir, run_stage, start
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer

from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.deepspeed_build import build_lock, cache_folder
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.rl import grpo
from sidrec.sft import train
from sidrec.sft.backbone import byte_tokenizer, scratch_qwen3
from sidrec.sft.settings import BackboneConfig

pytestmark = pytest.mark.slow

STAGES = {train: "sft", grpo: "rl"}
ACCELERATE = Path(sys.executable).parent / "accelerate"
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="DeepSpeed compiles its CPU communication, which needs a C++ compiler"
)
WITH_SPLIT_WEIGHTS = [pytest.param("zero3", marks=needs_compiler), "fsdp2"]
# dropout is drawn by each process for itself; 59 cases do not halve; ZeRO-3 leaves matrices of up to 100,000 numbers whole
SFT = {
    "hidden_size": 320,
    "intermediate_size": 320,
    "learning_rate": 0.003,
    "dropout": 0,
    "max_steps": 6,
    "eval_steps": 3,
    "save_steps": 3,
    "valid_users": 59,
}
RL = {"learning_rate": 0.0003, "max_steps": 4, "eval_steps": 4, "save_steps": 4, "valid_users": 59}
LITTLE_MEMORY = {"gradient_accumulation_steps": 2, "activation_checkpointing": True}

# accelerate gives FSDP to GPUs alone; for processes on the CPU this does what `AcceleratorState` does for those on GPUs
FSDP_ON_CPU = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

begin = AcceleratorState.__init__

def begin_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

AcceleratorState.__init__ = begin_with_fsdp
"""
# of the numbers in all weights a process holds half, and what is too small to be split
WEIGHTS_MUST_BE_SPLIT = """
from torch.distributed.tensor import DTensor
from transformers import Trainer

step = Trainer.training_step

def step_of_split_weights(self, *args, **kwargs):
    weights = list(self.model.parameters())
    numbers = sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights)
    held = sum((weight.to_local() if isinstance(weight, DTensor) else weight).numel() for weight in weights)
    assert numbers > 1_000_000 and held < 0.6 * numbers, (held, numbers)
    return step(self, *args, **kwargs)

Trainer.training_step = step_of_split_weights
"""
KILLED_AFTER_A_CHECKPOINT = """
import os
import torch
from sidrec.sft.checkpoints import SealCheckpoints

on_save = SealCheckpoints.on_save

def seal_and_die(self, *args, **kwargs):
    on_save(self, *args, **kwargs)
    torch.distributed.barrier()
    os._exit(9)

SealCheckpoints.on_save = seal_and_die
"""
# the second process reads the best checkpoint two seconds after the first has; DeepSpeed reads one in each process
READS_LATE = """
import os, time
from transformers import Trainer

load = Trainer._load_best_model
Trainer._load_best_model = lambda self: (time.sleep(2 * int(os.environ["RANK"])), load(self))
"""


def begin_launch(script: str | Path, launcher: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    return start(ACCELERATE, "launch", *launcher, script, *arguments, OMP_NUM_THREADS="1")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(probe.getsockname()[1])


def launch(script: str | Path, launcher: list[str], arguments: list[str]) -> tuple[int, str, str]:
    """`accelerate launch launcher… script arguments…`: exit code, stdout, stderr."""
    process = begin_launch(script, ["--main_process_port", free_port(), *launcher], arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def config_of(launcher: str) -> list[str]:
    return ["--config_file", str(ROOT / "configs" / "accelerate" / f"{launcher}.yaml")]


def launch_two(
    module: Any, run_dir: Path, launcher: str, before: str = "", exit_code: int = 0, **changed: object
) -> list[dict[str, float]]:
    """Train with half the batch in each of two processes; what was logged. before: Python that each process runs first."""
    script = run_dir.parent / "script.py"
    lines = [
        "import sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        before,
        f"from {module.__name__} import main",
        "main()",
    ]
    script.write_text("\n".join(lines), encoding="utf-8")
    code, out, err = launch(script, config_of(launcher), flags(module, run_dir, **changed))
    assert (code != 0) == (exit_code != 0), out + err
    assert f"exitcode  : {exit_code}" in err or not exit_code, out + err
    return logged(run_dir / STAGES[module])


def assert_agree(one: Trainer, two: list[dict[str, float]], names: list[str], digits: int, steps: int) -> None:
    """To so many significant digits; at most the last one's rounding may differ."""
    alone = [row for row in one.state.log_history if names[0] in row]
    together = [row for row in two if names[0] in row]
    assert len(alone) == len(together) == steps
    for name in names:
        expected = [row[name] for row in alone]
        assert [row[name] for row in together] == pytest.approx(expected, rel=0.6 * 10 ** (1 - digits), abs=1e-9), name


def assert_same_sft(one: Trainer, two: list[dict[str, float]]) -> None:
    assert_agree(one, two, ["loss"], digits=4, steps=6)
    assert_agree(one, two, ["grad_norm"], digits=3, steps=6)
    assert_agree(one, two, ["eval_recall@10", "eval_ndcg@10"], digits=4, steps=2)


def assert_same_model(run_dir: Path, other: Path, stage: str, largest: float) -> None:
    """A plain model of transformers, its matrices within `largest` of another's."""
    assert Recommender.load(run_dir, stage).trie.n_items == 60
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder / stage).state_dict() for folder in (run_dir, other))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=largest, rtol=0, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return make_run_dir(tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def sft_alone(alone) -> Trainer:
    return run_stage(train, alone, **SFT)


@pytest.fixture(scope="module")
def rl_alone(alone, sft_alone) -> Trainer:
    return run_stage(grpo, alone, **RL)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A model folder whose head is not its embedding."""
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    backbone = BackboneConfig(
        architecture="qwen3", hidden_size=320, num_hidden_layers=2, num_attention_heads=2, intermediate_size=320
    )
    model, tokenizer = scratch_qwen3(backbone, seed=1), byte_tokenizer()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert "lm_head.weight" in load_file(folder / "model.safetensors")
    return folder


def test_half_batches_twice_with_activations_computed_again_are_the_same_training(sft_alone, rl_alone, alone, tmp_path):
    run_dir = make_run_dir(tmp_path / "sft")
    trainer = run_stage(train, run_dir, **SFT | LITTLE_MEMORY | {"per_device_train_batch_size": 4})
    assert trainer.model.is_activation_checkpointing
    assert_same_sft(sft_alone, trainer.state.log_history)
    assert_same_model(run_dir, alone, "sft", largest=1e-4)
    run_dir = shutil.copytree(alone, tmp_path / "rl", ignore=shutil.ignore_patterns("rl"))
    trainer = run_stage(grpo, run_dir, **RL | LITTLE_MEMORY | {"per_device_train_batch_size": 16})
    assert_agree(rl_alone, trainer.state.log_history, ["reward", "grad_norm", "entropy"], digits=3, steps=4)
    assert_same_model(run_dir, alone, "rl", largest=1e-4)


def test_sft_by_two_processes_is_sft_by_one(sft_alone, alone, tmp_path):
    run_dir = make_run_dir(tmp_path / "run")
    rows = launch_two(train, run_dir, "two_processes", **SFT | {"per_device_train_batch_size": 4})
    assert_same_sft(sft_alone, rows)
    assert_same_model(run_dir, alone, "sft", largest=1e-4)


@needs_compiler
def test_sft_by_two_processes_of_zero2_is_sft_by_one(sft_alone, alone, tmp_path):
    """A lock file that a killed compiler left does not hang DeepSpeed, and no process deletes a checkpoint before all have read it."""
    stale = cache_folder() / "deepspeed_shm_comm" / "lock"
    with build_lock(cache_folder(), Screen("test", quiet=True)):  # nobody compiles while it is put there
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.touch()
    run_dir = make_run_dir(tmp_path / "run")
    rows = launch_two(train, run_dir, "zero2", READS_LATE, **SFT | {"per_device_train_batch_size": 4})
    assert not stale.exists()
    assert_same_sft(sft_alone, rows)
    assert_same_model(run_dir, alone, "sft", largest=1e-4)


@pytest.mark.parametrize("script", ["sft/train.py", "rl/grpo.py"])
def test_a_checkout_is_launched_from_any_folder(script, tmp_path):
    launcher = [ACCELERATE, "launch", "--num_processes", "1", "--num_machines", "1", "--cpu", ROOT / script, "--help"]
    done = subprocess.run([*map(str, launcher)], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "--run_dir" in done.stdout


def test_an_rq_transformer_by_two_processes_is_one_by_one(tmp_path):
    """A global batch of so many items is the same in one process and in two; then RL over every item."""
    chosen = SFT | {"architecture": "rq_transformer", "batch_items": 96, "item_dropout": 0.1}
    one, two = make_run_dir(tmp_path / "one"), make_run_dir(tmp_path / "two")
    alone = run_stage(train, one, **chosen)
    assert_same_sft(alone, launch_two(train, two, "two_processes", **chosen))
    assert_same_model(two, one, "sft", largest=1e-4)
    exact = RL | {"draw": "every_item", "rewards": ["hit_at_k", "coverage"], "reward_weights": [1, 0.05]}
    exact |= {"batch_items": 96, "kl_weight": 0.1, "sft_loss_weight": 0.5}
    two = shutil.copytree(one, tmp_path / "again")  # the very same model to begin with
    alone = run_stage(grpo, one, **exact)
    rows = launch_two(grpo, two, "two_processes", **exact)
    names = ["reward", "rewards/hit_at_k/mean", "rewards/coverage/mean", "grad_norm", "entropy", "questions"]
    assert_agree(alone, rows, names, digits=2, steps=4)
    assert_same_model(two, one, "rl", largest=1e-4)


@needs_compiler
def test_sft_by_two_hosts_is_sft_by_one_process(sft_alone, alone, tmp_path):
    """Each host is started by a command of its own, and has one process."""
    run_dir, port = make_run_dir(tmp_path / "run"), free_port()
    arguments = flags(train, run_dir, **SFT | {"per_device_train_batch_size": 4})
    common = [*config_of("multi_node"), "--num_processes", "2", "--main_process_port", port]
    hosts = [begin_launch("sft/train.py", [*common, "--machine_rank", str(rank)], arguments) for rank in range(2)]
    outputs = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    assert_same_sft(sft_alone, logged(run_dir / "sft"))
    assert_same_model(run_dir, alone, "sft", largest=1e-4)


@pytest.mark.parametrize("launcher", WITH_SPLIT_WEIGHTS)
def test_sft_with_split_weights_goes_on_after_a_kill_and_is_sft_by_one_process(
    sft_alone, alone, pretrained, tmp_path, launcher
):
    """ZeRO-3 with a pretrained model and a head of its own, FSDP2 from scratch with the embedding as head; one process is refused."""
    chosen, one, other = SFT, sft_alone, alone
    if launcher == "zero3":
        chosen, other = SFT | {"model_name_or_path": pretrained}, make_run_dir(tmp_path / "alone")
        one = run_stage(train, other, **chosen)
    run_dir, before = make_run_dir(tmp_path / "run"), FSDP_ON_CPU + WEIGHTS_MUST_BE_SPLIT
    two = chosen | LITTLE_MEMORY | {"per_device_train_batch_size": 2}
    rows = launch_two(train, run_dir, launcher, before + KILLED_AFTER_A_CHECKPOINT, exit_code=9, **two)
    assert len([row for row in rows if "loss" in row]) == 3
    with pytest.raises(InputError, match="sft was made with world_size=2, not 1"):
        run_stage(train, run_dir, **two)
    rows = launch_two(train, run_dir, launcher, before, **two)  # the log goes on in the same file
    assert_same_sft(one, rows)
    assert_same_model(run_dir, other, "sft", largest=1e-4)


@pytest.mark.parametrize("launcher", ["two_processes", pytest.param("zero3", marks=needs_compiler)])
def test_rl_by_two_processes_is_rl_by_one(rl_alone, alone, tmp_path, launcher):
    run_dir = shutil.copytree(alone, tmp_path / "run", ignore=shutil.ignore_patterns("rl"))
    before = WEIGHTS_MUST_BE_SPLIT if launcher == "zero3" else READS_LATE
    rows = launch_two(grpo, run_dir, launcher, before, **RL | {"per_device_train_batch_size": 16})
    names = ["reward", "rewards/exact_hit/mean", "rewards/prefix_credit/mean", "grad_norm", "entropy"]
    assert_agree(rl_alone, rows, names, digits=3, steps=4)
    assert_agree(rl_alone, rows, ["eval_recall@10", "eval_ndcg@10"], digits=3, steps=2)
    assert_same_model(run_dir, alone, "rl", largest=1e-4)


def test_two_processes_that_accelerate_would_not_start_are_refused(tmp_path):
    run_dir = make_run_dir(tmp_path / "run")
    code, _, err = launch("sft/train.py", ["--num_processes", "2"], flags(train, run_dir, **SFT))
    assert code != 0
    assert "error: accelerate was asked for 2 processes but started one" in err
    assert "configs/accelerate/two_processes.yaml" in err
    assert not (run_dir / "sft").exists()


def test_a_second_launch_is_refused_in_every_process_and_the_first_ends_as_if_alone(sft_alone, alone, tmp_path):
    run_dir, go_on = make_run_dir(tmp_path / "run"), tmp_path / "go_on"
    arguments = flags(train, run_dir, **SFT | {"per_device_train_batch_size": 4})
    script = tmp_path / "waiting.py"
    script.write_text(
        f"""
import time
from pathlib import Path
from transformers import Trainer
from sidrec.sft.train import main

step = Trainer.training_step

def step_when_told(self, *args, **kwargs):
    while not Path({str(go_on)!r}).exists():
        time.sleep(0.05)
    return step(self, *args, **kwargs)

Trainer.training_step = step_when_told
main()
""",
        encoding="utf-8",
    )
    launcher = config_of("two_processes")
    first = begin_launch(script, ["--main_process_port", free_port(), *launcher], arguments)
    limit = time.monotonic() + 200
    while not (run_dir / "sft" / "manifest.json").exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    code, out, err = launch("sft/train.py", launcher, arguments)
    go_on.touch()
    assert code == 1, out + err
    assert err.count("error: ") == err.count("sft is being made by process ") == 2, "each process says so: " + err
    out, err = first.communicate(timeout=300)
    assert first.returncode == 0, out + err
    assert_same_sft(sft_alone, logged(run_dir / "sft"))
    assert_same_model(run_dir, alone, "sft", largest=1e-4)
