"""How many processes were asked for, as accelerate's command line says it."""

from __future__ import annotations

import pytest
import torch

from sidrec.pipeline import launch as processes
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.launch import asked_processes, refuse_fewer_processes_than_asked, refuse_wrong_number_of_processes
from sidrec.pipeline.precision import has_bf16

LAUNCH = ["/usr/bin/python3", "/usr/bin/accelerate", "launch"]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("sft/train.py", 1),
        ("--num_processes 2 sft/train.py", 2),
        ("--num-processes 4 --mixed_precision no sft/train.py", 4),
        ("--num_processes=8 rl/grpo.py --seed 1", 8),
        ("-n 3 sft/train.py", 3),
        ("sft/train.py --num_processes 2", 1),
        ("--num_processes", 1),
        ("--num_processes two sft/train.py", 1),
        ("--config_file accelerate.yaml sft/train.py", 1),
    ],
)
def test_the_number_that_accelerate_was_given(words, asked):
    assert asked_processes([*LAUNCH, *words.split()]) == asked
    assert asked_processes(["python", "-m", "accelerate.commands.launch", *words.split()]) == asked


def test_other_programs_mean_other_things_by_their_flags():
    assert asked_processes(["xargs", "-n", "2", "python", "sft/train.py"]) == 1
    assert asked_processes([]) == 1


class FakeParent:
    def __init__(self, command: list[str] | None) -> None:
        self.command = command

    def parent(self) -> FakeParent | None:
        return self if self.command is not None else None

    def cmdline(self) -> list[str]:
        return self.command


@pytest.mark.parametrize(
    ("command", "world_size", "refused"),
    [
        ([*LAUNCH, "--num_processes", "2", "sft/train.py"], None, True),
        ([*LAUNCH, "--num_processes", "2", "sft/train.py"], "1", True),
        ([*LAUNCH, "--num_processes", "2", "sft/train.py"], "2", False),
        ([*LAUNCH, "--num_processes", "1", "sft/train.py"], None, False),
        (["bash", "run_quickstart.sh"], None, False),
        (None, None, False),
    ],
)
def test_only_a_single_process_that_should_be_several_is_refused(monkeypatch, command, world_size, refused):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    monkeypatch.setattr(processes.psutil, "Process", lambda: FakeParent(command))
    if refused:
        with pytest.raises(InputError, match=r"asked for 2 processes but started one.*two_processes\.yaml"):
            refuse_fewer_processes_than_asked()
    else:
        refuse_fewer_processes_than_asked()


@pytest.mark.parametrize(("started", "gpus", "refused"), [(2, 1, True), (8, 8, False), (2, 0, False), (1, 8, False)])
def test_more_processes_than_gpus_are_refused(monkeypatch, started, gpus, refused):
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(started))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if refused:
        with pytest.raises(InputError, match="2 processes were started on a host with 1 GPU; add `--num_processes 1`"):
            refuse_wrong_number_of_processes()
    else:
        refuse_wrong_number_of_processes()


def test_bf16_is_only_claimed_where_products_in_it_work():
    assert isinstance(has_bf16(), bool)
    if has_bf16():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        matrix = torch.eye(64, dtype=torch.bfloat16, device=device)
        assert torch.equal(matrix @ matrix, matrix)
