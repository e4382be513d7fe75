"""What the text codec is measured beside: a language model of tokens, and a transformer over unrolled codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.codec.code_learner import CodedText
from sidrec.codec.layers import SwiGLUTransformerLayer
from sidrec.codec.rq_transformer import through
from sidrec.codec.training import StepLoss, batch_of, pieces
from sidrec.decoding.rq_transformer.blocks import KeyValues

ROWS_AT_ONCE = 32


class TokenModel(nn.Module):
    """An autoregressive model of tokens, of the same layers as the codec's; input and output rows are one table."""

    def __init__(self, vocabulary: int, width: int, n_layers: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.layers = nn.ModuleList(
            SwiGLUTransformerLayer(width, n_heads, dropout, causal=True) for _ in range(n_layers)
        )
        self.norm = nn.RMSNorm(width)

    def logits(self, input_ids: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        """[B, T, V]: of the token after each of input_ids, int64 [B, T]."""
        scaled = self.table(input_ids) * self.table.embedding_dim**0.5
        return functional.linear(self.norm(through(self.layers, scaled, caches)), self.table.weight)

    def log_probs(self, input_ids: Tensor) -> Tensor:
        """float32 [B, T]: log p of every token given those before it; the first follows token 1, the end of a document."""
        before = torch.cat([torch.ones_like(input_ids[:, :1]), input_ids[:, :-1]], 1)
        logits = self.logits(before).float().log_softmax(-1)
        return logits.gather(2, input_ids[..., None])[..., 0]

    def forward(self, input_ids: Tensor, exists: Tensor) -> Tensor:
        """The mean of -log p over the tokens that exist."""
        return -(self.log_probs(input_ids) * exists).sum() / exists.sum()

    @torch.no_grad()
    def written(self, prompt: Tensor, n_tokens: int) -> Tensor:
        """The likeliest tokens one after the other, int64 [B, n], after prompt int64 [B, T], T at least 1; keys and values are kept."""
        caches, chosen, ids = [KeyValues() for _ in self.layers], list[Tensor](), prompt
        for _ in range(n_tokens):
            ids = self.logits(ids, caches)[:, -1:].argmax(-1)
            chosen.append(ids)
        return torch.cat(chosen, 1)


class TokenLearner:
    """What the codec's training loop needs of a TokenModel. train, valid: rows [n, T] of text."""

    def __init__(self, model: TokenModel, train: np.ndarray, valid: np.ndarray) -> None:
        self.network, self.model, self.train, self.valid = model, model, train, valid

    def loss(self, network: nn.Module, rows: np.ndarray, rng: np.random.Generator) -> StepLoss:
        ids, lengths = batch_of(self.train[rows], self.model.table.weight.device)
        return StepLoss(network(ids, ids != 0), lengths.sum())

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        nats, n_tokens = 0.0, 0
        for piece in pieces(len(self.valid), ROWS_AT_ONCE):
            ids, lengths = batch_of(self.valid[piece], self.model.table.weight.device)
            nats -= float((self.model.log_probs(ids) * (ids != 0)).sum())
            n_tokens += int(lengths.sum())
        return {"loss": nats / n_tokens}

    def slow_weights(self) -> list[nn.Parameter]:
        return []


class FlatTransformer(nn.Module):
    """Codes one after the other as one sequence, T · D positions, each code's vector of the codec and a row of its level in."""

    def __init__(self, codebooks: list[Tensor], width: int, n_layers: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.sizes = [len(book) for book in codebooks]
        for level, book in enumerate(codebooks):
            self.register_buffer(
                f"codebook_{level}", book.detach().clone() / book.square().mean().sqrt().clamp_min(1e-6)
            )
        self.project = nn.Linear(codebooks[0].shape[1], width, bias=False)
        self.place = nn.Parameter(torch.randn(len(codebooks), width) * 0.02)
        self.first = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList(
            SwiGLUTransformerLayer(width, n_heads, dropout, causal=True) for _ in range(n_layers)
        )
        self.norm = nn.RMSNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in self.sizes)
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def embedded(self, level: int, codes: Tensor) -> Tensor:
        """[…, H] of codes int64 […]."""
        return self.project(functional.embedding(codes, self.get_buffer(f"codebook_{level}"))) + self.place[level]

    def log_probs(self, codes: Tensor) -> Tensor:
        """float32 [B, T, D]: log p of every code given all before it. codes: int64 [B, T, D]."""
        n_rows, n_latents, n_levels = codes.shape
        inputs = torch.stack([self.embedded(level, codes[..., level]) for level in range(n_levels)], 2).flatten(1, 2)
        hidden = torch.cat([self.first.expand(n_rows, 1, -1), inputs[:, :-1]], 1)
        states = self.norm(through(self.layers, hidden, None)).view(n_rows, n_latents, n_levels, -1)
        each = []
        for level, head in enumerate(self.heads):
            logits = head(states[:, :, level]).float().log_softmax(-1)
            each.append(logits.gather(2, codes[..., level : level + 1]))
        return torch.cat(each, 2)

    def forward(self, codes: Tensor, exists: Tensor) -> Tensor:
        """The mean over latents that exist, bool [B, T], of -log p of their codes."""
        return -self.log_probs(codes)[exists].sum(1).mean()

    @torch.no_grad()
    def written(self, n_rows: int, n_latents: int) -> Tensor:
        """The likeliest codes one after the other from nothing, int64 [B, T, D]; keys and values are kept."""
        caches, chosen = [KeyValues() for _ in self.layers], list[Tensor]()
        hidden = self.first.expand(n_rows, 1, -1)
        for _ in range(n_latents):
            for level, head in enumerate(self.heads):
                code = head(self.norm(through(self.layers, hidden, caches))[:, -1]).argmax(-1)
                chosen.append(code)
                hidden = self.embedded(level, code)[:, None]
        return torch.stack(chosen, 1).view(n_rows, n_latents, len(self.sizes))


class FlatLearner:
    """What the codec's training loop needs of a FlatTransformer."""

    def __init__(self, model: FlatTransformer, train: CodedText, valid: CodedText) -> None:
        self.network, self.model, self.train, self.valid = model, model, train, valid

    def loss(self, network: nn.Module, rows: np.ndarray, rng: np.random.Generator) -> StepLoss:
        codes, exists = batch_of_codes(self.train, rows)
        return StepLoss(network(codes, exists), exists.sum())

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        nats, n_latents = 0.0, 0
        for piece in pieces(len(self.valid.codes), ROWS_AT_ONCE):
            codes, exists = batch_of_codes(self.valid, piece)
            nats -= float(self.model.log_probs(codes)[exists].sum())
            n_latents += int(exists.sum())
        return {"loss": nats / n_latents}

    def slow_weights(self) -> list[nn.Parameter]:
        return []


def batch_of_codes(coded: CodedText, rows: np.ndarray | slice) -> tuple[Tensor, Tensor]:
    """Codes int64 [B, T, D], and which latents exist, bool [B, T]."""
    codes = torch.from_numpy(coded.codes[rows].astype(np.int64))
    return codes, torch.arange(codes.shape[1]) < torch.from_numpy(coded.n_latents[rows])[:, None]
