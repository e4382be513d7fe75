"""The layers of the text codec: halvings and doublings of a sequence, and the layers between them.

Every one of them begins as a plain copy of what it reads: the branches of a layer add nothing, a halving is an orthogonal map of its two
positions, and the doubling that undoes it is the transpose. An untrained codec without a quantizer so gives most tokens back, since a few
orthogonal images of vectors can be told apart in their sum, and training starts from there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.decoding.rq_transformer.blocks import Block, SwiGLU

WIDENING = 3  # of the feed-forward parts


def convolved_length(length: int, padding: int, kernel_size: int, stride: int = 2) -> int:
    """⌊(L + 2p - k) / s⌋ + 1, with `padding` the sum of both sides, 2p; 0 where no window fits."""
    return max(0, (length + padding - kernel_size) // stride + 1)


def compressed_length(length: int, compression: int) -> int:
    """How many latents a text of `length` tokens has; the last one may stand for fewer tokens."""
    return -(-length // compression)


class SwiGLUTransformerLayer(Block):
    """A layer of the recommender's backbone without its smoothing branch: self-attention, then SwiGLU, each after a norm."""

    def __init__(self, width: int, n_heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__(width, n_heads, WIDENING * width, dropout, smoothing=False, causal=causal)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.feed_forward.down.weight)


class Refinement(nn.Module):
    """x + SwiGLU(norm x), which begins as x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.feed_forward = nn.RMSNorm(width), SwiGLU(width, WIDENING * width)
        nn.init.zeros_(self.feed_forward.down.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden, and what is returned: [B, T, H]."""
        return hidden + self.feed_forward(self.norm(hidden))


class Halving(nn.Module):
    """A strided convolution: position t reads positions 2t + 1 and, with longer kernels, those before it (causal) or around it.

    kernel_size: even, 2 at least.
    """

    def __init__(self, width: int, kernel_size: int, *, causal: bool) -> None:
        super().__init__()
        assert kernel_size in range(2, 100, 2), f"a kernel of {kernel_size}"
        further = kernel_size - 2
        self.left = further if causal else further // 2
        self.right = further - self.left
        self.convolution = nn.Conv1d(width, width, kernel_size, stride=2, bias=False)
        with torch.no_grad():
            self.convolution.weight.zero_()
            for place in range(2):
                self.convolution.weight[:, :, self.left + place] = orthogonal(width)
        self.refinement = Refinement(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T / 2, H] of hidden [B, T, H], T even."""
        assert hidden.shape[1] % 2 == 0, f"{hidden.shape[1]} positions"
        padded = functional.pad(hidden.transpose(1, 2), (self.left, self.right))
        halved = self.convolution(padded).transpose(1, 2)
        kernel_size = self.left + self.right + 2
        assert halved.shape[1] == convolved_length(hidden.shape[1], self.left + self.right, kernel_size)
        return self.refinement(halved)


class Doubling(nn.Module):
    """A transposed convolution: position 2t + j is of latent t and, with longer kernels, of those before it (causal) or around it."""

    def __init__(self, width: int, kernel_size: int, *, causal: bool) -> None:
        super().__init__()
        assert kernel_size in range(2, 100, 2), f"a kernel of {kernel_size}"
        self.left = 0 if causal else (kernel_size - 2) // 2
        self.convolution = nn.ConvTranspose1d(width, width, kernel_size, stride=2, bias=False)
        nn.init.zeros_(self.convolution.weight)
        self.refinement = Refinement(width)

    @torch.no_grad()
    def undo(self, halving: Halving) -> None:
        """Take the transpose of a halving's two positions."""
        for place in range(2):
            self.convolution.weight[:, :, self.left + place] = halving.convolution.weight[:, :, halving.left + place]

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, 2T, H] of hidden [B, T, H]."""
        length = 2 * hidden.shape[1]
        doubled = self.convolution(hidden.transpose(1, 2))[:, :, self.left : self.left + length]
        return self.refinement(doubled.transpose(1, 2))


def orthogonal(width: int) -> Tensor:
    """A random orthogonal matrix [H, H]."""
    return nn.init.orthogonal_(torch.empty(width, width))
