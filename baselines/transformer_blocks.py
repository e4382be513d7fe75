"""The two kinds of transformer block that the sequence baselines are built from: SASRec's and LiGR's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def causal_attention(mixed: Tensor, heads: int) -> Tensor:
    """Self-attention of each position to itself and those before it. mixed: queries, keys, values, [B, T, 3 dim] -> [B, T, dim]."""
    B, T, width = mixed.shape
    query, key, value = mixed.view(B, T, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)  # [B, heads, T, …]
    attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attended.transpose(1, 2).reshape(B, T, width // 3)


class SasRecBlock(nn.Module):
    """Causal self-attention, then a two-layer network, each on a normalised residual branch."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.network_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.network = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [B, T, dim] -> [B, T, dim]."""
        attended = causal_attention(self.query_key_value(self.attention_norm(hidden)), self.heads)
        hidden = hidden + self.dropout(self.attention_out(attended))
        return hidden + self.dropout(self.network(self.network_norm(hidden)))


class LigrBlock(nn.Module):
    """LiGR's block (arXiv 2502.03417), as eSASRec (arXiv 2508.06450) uses it.

    Each of the two normalised branches, attention and a SwiGLU network without biases, is let into the residual stream through a
    gate: h + sigmoid(gate(h)) * branch(norm(h)), a gate value for each coordinate.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.network_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attention_gate, self.network_gate = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [B, T, dim] -> [B, T, dim]."""
        attended = causal_attention(self.query_key_value(self.attention_norm(hidden)), self.heads)
        gate = torch.sigmoid(self.attention_gate(hidden))
        hidden = hidden + gate * self.dropout(self.attention_out(attended))
        switch, value = self.up(self.network_norm(hidden)).chunk(2, dim=-1)  # each [B, T, 4 dim]
        gate = torch.sigmoid(self.network_gate(hidden))
        return hidden + gate * self.dropout(self.down(functional.silu(switch) * value))
