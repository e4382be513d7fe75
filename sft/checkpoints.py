"""Checkpoints of a training run: which one to resume from after a kill, at any moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import TrainingArguments

from sidrec.pipeline.errors import InputError


def refuse_unsaved_measurements(training: TrainingArguments) -> None:
    """Raise InputError when a model would be measured and not saved: it might be the best, and could not be kept."""
    by_steps = training.eval_strategy == "steps" and training.save_strategy == "steps"
    if by_steps and training.save_steps != training.eval_steps:
        raise InputError(
            f"save_steps={training.save_steps:g} is not eval_steps={training.eval_steps:g}: "
            "a model that is measured but not saved cannot be chosen; make them equal."
        )


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole, or None. Broken ones are deleted: their kill came while they were written or deleted.

    All processes of a run may call it at once.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        if _is_whole(checkpoint):
            return str(checkpoint)
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Trainer writes `trainer_state.json` last; when it deletes, at its very end, the weights may go before that file does."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return any(checkpoint.glob("*.safetensors"))


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run; the chosen model is saved beside them."""
    shutil.rmtree(folder, ignore_errors=True)
