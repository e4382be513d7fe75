"""Checkpoints of a training run: which one to resume from after a kill, at any moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None. Broken ones are deleted: their kill came while they were written.

    Trainer writes `trainer_state.json` last, so a checkpoint is whole when that file can be read.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return str(checkpoint)
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(checkpoint)
    return None


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run; the chosen model is saved beside them."""
    shutil.rmtree(folder, ignore_errors=True)
