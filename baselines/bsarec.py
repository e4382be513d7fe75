"""BSARec (arXiv 2312.10325): self-attention beside a filter that lets the low frequencies of a window through, the best published model
of its kind on Amazon Beauty.

As published: histories padded on the left to a fixed window, so that a frequency means the same in every row; every prefix of a training
sequence is a case of its own, with the loss on its last position alone, since the filter sees the whole window; cross-entropy over all
items; Adam with a constant learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.baselines.losses import PAD, softmax_loss
from sidrec.baselines.sequence_model import SequenceModel, TrainingState, autocast, padded


@dataclass(frozen=True)
class BsaRecSettings:
    """The published settings for Amazon Beauty. alpha: share of the filter beside the attention. cutoff: c, of which the lowest c // 2 + 1
    frequencies pass whole."""

    dim: int = 64
    layers: int = 2
    heads: int = 1
    dropout: float = 0.5  # of attention weights and of the branches
    alpha: float = 0.7
    cutoff: int = 5
    window: int = 50  # items of history that the model sees
    learning_rate: float = 5e-4
    batch_size: int = 256  # cases
    epochs: int = 200
    patience: int = 10  # epochs without a better valid Recall@10

    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"alpha": 0.7, "cutoff": 5},
        {"alpha": 0.3, "cutoff": 5},
        {"alpha": 0.7, "cutoff": 3},
        {"alpha": 0.3, "cutoff": 9},
    )

    def build(self, n_items: int) -> BsaRec:
        return BsaRec(n_items, self)

    def optimizer(self, model: SequenceModel) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.learning_rate)

    def epoch(self, training: TrainingState, sequences: list[np.ndarray], seed: int) -> Iterator[float]:
        model, device = training.model, training.model.items.weight.device
        torch.manual_seed(seed * 1_000_003 + training.epoch + 1)
        row, end = prefixes(sequences)
        order = np.random.default_rng([seed, training.epoch]).permutation(len(row))
        parts = np.split(order, range(self.batch_size, len(order), self.batch_size))
        model.train()
        for part in parts:
            histories = [sequences[row[case]][: end[case]] for case in part]
            targets = torch.tensor([sequences[row[case]][end[case]] for case in part], device=device)
            with autocast(device):
                loss = softmax_loss(model.last_states(histories), model.items.weight, targets)
            training.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            training.optimizer.step()
            yield 1 / len(parts)


@dataclass(frozen=True)
class PrefixSasRecSettings(BsaRecSettings):
    """SASRec (arXiv 1808.09781) as BSARec's authors train it: the same without the filter. Every prefix a case, so many times the steps
    of `sidrec.baselines.sasrec`, and where a catalogue is sparse a much better model."""

    alpha: float = 0.0

    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dropout": 0.5, "heads": 1},
        {"dropout": 0.3, "heads": 1},
        {"dropout": 0.5, "heads": 2},
        {"dropout": 0.3, "heads": 2},
    )


def prefixes(sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Every place in a sequence with something before it: int64 [cases], the sequence, and int64 [cases], the place."""
    counts = np.array([max(0, len(sequence) - 1) for sequence in sequences])
    row = np.repeat(np.arange(len(sequences)), counts)
    return row, np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts) + 1


class BsaRec(SequenceModel):
    """Padding is no item: its embedding is 0, and nothing attends to it."""

    def __init__(self, n_items: int, settings: BsaRecSettings) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, settings.dim)
        self.positions = nn.Embedding(settings.window, settings.dim)
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(BsaBlock(settings) for _ in range(settings.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, sequences: Tensor, newest: int | None = None) -> Tensor:
        """sequences: int64 [B, window], PAD on the left -> states [B, window, dim], or of the `newest` positions alone [B, newest, dim]."""
        assert sequences.shape[1] == self.positions.num_embeddings
        is_item = sequences != PAD
        hidden = self.items(sequences.clamp(min=0)) * is_item[..., None] + self.positions.weight
        hidden = self.dropout(self.norm(hidden))
        earlier = torch.ones(2 * (sequences.shape[1],), dtype=torch.bool, device=sequences.device).tril()
        attends = (earlier & is_item[:, None])[:, None]  # [B, 1, window, window]
        *lower, top = self.blocks
        for block in lower:
            hidden = block(hidden, attends)
        return top(hidden, attends, newest)

    def last_states(self, histories: list[np.ndarray]) -> Tensor:
        """[B, dim], of the last `window` items."""
        return self(padded(histories, self.positions.num_embeddings).to(self.items.weight.device), newest=1)[:, -1]


class BsaBlock(nn.Module):
    """alpha · filter + (1 - alpha) · attention, then a feed-forward network; each with its residual and, after it, a LayerNorm."""

    def __init__(self, settings: BsaRecSettings) -> None:
        super().__init__()
        self.alpha, self.heads = settings.alpha, settings.heads
        self.filter = FrequencyFilter(settings)
        self.query_key_value = nn.Linear(settings.dim, 3 * settings.dim)
        self.out = nn.Linear(settings.dim, settings.dim)
        self.network = nn.Sequential(
            nn.Linear(settings.dim, 4 * settings.dim), nn.GELU(), nn.Linear(4 * settings.dim, settings.dim)
        )
        self.attention_norm, self.network_norm = nn.LayerNorm(settings.dim), nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, hidden: Tensor, attends: Tensor, newest: int | None = None) -> Tensor:
        """hidden: [B, T, dim]. attends: bool [B, 1, T, T], whether a position (third) looks at another (last). newest: positions whose
        states are asked for; all, where none is given. -> [B, newest or T, dim]."""
        asked = slice(-newest if newest else None, None)
        attended = self.dropout(self.out(self._attention(hidden, attends, asked)))
        attended = self.attention_norm(hidden[:, asked] + attended)
        mixed = self.alpha * self.filter(hidden, asked) + (1 - self.alpha) * attended if self.alpha else attended
        return self.network_norm(mixed + self.dropout(self.network(mixed)))

    def _attention(self, hidden: Tensor, attends: Tensor, asked: slice) -> Tensor:
        B, T, dim = hidden.shape
        query, key, value = self.query_key_value(hidden).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, attends = query[:, :, asked], attends[:, :, asked]
        scores = (query @ key.transpose(2, 3)).float() * query.shape[-1] ** -0.5
        weights = functional.softmax(scores.masked_fill(~attends, -1e4), dim=-1)  # padding looks at everything alike
        return (self.dropout(weights).to(value.dtype) @ value).transpose(1, 2).reshape(B, -1, dim)


class FrequencyFilter(nn.Module):
    """low(x) + beta² · (x - low(x)) with a residual and a LayerNorm; low: the lowest frequencies over the window, by FFT."""

    def __init__(self, settings: BsaRecSettings) -> None:
        super().__init__()
        self.passing = settings.cutoff // 2 + 1
        self.beta = nn.Parameter(torch.randn(settings.dim))
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, hidden: Tensor, asked: slice = slice(None)) -> Tensor:
        """hidden: [B, T, dim] -> of the positions that are asked for."""
        whole = hidden.float()
        frequencies = torch.fft.rfft(whole, dim=1, norm="ortho")
        passing = torch.arange(frequencies.shape[1], device=hidden.device) < self.passing
        low = torch.fft.irfft(frequencies * passing[:, None], n=hidden.shape[1], dim=1, norm="ortho")[:, asked]
        whole = whole[:, asked]
        return self.norm(whole + self.dropout(low + self.beta**2 * (whole - low)))
