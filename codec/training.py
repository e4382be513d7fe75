"""The training loop of the codec's two networks, in one process or several (accelerate): batches, learning rate, measurements, checkpoints.

What a step draws is a function of the seed and the step, so a resumed run goes on as an undisturbed one; every process takes its share of a
step's rows, and a step's loss is the mean over all tokens of all processes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from sidrec.codec.settings import CodecTrainingSettings
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, write_json
from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.autoencoders.training import Batches

CHECKPOINTS, NEWEST = "checkpoints", "newest.json"
DROPOUT, REVIVAL = 1, 2  # what random numbers are drawn for
MICRO_BATCH = "train_micro_batch_size_per_gpu"


@dataclass(frozen=True)
class StepLoss:
    """loss: the mean over what this process predicts, a scalar with a gradient. weight: how much that is, such as its number of tokens.

    after: what no gradient does, called with the step and its random generator when the weights have moved.
    """

    loss: Tensor
    weight: Tensor
    after: Callable[[int, np.random.Generator], None] | None = None


class Learner(Protocol):
    """What is trained: its network, its loss on some rows, and its figures on valid."""

    @property
    def network(self) -> nn.Module: ...

    def loss(self, network: nn.Module, rows: np.ndarray, rng: np.random.Generator) -> StepLoss:
        """network: `self.network`, as accelerate has wrapped it. rows: numbers of training rows."""
        ...

    def measure(self) -> dict[str, float]: ...

    def slow_weights(self) -> list[nn.Parameter]:
        """Weights that stay as they are for the first `frozen_steps`."""
        ...


class CodecTraining:
    """One training: the same bytes for the same seed and number of processes, killed and resumed or not."""

    def __init__(
        self,
        learner: Learner,
        n_rows: int,
        settings: CodecTrainingSettings,
        folder: Path,
        screen: Screen,
        frozen_steps: int = 0,
    ) -> None:
        self.learner, self.settings, self.screen = learner, settings, screen
        self.accelerator = accelerator_of(settings)
        if settings.batch_size % self.accelerator.num_processes:
            raise InputError(
                f"batch_size is {settings.batch_size}, which {self.accelerator.num_processes} processes cannot share equally; "
                "give a multiple."
            )
        if n_rows < settings.batch_size:
            raise InputError(
                f"batch_size is {settings.batch_size}, and there are {n_rows} rows of training text; lower it, or give more text."
            )
        self.batches = Batches(n_rows, settings.batch_size, settings.seed)
        self.folder = folder / CHECKPOINTS
        slow = {id(weight) for weight in learner.slow_weights()}
        weights = [weight for weight in learner.network.parameters() if weight.requires_grad]
        groups = [
            {"params": [weight for weight in weights if id(weight) not in slow], "frozen_steps": 0},
            {"params": [weight for weight in weights if id(weight) in slow], "frozen_steps": frozen_steps},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
        )
        self.network, self.optimizer = self.accelerator.prepare(learner.network, optimizer)
        self.step, self.curve = 0, list[dict[str, Any]]()

    def run(self, start: Callable[[], None]) -> list[dict[str, Any]]:
        """Train to the last step. start: called before the first, but not when a checkpoint is gone on from. Returns the curve."""
        if not self._resumed():
            start()
            self._measured({})
        settings = self.settings
        losses: list[float] = []
        self.network.train()
        with self.screen.bar("training", settings.training_steps, "steps", self.step) as bar:
            while self.step < settings.training_steps:
                losses.append(self._one_step(self.step + 1))
                self.step += 1
                bar.advance(1, f"loss {losses[-1]:.3g}")
                if self.step % settings.evaluate_every == 0 or self.step == settings.training_steps:
                    self._measured({"training_loss": sum(losses) / len(losses)})
                    self._save()
                    losses = []
        return self.curve

    def _one_step(self, step: int) -> float:
        accelerator, settings = self.accelerator, self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if step <= group["frozen_steps"] else rate_of(step, settings)
        share = settings.batch_size // accelerator.num_processes
        mine = self.batches.rows(step)[accelerator.process_index * share :][:share]
        torch.manual_seed(int(np.random.default_rng([settings.seed, DROPOUT, step]).integers(2**63)))
        draws = np.random.default_rng([settings.seed, DROPOUT, step, accelerator.process_index])
        with accelerator.autocast():
            made = self.learner.loss(self.network, mine, draws)
        total = accelerator.reduce(made.weight.detach().float(), "sum")
        weighed = made.loss * (made.weight * accelerator.num_processes / total)
        self.optimizer.zero_grad()
        accelerator.backward(weighed)
        accelerator.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        self.optimizer.step()
        if made.after is not None:
            made.after(step, np.random.default_rng([settings.seed, REVIVAL, step]))
        loss = float(accelerator.reduce(weighed.detach(), "mean"))
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {step}; lower --learning_rate, which is {settings.learning_rate:g}, and pass --overwrite true."
            )
        return loss

    def _measured(self, of_steps: dict[str, float]) -> None:
        self.network.eval()
        with torch.no_grad(), self.accelerator.autocast():
            self.curve.append({"step": self.step} | of_steps | self.learner.measure())
        self.network.train()
        self.screen.note(json.dumps(self.curve[-1]))

    def _save(self) -> None:
        """A checkpoint beside the last one, which goes when the new one is whole."""
        name = f"step_{self.step}"
        self.accelerator.save_state(str(self.folder / name))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(self.folder / NEWEST, {"name": name, "step": self.step, "curve": self.curve})
            for other in self.folder.glob("step_*"):
                if other.name != name:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()

    def forget(self) -> None:
        """Delete the checkpoint of a training whose result is saved."""
        (self.folder / NEWEST).unlink(missing_ok=True)
        for checkpoint in self.folder.glob("step_*"):
            shutil.rmtree(checkpoint)

    def _resumed(self) -> bool:
        if not (self.folder / NEWEST).exists():
            return False
        newest = read_json(self.folder / NEWEST)
        try:
            self.accelerator.load_state(str(self.folder / newest["name"]))
            self.step, self.curve = int(newest["step"]), newest["curve"]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.folder} holds no whole checkpoint ({reason}); delete it to train anew.") from error
        return True


def join_processes() -> None:
    """Let the processes of one run know of each other, by gloo where there is no GPU; before the first of them claims the stage."""
    PartialState(cpu=not torch.cuda.is_available())


def accelerator_of(settings: CodecTrainingSettings) -> Accelerator:
    """Of this process; under DeepSpeed told the batch, which no data loader tells it."""
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "1"  # where a launcher's config says `auto`
    accelerator = Accelerator(mixed_precision="bf16" if settings.bf16 else "no", cpu=not torch.cuda.is_available())
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config[MICRO_BATCH] = settings.batch_size // accelerator.num_processes
    return accelerator


def rate_of(step: int, settings: CodecTrainingSettings) -> float:
    """The learning rate of a step (from 1): a line up over the warm-up, then half a cosine."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    share = (step - 1 - settings.warmup_steps) / max(settings.training_steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def pieces(n_rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def batch_of(rows: np.ndarray, device: torch.device, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B, T] and lengths int64 [B] of rows [B, T] that are filled up with `pad` at their end."""
    assert rows.ndim == 2
    ids = torch.from_numpy(np.ascontiguousarray(rows).astype(np.int64)).to(device)
    return ids, ids.shape[1] - (ids == pad).flip(1).long().cumprod(1).sum(1)
