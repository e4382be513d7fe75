"""The state of a quantizer's training, on disk: what a killed run goes on from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path


@dataclass
class TrainingState:
    """Where training stands after `step` steps.

    rows: the training curve so far; model, optimizer: state_dicts; best_step, best: the measured state to keep (best_step -1: none yet).
    No random generator is part of it: what a step draws is a function of the seed and the step.
    """

    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best_step: int = -1
    best: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path, config: dict[str, Any]) -> None:
        """Write one file, atomically. config: what decides the training's result, as JSON can hold it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save(vars(self) | {"config": json.loads(json.dumps(config))}, temporary)

    @classmethod
    def load(cls, path: Path, config: dict[str, Any]) -> TrainingState | None:
        """What `save` wrote; None when there is no file.

        Raises InputError when the file is no checkpoint, or one of another config, naming the first field that differs.
        """
        if not path.exists():
            return None
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            before = saved.pop("config")
            state = cls(**saved)
        except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, UnpicklingError) as error:
            reason = str(error).split("\n")[0][:200]
            raise InputError(
                f"{path} is not a checkpoint of this project ({reason}); delete it and run again."
            ) from error
        wanted = json.loads(json.dumps(config))
        for name in sorted(set(before) | set(wanted)):
            if before.get(name) != wanted.get(name):
                raise InputError(
                    f"{path} is of a training with {name}={before.get(name)!r}, not {wanted.get(name)!r}; delete it to train anew."
                )
        return state
