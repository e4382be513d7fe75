"""Finite scalar quantization (FSQ, arXiv 2309.15505): every latent dimension is bounded and rounded to one of a few levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bound(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Squash each dimension into the range of its levels: round(bound(z)) has exactly `levels[i]` values in dimension i.

    h = (levels - 1) (1 + eps) / 2, o = .5 where levels is even else 0; bound(z) = (tanh(z + atanh(o / h)) h - o) / (levels // 2), so that
    neighbouring values are 1 / (levels // 2) apart and lie in [-1, 1]. z: [n, e], levels: e whole numbers. Returns [n, e].
    """
    assert z.shape[1] == len(levels)
    counts = torch.tensor(levels, dtype=z.dtype, device=z.device)
    half = (counts - 1) * (1 + 1e-3) / 2
    offset = torch.where(counts % 2 == 0, 0.5, 0.0).to(z.dtype)
    return (torch.tanh(z + torch.atanh(offset / half)) * half - offset) / (counts // 2)
