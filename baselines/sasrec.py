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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.baselines.losses import PAD, bce_loss, draw_outside, popularity_proposal, sampled_softmax_loss, softmax_loss
from sidrec.baselines.sequence_model import SequenceModel, TrainingState, autocast, padded
from sidrec.baselines.transformer_blocks import LigrBlock, SasRecBlock

BLOCKS = {"sasrec": SasRecBlock, "ligr": LigrBlock}


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

    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 64, "dropout": 0.2, "learning_rate": 2e-3},
        {"dim": 64, "dropout": 0.5, "learning_rate": 2e-3},
        {"dim": 128, "dropout": 0.2, "learning_rate": 1e-3},
        {"dim": 128, "dropout": 0.5, "learning_rate": 1e-3},
    )

    def build(self, n_items: int) -> SasRec:
        return SasRec(n_items, self)

    def optimizer(self, model: SequenceModel) -> torch.optim.Optimizer:
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() != 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.98))

    def epoch(self, training: TrainingState, sequences: list[np.ndarray], seed: int) -> Iterator[float]:
        return train_epoch(training, sequences, self, seed)


class SasRec(SequenceModel):
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

    def last_states(self, histories: list[np.ndarray]) -> Tensor:
        """[B, dim], of the last `max_length` items."""
        device, recent = self.items.weight.device, [history[-self.positions.num_embeddings :] for history in histories]
        last = torch.tensor([len(history) - 1 for history in recent], device=device)
        return self(padded(recent).to(device))[torch.arange(len(recent), device=device), last]


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


def train_epoch(
    training: TrainingState, sequences: list[np.ndarray], settings: SasRecSettings, seed: int
) -> Iterator[float]:
    """See `SequenceSettings.epoch`."""
    assert isinstance(training.model, SasRec)
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
