"""Checkpoints of a training run: which one to resume from after a kill, at any moment."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

NAME = re.compile(r"checkpoint-(\d+)")


def last_whole_checkpoint(folder: Path, world_size: int = 1) -> str | None:
    """The newest checkpoint that is whole, or None. Broken ones are deleted: their kill came while they were written or deleted.

    All processes of a run may call it at once. Files and folders of other names are left alone.
    """
    checkpoints = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if is_whole(checkpoint, world_size):
            return str(checkpoint)
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def is_whole(checkpoint: Path, world_size: int = 1) -> bool:
    """Whether training goes on from `checkpoint` as if it had never stopped: the weights, the optimizer's state, the schedule and every
    process's random numbers are there and can be read.

    Trainer goes on without a word where one of them is missing, and trains another model. It writes `trainer_state.json` last; when it
    deletes, at its very end, the weights may go before that file does.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    random_states = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    weights = [*checkpoint.glob("*.safetensors")]
    archives = [path for ending in ("pt", "pth", "bin") for path in checkpoint.rglob(f"*.{ending}")]
    return (
        bool(weights)
        and all((checkpoint / name).is_file() for name in ("scheduler.pt", *random_states))
        and _has_optimizer(checkpoint, world_size)
        and all(map(_can_be_opened, weights))
        and all(map(zipfile.is_zipfile, archives))
    )


def _has_optimizer(checkpoint: Path, world_size: int) -> bool:
    """One file (FSDP calls it optimizer.bin), or DeepSpeed's: one a process."""
    if any((checkpoint / name).is_file() for name in ("optimizer.pt", "optimizer.bin")):
        return True
    return len([*checkpoint.glob("global_step*/*optim_states.pt")]) >= world_size


def _can_be_opened(weights: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with safe_open(weights, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run; the chosen model is saved beside them."""
    shutil.rmtree(folder, ignore_errors=True)
