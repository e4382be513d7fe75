"""Alignment of sources: the latents that two sources give of one item are drawn together, those of different items apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

SHARPNESS = 0.07  # divides the cosines; the usual value of contrastive training


def info_nce(first: Tensor, second: Tensor) -> Tensor:
    """InfoNCE (arXiv 1807.03748) in both directions: -log softmax_j(cos(a_i, b_j) / SHARPNESS) at j = i, mean over rows and directions.

    first, second: [n, e], row i of both from item i; the other rows of the batch are the negatives.
    """
    assert first.shape == second.shape, f"aligned latents must be equally long, got {first.shape} and {second.shape}"
    cosines = normalize(first, dim=1) @ normalize(second, dim=1).T / SHARPNESS  # [n, n]
    same_item = torch.arange(len(first), device=first.device)
    return (cross_entropy(cosines, same_item) + cross_entropy(cosines.T, same_item)) / 2


def alignment_loss(latents: Tensor, blocks: Sequence[int]) -> Tensor:
    """The mean of InfoNCE over all pairs of sources. latents: [n, e]; blocks: e_m of each source, all equal, at least two."""
    pairs = itertools.combinations(latents.split(list(blocks), dim=1), 2)
    return torch.stack([info_nce(first, second) for first, second in pairs]).mean()
