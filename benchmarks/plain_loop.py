"""A training loop without a trainer, for benchmarks: batches of similar length, one step of AdamW, and the clock of one with a trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from datasets import Dataset as TrainingRows
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from sidrec.sft.examples import ExampleCollator


def endless_batches(
    rows: TrainingRows, collate: ExampleCollator, batch_size: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of rows of similar length, pass after pass, in the seed's order, which is dropout's seed too."""
    order = torch.Generator().manual_seed(seed)
    sampler = LengthGroupedSampler(batch_size, lengths=rows["length"], generator=order)
    loader = DataLoader(rows, batch_size, sampler=sampler, collate_fn=collate)
    torch.manual_seed(seed)
    while True:
        yield from loader


def step(loss: Tensor, model: PreTrainedModel, optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Backward, gradients of norm 1 at most, one update."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


class StepClock(TrainerCallback):
    """CPU seconds from the second step's begin to the last one's end."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 1:  # type: ignore[attr-defined]
            self.seconds = -time.process_time()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.seconds += time.process_time()
