"""SASRec (arXiv 1808.09781) with a choice of loss and block: the neural baselines of the table.

The architecture is the paper's: item embeddings tied with the output layer, learned positions, causal self-attention blocks. What
differs, each for a reason: normalisation before each branch, and dropout on the embeddings and the residual branches only (inside
the attention it turns off torch's fused CPU kernel). Every position of every training sequence is a training case.

loss: `softmax` is the full cross-entropy, `bce` the paper's own with one sampled negative, `sampled_softmax` the full one's estimate
from a few hundred shared negatives. block: `sasrec`, or `ligr` for gated residuals; `ligr` with `sampled_softmax` is eSASRec
(arXiv 2508.06450).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.baselines.losses import PAD, bce_loss, draw_outside, popularity_proposal, sampled_softmax_loss, softmax_loss
from sidrec.baselines.scorer import valid_recall
from sidrec.baselines.transformer_blocks import LigrBlock, SasRecBlock
from sidrec.data.dataset import EvalCases
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.precision import has_bf16
from sidrec.pipeline.screen import Screen

BLOCKS = {"sasrec": SasRecBlock, "ligr": LigrBlock}
SCORED_TOGETHER = 128
VALID_CASES = 2000


@dataclass(frozen=True)
class SasRecSettings:
    """Sizes and training settings, chosen on the valid split of MovieLens-100K."""

    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    max_length: int = 200  # items of history that the model sees
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    batch_items: int = 2048  # items a batch, padding included
    epochs: int = 30
    patience: int = 10  # epochs without a better valid Recall@10
    loss: Literal["softmax", "bce", "sampled_softmax"] = "softmax"
    block: Literal["sasrec", "ligr"] = "sasrec"
    negatives: int = 512  # items drawn a batch, shared by its positions; sampled_softmax only


class SasRec(nn.Module):
    """Item sequences in, one hidden state a position out; the item embeddings score the next item."""

    def __init__(self, n_items: int, settings: SasRecSettings) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, settings.dim)
        self.positions = nn.Embedding(settings.max_length, settings.dim)
        self.blocks = nn.ModuleList(
            BLOCKS[settings.block](settings.dim, settings.heads, settings.dropout) for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, sequences: Tensor) -> Tensor:
        """sequences: int64 [B, T], PAD on the right -> hidden states [B, T, dim]."""
        assert sequences.dim() == 2
        assert sequences.shape[1] <= self.positions.num_embeddings
        hidden = self.items(sequences.clamp(min=0)) + self.positions.weight[: sequences.shape[1]]
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., dim] -> [..., N]."""
        return hidden @ self.items.weight.T


@dataclass(frozen=True)
class SasRecScorer:
    """A trained SASRec as a baseline. `valid_recall`: Recall@10 on valid after each epoch, seen items masked. `cut_short`: the time
    limit ended its training, so that it depends on the machine's speed."""

    model: SasRec
    max_length: int
    valid_recall: list[float]
    cut_short: bool = False
    name: str = "sasrec"

    @torch.no_grad()
    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Histories (oldest first, the last `max_length` items are read) -> float32 [B, N]."""
        self.model.eval()
        device = self.model.items.weight.device
        scores = np.empty((len(histories), self.model.items.num_embeddings), np.float32)
        by_length = np.argsort([len(history) for history in histories], kind="stable")
        for start in range(0, len(histories), SCORED_TOGETHER):
            chosen = by_length[start : start + SCORED_TOGETHER]
            recent = [histories[i][-self.max_length :] for i in chosen]
            last = torch.tensor([len(history) - 1 for history in recent], device=device)
            with autocast(device):
                hidden = self.model(padded(recent).to(device))[torch.arange(len(chosen), device=device), last]
            scores[chosen] = self.model.logits(hidden.float()).cpu().numpy()
        return scores


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies in it (a fifth off an epoch's time with AVX512-BF16), else no change."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16(device.type))


def padded(sequences: list[np.ndarray]) -> Tensor:
    """Sequences -> int64 [B, longest], PAD on the right."""
    rows = torch.full((len(sequences), max(len(sequence) for sequence in sequences)), PAD)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(sequence)
    return rows


def windows(sequences: list[np.ndarray], max_length: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut sequences into pieces of at most max_length + 1 items, each starting with the last item of the piece before.

    So every item but a sequence's first is a target once. Long sequences are cut at a random offset, a new one each epoch.
    """
    pieces = []
    for sequence in sequences:
        start, end = 0, len(sequence) - 1
        stop = end if end <= max_length else int(rng.integers(1, max_length + 1))
        while start < end:
            pieces.append(sequence[start : stop + 1])
            start, stop = stop, min(stop + max_length, end)
    return pieces


