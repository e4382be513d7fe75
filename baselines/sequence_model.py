"""What the neural baselines share: a model of item sequences, how it is trained until valid stops rising, and how it scores.

A kind of model is a frozen dataclass of its settings (`SasRecSettings`, `BsaRecSettings`) that builds the model and its optimizer, and
runs one epoch. Everything else is here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.baselines.losses import PAD
from sidrec.baselines.scorer import valid_recall
from sidrec.data.dataset import EvalCases
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.precision import has_bf16
from sidrec.pipeline.screen import Screen

SCORED_TOGETHER = 128
VALID_CASES = 2000


class SequenceModel(nn.Module):
    """A history in, a state out; the products with the item embeddings score the next item."""

    items: nn.Embedding

    def last_states(self, histories: list[np.ndarray]) -> Tensor:
        """[B, dim]: the state after each history, oldest item first; the newest items alone, where there are more than the model reads."""
        raise NotImplementedError

    def logits(self, states: Tensor) -> Tensor:
        """states: [..., dim] -> [..., N]."""
        return states @ self.items.weight.T


class SequenceSettings(Protocol):
    """A kind of model and its settings. epochs: most passes over the training sequences. patience: epochs without a better valid Recall@10.
    grid: what may be tried on valid, the first point of it where nothing is tuned."""

    @property
    def epochs(self) -> int: ...

    @property
    def patience(self) -> int: ...

    grid: ClassVar[tuple[dict[str, Any], ...]]

    def build(self, n_items: int) -> SequenceModel:
        """A new model, drawn from torch's current random state."""
        ...

    def optimizer(self, model: SequenceModel) -> torch.optim.Optimizer: ...

    def epoch(self, training: TrainingState, sequences: list[np.ndarray], seed: int) -> Iterator[float]:
        """One pass over the training sequences; yields the share of the epoch (0…1) that each batch is.

        The random state is a function of the seed and the epoch, so an epoch is the same whether or not the run was interrupted before.
        """
        ...


@dataclass(frozen=True)
class SequenceScorer:
    """A trained model as a baseline. `valid_recall`: Recall@10 on valid after each epoch, seen items masked. `cut_short`: the time
    limit ended its training, so that it depends on the machine's speed."""

    model: SequenceModel
    valid_recall: list[float]
    cut_short: bool = False
    name: str = "sasrec"

    @torch.no_grad()
    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Histories, oldest first -> float32 [B, N]."""
        self.model.eval()
        device = self.model.items.weight.device
        scores = np.empty((len(histories), self.model.items.num_embeddings), np.float32)
        by_length = np.argsort([len(history) for history in histories], kind="stable")
        for start in range(0, len(histories), SCORED_TOGETHER):
            chosen = by_length[start : start + SCORED_TOGETHER]
            with autocast(device):
                states = self.model.last_states([histories[i] for i in chosen])
            scores[chosen] = self.model.logits(states.float()).cpu().numpy()
        return scores


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies in it (a fifth off an epoch's time with AVX512-BF16), else no change."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16(device.type))


def padded(sequences: list[np.ndarray], left_to: int | None = None) -> Tensor:
    """int64 [B, longest], PAD on the right; with `left_to`, [B, left_to], PAD on the left and the oldest items left out."""
    width = left_to or max(len(sequence) for sequence in sequences)
    rows = torch.full((len(sequences), width), PAD)
    for row, sequence in zip(rows, sequences, strict=True):
        newest = torch.from_numpy(sequence[-width:])
        row[slice(width - len(newest), None) if left_to else slice(len(newest))] = newest
    return rows


@dataclass
class TrainingState:
    """The state of a training run: everything that the next epoch depends on, together with the seed."""

    model: SequenceModel
    optimizer: torch.optim.Optimizer
    valid_recall: list[float]
    best_weights: dict[str, Tensor]
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        return len(self.valid_recall)

    def has_converged(self, settings: SequenceSettings) -> bool:
        """All epochs done, or no better valid Recall@10 for `patience` epochs."""
        if not self.valid_recall:
            return False
        without_progress = self.epoch - 1 - int(np.argmax(self.valid_recall))
        return self.epoch >= settings.epochs or without_progress >= settings.patience

    def is_over(self, settings: SequenceSettings, minutes: float) -> bool:
        """Converged, or the time is up (after one epoch at least)."""
        return self.has_converged(settings) or (self.epoch > 0 and self.seconds >= minutes * 60)

    def record(self, recall: float) -> None:
        """Note an epoch's valid Recall@10, and keep the weights if it is the best so far."""
        if not self.valid_recall or recall > max(self.valid_recall):
            self.best_weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.valid_recall.append(recall)

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "valid_recall": self.valid_recall,
            "best_weights": self.best_weights,
            "seconds": self.seconds,
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.valid_recall, self.best_weights = state["valid_recall"], state["best_weights"]
        self.seconds = state["seconds"]


def on_device(settings: SequenceSettings, n_items: int) -> SequenceModel:
    """A new model where it is trained and asked."""
    return settings.build(n_items).to("cuda" if torch.cuda.is_available() else "cpu")


def train(
    train_sequences: list[np.ndarray],
    valid: EvalCases,
    n_items: int,
    settings: SequenceSettings,
    seed: int,
    minutes: float,
    checkpoint: Path,
    screen: Screen | None = None,
    name: str = "sasrec",
) -> SequenceScorer:
    """Train until valid Recall@10 (seen items masked, at most 2,000 cases) stops rising; return the best epoch's model.

    `checkpoint` is rewritten after every epoch; a run that finds one goes on from there and ends as if it had not been interrupted.
    `minutes` caps the training time, summed over interruptions; a run that the cap ends depends on the machine's speed. screen: where
    its bar is drawn.
    """
    watched = valid.first_of_shuffle(VALID_CASES, seed)
    screen = screen or Screen(name, quiet=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = on_device(settings, n_items)
        training = TrainingState(model, settings.optimizer(model), [], {})
        if checkpoint.exists():
            training.restore(checkpoint)
        with screen.bar(name, settings.epochs, "epochs", done=training.epoch) as bar:
            while not training.is_over(settings, minutes):
                started = time.monotonic()
                for share in settings.epoch(training, train_sequences, seed):
                    bar.advance(share)
                training.record(valid_recall(SequenceScorer(training.model, []), watched))
                training.seconds += time.monotonic() - started
                training.save(checkpoint)
                bar.advance(0, f"valid Recall@10 {training.valid_recall[-1]:.3f}")
    training.model.load_state_dict(training.best_weights)
    return SequenceScorer(training.model, training.valid_recall, not training.has_converged(settings), name)
