"""Several processes of one run: how many were asked for, and how they claim a stage together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage

Answer = TypeVar("Answer")


def refuse_wrong_number_of_processes() -> None:
    """Raise InputError when there are fewer processes than accelerate was asked for, or more on this host than it has GPUs."""
    import torch

    refuse_fewer_processes_than_asked()
    started, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if started > gpus > 0:
        raise InputError(
            f"{started} processes were started on a host with {gpus} GPU{'s' if gpus > 1 else ''}; "
            f"add `--num_processes {gpus}` before the script's name (on several hosts, the number of all their GPUs)."
        )


def refuse_fewer_processes_than_asked() -> None:
    """Raise InputError when `accelerate launch --num_processes N` started one process only.

    On a machine without a GPU accelerate does so without a word, and the batch would be N times too small.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    parent = psutil.Process().parent()
    command = parent.cmdline() if parent is not None else []
    asked = asked_processes(command)
    if asked > 1:
        raise InputError(
            f"accelerate was asked for {asked} processes but started one, as it does on a machine without a GPU; "
            "use `--config_file configs/accelerate/two_processes.yaml`."
        )


def asked_processes(command: list[str]) -> int:
    """The number behind `--num_processes` (or `-n`, `--num-processes`) in accelerate's command line; 1 when there is none.

    Also 1 when the command is not accelerate's: `xargs -n 2` means something else.
    """
    if not any("accelerate" in word for word in command):
        return 1
    for position, word in enumerate(command):
        flag, _, value = word.partition("=")
        if word.endswith(".py"):
            break  # what follows are the script's own flags
        if flag in ("--num_processes", "--num-processes", "-n"):
            value = value or (command[position + 1] if position + 1 < len(command) else "")
            return int(value) if value.isdigit() else 1
    return 1


def decided_by_the_first(question: Callable[[], Answer]) -> Answer:
    """What `question` answers in the first process of a run, for all of them; an InputError of it is raised in each.

    All processes call it at once.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    answer: list[Answer | None] = [None]
    refusal: list[str | None] = [None]
    if PartialState().is_main_process:
        try:
            answer = [question()]
        except InputError as error:
            refusal = [str(error)]
    if PartialState().num_processes > 1:
        answer, refusal = broadcast_object_list(answer), broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise InputError(refusal[0])
    return answer[0]  # type: ignore[return-value]


def finished_already(stage: Stage, overwrite: bool, screen: Screen) -> bool:
    """Whether there is nothing to do, and a word when so. Changes nothing: bad input that is found later claims no folder."""
    if overwrite or not decided_by_the_first(stage.is_finished):
        return False
    screen.say(f"{stage.name}: finished already, nothing to do ({stage.folder})")
    return True


@contextmanager
def building_together(stage: Stage, overwrite: bool) -> Iterator[Path]:
    """`Stage.building` of a resumable stage in every process of a run: the first takes the lock, then the others enter.

    Where the first is refused, as when another command is at work there, all are, with its sentence.
    """
    from accelerate import PartialState

    first = PartialState().is_main_process
    with ExitStack() as stack:
        building = stage.building(overwrite, resumable=True, leader=first)
        decided_by_the_first(lambda: str(stack.enter_context(building)))
        yield stage.folder if first else stack.enter_context(building)
