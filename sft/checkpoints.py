"""Checkpoints of a training run: sealed when they are written, and which one to go on from after a kill, at any moment."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, sha256, write_json

NAME = re.compile(r"checkpoint-(\d+)")
SEAL = "sealed.json"


class SealCheckpoints(TrainerCallback):
    """Seals a checkpoint when all processes have written their part of it; after a move of the run directory, the best one is found."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if state.best_model_checkpoint is None and state.best_global_step and best.is_dir():
            state.best_model_checkpoint = str(best)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            seal(checkpoint, args.world_size)


def seal(checkpoint: Path, world_size: int) -> None:
    """Write down the sha256 of every file of a checkpoint, and how many processes it is of."""
    files = {str(file.relative_to(checkpoint)): sha256(file) for file in files_of(checkpoint)}
    write_json(checkpoint / SEAL, {"files": files, "world_size": world_size})


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != SEAL)


def last_whole_checkpoint(
    folder: Path, world_size: int = 1, say: Callable[[str], object] = lambda sentence: None
) -> str | None:
    """The newest checkpoint that is as it was sealed, as is the best one of which it says so, or None. Others are deleted: a kill came
    while they were written or deleted, or something changed them since, and then `say` is told.

    All processes of a run may call it at once. Files and folders of other names are left alone.
    """
    checkpoints = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if is_whole(checkpoint, world_size):
            best = best_of(checkpoint)
            if best is None or best == checkpoint or is_whole(best, world_size):
                return str(checkpoint)
            say(f"{best}, the best so far, is not as it was written; going on from before it")
        elif (checkpoint / SEAL).exists():
            say(f"{checkpoint} is not as it was written, or of another number of processes; going on from before it")
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def is_whole(checkpoint: Path, world_size: int = 1) -> bool:
    """Whether training goes on from `checkpoint` as if it had never stopped.

    Trainer goes on without a word where a file is missing or another one's, and trains another model.
    """
    try:
        sealed = read_json(checkpoint / SEAL)
        files = {str(file.relative_to(checkpoint)): sha256(file) for file in files_of(checkpoint)}
    except (InputError, OSError):
        return False
    return bool(sealed == {"files": files, "world_size": world_size})


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint beside this one whose model is the best so far, None where none was measured: Trainer loads it at the end."""
    name = Path(str(read_json(checkpoint / "trainer_state.json").get("best_model_checkpoint") or "")).name
    return checkpoint.with_name(name) if name else None


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run; the chosen model is saved beside them."""
    shutil.rmtree(folder, ignore_errors=True)
