"""Histories with a share of their items left out, others at every pass: an item is learnt from more than the one before it.

In the manner of the masked and cropped sequences of CL4SRec (arXiv 2010.14395), without its contrastive loss.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import TrainerCallback

DROPPED_TASK = "next_item"
FEWEST = 2  # items that a history keeps: one to start from and one to ask for


class ItemDropout(TrainerCallback):
    """What is left out depends on the seed, the pass and the history alone: the same in any number of processes and after a resume."""

    def __init__(self, share: float, seed: int) -> None:
        """share: 0 to below 1, of the items; each is left out with this probability."""
        self.share, self.seed, self.epoch = share, seed, 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch + 1e-6)  # passes that are over; a part of one after a resume

    def __call__(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row of tasks (`sft/tasks.py`) with fewer items; itself, where it is of another task or would keep less than FEWEST."""
        if not self.share or row["task"] != DROPPED_TASK:
            return row
        items = np.asarray(row["items"])
        rng = np.random.default_rng([self.seed, self.epoch, zlib.crc32(items.tobytes())])
        stays = rng.random(len(items)) >= self.share
        if stays.sum() < FEWEST:
            return row
        return {**row, "items": items[stays].tolist(), "context": int(stays[: row["context"]].sum())}