def batches(sequences: list[np.ndarray], settings: SasRecSettings, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """An epoch's batches: windows of about one length together, at most `batch_items` with padding, in random order."""
    pieces = windows(sequences, settings.max_length, rng)
    noise = rng.uniform(0.9, 1.1, len(pieces))  # other neighbours every epoch
    by_length = np.argsort(noise * [len(piece) for piece in pieces], kind="stable")
    filled: list[list[np.ndarray]] = [[]]
    longest = 0
    for piece in (pieces[i] for i in by_length):
        longest = max(longest, len(piece) - 1)
        if filled[-1] and longest * (len(filled[-1]) + 1) > settings.batch_items:
            filled.append([])
            longest = len(piece) - 1
        filled[-1].append(piece)
    return [filled[i] for i in rng.permutation(len(filled))]


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first 2 % of training, then a half cosine to 5 %. progress: 0…1."""
    return min(progress / 0.02, 1.0) * (0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * progress)))


@dataclass
class TrainingState:
    """The state of a training run: everything that the next epoch depends on, together with the seed."""

    model: SasRec
    optimizer: torch.optim.AdamW
    valid_recall: list[float]
    best_weights: dict[str, Tensor]
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        return len(self.valid_recall)

    def has_converged(self, settings: SasRecSettings) -> bool:
        """All epochs done, or no better valid Recall@10 for `patience` epochs."""
        if not self.valid_recall:
            return False
        without_progress = self.epoch - 1 - int(np.argmax(self.valid_recall))
        return self.epoch >= settings.epochs or without_progress >= settings.patience

    def is_over(self, settings: SasRecSettings, minutes: float) -> bool:
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


def start_training(n_items: int, settings: SasRecSettings) -> TrainingState:
    """A new model and its optimizer, drawn from torch's current random state."""
    model = SasRec(n_items, settings).to("cuda" if torch.cuda.is_available() else "cpu")
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    return TrainingState(model, optimizer, [], {})


def train_epoch(
    training: TrainingState, sequences: list[np.ndarray], settings: SasRecSettings, seed: int
) -> Iterator[float]:
    """One pass over the training sequences; yields the share of the epoch (0…1) that each batch is.

    The random state is a function of the seed and the epoch, so an epoch is the same whether or not the run was interrupted before.
    """
    model, optimizer, device = training.model, training.optimizer, training.model.items.weight.device
    torch.manual_seed(seed * 1_000_003 + training.epoch + 1)
    epoch_batches = batches(sequences, settings, np.random.default_rng([seed, training.epoch]))
    counts = torch.tensor(np.bincount(np.concatenate(sequences), minlength=model.items.num_embeddings), device=device)
    proposal = popularity_proposal(counts)
    model.train()
    for index, batch in enumerate(epoch_batches):
        rows = padded(batch).to(device)
        progress = (training.epoch + (index + 1) / len(epoch_batches)) / settings.epochs
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(progress)
        with autocast(device):
            loss = batch_loss(model, rows, settings, proposal)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield 1 / len(epoch_batches)


def batch_loss(model: SasRec, rows: Tensor, settings: SasRecSettings, proposal: Tensor) -> Tensor:
    """The loss of windows of training sequences: each item but a row's first is predicted from those before it.

    rows: int64 [B, T], PAD on the right; proposal: float [N], what sampled negatives are drawn from.
    """
    inputs, targets = rows[:, :-1], rows[:, 1:]
    is_case = targets != PAD
    hidden, targets = model(inputs)[is_case], targets[is_case]
    items = model.items.weight
    if settings.loss == "bce":
        return bce_loss(hidden, items, targets, draw_outside(rows, len(items))[:, 1:][is_case])
    if settings.loss == "sampled_softmax":
        negatives = torch.multinomial(proposal, settings.negatives, replacement=True)
        return sampled_softmax_loss(hidden, items, targets, negatives, proposal)
    return softmax_loss(hidden, items, targets)


def train_sasrec(
    train_sequences: list[np.ndarray],
    valid: EvalCases,
    n_items: int,
    settings: SasRecSettings,
    seed: int,
    minutes: float,
    checkpoint: Path,
    screen: Screen | None = None,
    name: str = "sasrec",
) -> SasRecScorer:
    """Train until valid Recall@10 (seen items masked, at most 2,000 cases) stops rising; return the best epoch's model.

    `checkpoint` is rewritten after every epoch; a run that finds one goes on from there and ends as if it had not been interrupted.
    `minutes` caps the training time, summed over interruptions; a run that the cap ends depends on the machine's speed. screen: where
    its bar is drawn.
    """
    watched = valid.first_of_shuffle(VALID_CASES, seed)
    screen = screen or Screen(name, quiet=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        training = start_training(n_items, settings)
        if checkpoint.exists():
            training.restore(checkpoint)
        with screen.bar(name, settings.epochs, "epochs", done=training.epoch) as bar:
            while not training.is_over(settings, minutes):
                started = time.monotonic()
                for share in train_epoch(training, train_sequences, settings, seed):
                    bar.advance(share)
                training.record(valid_recall(SasRecScorer(training.model, settings.max_length, []), watched))
                training.seconds += time.monotonic() - started
                training.save(checkpoint)
                bar.advance(0, f"valid Recall@10 {training.valid_recall[-1]:.3f}")
    training.model.load_state_dict(training.best_weights)
    cut_short = not training.has_converged(settings)
    return SasRecScorer(training.model, settings.max_length, training.valid_recall, cut_short, name)
