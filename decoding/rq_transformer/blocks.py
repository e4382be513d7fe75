"""The layers of the RQ-Transformer: causal attention beside a causal smoothing branch, then SwiGLU, each after an RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NO_WEIGHT = 1e-30  # of an item so long ago, beside a newest one of 1


class KeyValues:
    """What one attention layer has read so far: rotated keys and values [B, heads, S, R]; S grows with every call."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def joined(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, `keys` and `values` of the new positions the last ones."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values


class RoPEAttention(nn.Module):
    """Self-attention with rotary positions (arXiv 2104.09864), causal unless told otherwise; no biases."""

    def __init__(self, hidden_size: int, n_heads: int, *, causal: bool = True) -> None:
        super().__init__()
        assert hidden_size % (2 * n_heads) == 0, f"{n_heads} heads of even width do not make {hidden_size}"
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor, exists: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        """hidden, and what is returned: [B, T, H].

        exists: bool [B, T], the positions that others may read (of a layer that is not causal). cache: the positions before these; it
        takes these in.
        """
        n_rows, length, width = hidden.shape
        query, key, value = (
            self.qkv(hidden).view(n_rows, length, 3, self.n_heads, width // self.n_heads).permute(2, 0, 3, 1, 4)
        )
        before = cache.length if cache is not None else 0
        cos, sin = (each[before:] for each in rotation(before + length, width // self.n_heads, hidden.device))
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        if cache is not None:
            assert self.causal, "a layer that reads what comes later has no cache"
            key, value = cache.joined(key, value)
        mask = None
        if before and length > 1:
            mask = torch.ones(length, before + length, dtype=torch.bool, device=hidden.device).tril(before)
        elif exists is not None:
            assert not self.causal
            assert exists.shape == (n_rows, length)
            mask = exists[:, None, None]
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=self.causal and before == 0
        )
        return self.out(mixed.transpose(1, 2).reshape(n_rows, length, width))

    def at(self, hidden: Tensor, place: Tensor) -> Tensor:
        """[B, H]: what `forward` gives at one position of every row. place: int64 [B]."""
        n_rows, length, width = hidden.shape
        query, key, value = (
            self.qkv(hidden).view(n_rows, length, 3, self.n_heads, width // self.n_heads).permute(2, 0, 3, 1, 4)
        )
        cos, sin = rotation(length, width // self.n_heads, hidden.device)
        rows = torch.arange(n_rows, device=hidden.device)
        last = rotated(query[rows, :, place][:, :, None], cos[place, None, None], sin[place, None, None])
        visible = torch.arange(length, device=hidden.device) <= place[:, None]
        mixed = functional.scaled_dot_product_attention(
            last, rotated(key, cos, sin), value, attn_mask=visible[:, None, None]
        )
        return self.out(mixed.reshape(n_rows, width))


def rotation(length: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, float32 [T, head_width / 2]."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_width, 2, device=device) / head_width)
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies)
    return angles.cos(), angles.sin()


def rotated(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`vectors` [..., T, 2R], entries i and R + i a plane, rotated in float32. cos, sin: float32 [T, R]."""
    first, second = vectors.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(vectors.dtype)


class CausalSmoothing(nn.Module):
    """Per channel, the exponential mean of the past: y_t = Σ a^(t-s) x_s / Σ a^(t-s) over s ≤ t, a = sigmoid(decay), times a scale.

    Before anything is learnt it makes a state of the latest items, as item-KNN with decay does.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.empty(hidden_size))
        self.scale = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Half-lives from a third of an item to 14 items."""
        with torch.no_grad():
            self.decay.copy_(torch.linspace(-2.0, 3.0, len(self.decay)))
            self.scale.fill_(1.0)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden, and what is returned: [B, T, H]."""
        log_decay = functional.logsigmoid(self.decay.float())
        sums = decayed_sums(hidden.float(), log_decay)
        steps = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None]
        weights = torch.expm1(steps * log_decay) / torch.expm1(log_decay)  # 1 + a + … + a^(t - 1), [T, H]
        return (self.scale * sums / weights).to(hidden.dtype)

    def at(self, hidden: Tensor, place: Tensor) -> Tensor:
        """[B, H]: what `forward` gives at one position of every row. place: int64 [B]."""
        log_decay, steps = (
            functional.logsigmoid(self.decay.float()),
            torch.arange(hidden.shape[1], device=hidden.device),
        )
        decays = (steps[:, None] * log_decay).exp()  # [T, H], by age
        decays = decays.masked_fill(decays < NO_WEIGHT, 0.0)  # processors are slow with numbers that small
        ages = place[:, None] - steps
        sums = (hidden.float() * decays[ages.clamp(min=0)] * (ages >= 0)[..., None]).sum(1)
        return (self.scale * sums / decays.cumsum(0)[place]).to(hidden.dtype)


def decayed_sums(values: Tensor, log_decay: Tensor) -> Tensor:
    """float32 [B, T, H]: Σ over s ≤ t of a^(t-s) · values_s, a = exp(log_decay), by doubling: log2(T) steps over all positions at once.

    values: float32 [B, T, H]. log_decay: float32 [H], below 0. A window of 2n is the window of n plus, decayed, the one before it.
    """
    sums, reach = values, 1
    while reach < values.shape[1]:
        earlier = functional.pad(sums[:, :-reach], (0, 0, reach, 0))
        sums = torch.addcmul(sums, earlier, (reach * log_decay).exp())
        reach *= 2
    return sums


class SwiGLU(nn.Module):
    """Gated feed-forward part (arXiv 2002.05202); no biases."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(hidden)) * self.up(hidden))


class Block(nn.Module):
    """x + attention(norm x) + smoothing(norm x), then x + SwiGLU(norm x); dropout on every branch."""

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        intermediate_size: int,
        dropout: float,
        *,
        smoothing: bool,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.input_norm, self.feed_forward_norm = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.attention = RoPEAttention(hidden_size, n_heads, causal=causal)
        self.smoothing = CausalSmoothing(hidden_size) if smoothing else None
        self.feed_forward = SwiGLU(hidden_size, intermediate_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, exists: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        """hidden, and what is returned: [B, T, H]. exists, cache: of the attention; a block that smooths has no cache."""
        normed = self.input_norm(hidden)
        mixed = self.dropout(self.attention(normed, exists, cache))
        assert cache is None or self.smoothing is None
        if self.smoothing is not None:
            mixed = mixed + self.dropout(self.smoothing(normed))
        hidden = hidden + mixed
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))

    def at(self, hidden: Tensor, place: Tensor) -> Tensor:
        """[B, H]: what `forward` gives at one position of every row, without making the others. place: int64 [B]."""
        normed = self.input_norm(hidden)
        mixed = self.dropout(self.attention.at(normed, place))
        if self.smoothing is not None:
            mixed = mixed + self.dropout(self.smoothing.at(normed, place))
        last = hidden[torch.arange(len(hidden), device=hidden.device), place] + mixed
        return last + self.dropout(self.feed_forward(self.feed_forward_norm(last)))
