"""Soft assignment in training, annealed to hard: a level's vector is a mixture of codes first, its nearest code in the end.

With d_k = ||r - C[k]||^2 and g the batch's mean of (second smallest d - smallest d), the weights are Q = softmax(-d / (T g)) over all
codes, or over the nearest few, and the level's vector is sum_k Q_k C[k]. T is so in units of the distances at hand; it falls
geometrically over training, and as T → 0 the mixture is the nearest code. Only that has a semantic ID: what is exported are hard codes.

Q is a constant to gradients, as in the M step of soft k-means. Were it not, the codebook loss ||mixture - sg[r]||^2 would reach the
encoder through Q, and near T = 0 its gradient with respect to distances would grow as 1 / T. (Soft-to-hard annealing: arXiv 1704.00648.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidrec.tokenizer.kmeans.nearest import distances


@dataclass(frozen=True)
class SoftAssignment:
    """top_k: how many of the nearest codes are mixed, None for all; start, end: T at the first and at the last step, both above 0."""

    top_k: int | None
    start: float
    end: float

    def temperature(self, progress: float) -> float:
        """T when `progress` (0 to 1) of the training is done: start^(1 - progress) · end^progress."""
        assert 0 <= progress <= 1
        return self.start ** (1 - progress) * self.end**progress

    def mixture(self, rows: Tensor, vectors: Tensor, temperature: float) -> Tensor:
        """sum_k Q_k C[k] of each row, [n, e], with gradients to the codes only. rows: [n, e]; vectors: [K, e]."""
        return self.weights(rows, vectors, temperature) @ vectors

    @torch.no_grad()
    def weights(self, rows: Tensor, vectors: Tensor, temperature: float) -> Tensor:
        """Q, [n, K]: non-negative, every row sums to 1, at most `top_k` above 0 in each."""
        squared = distances(rows, vectors)  # less ||r||^2, which the softmax does not see
        scale = temperature * nearest_gaps(squared).mean().clamp_min(torch.finfo(squared.dtype).tiny)
        if self.top_k is not None and self.top_k < len(vectors):
            nearest = squared.topk(self.top_k, largest=False).indices
            outside = torch.ones_like(squared, dtype=torch.bool).scatter_(1, nearest, False)
            squared = squared.masked_fill(outside, torch.inf)
        return torch.softmax((squared.min(1, keepdim=True).values - squared) / scale, dim=1)


def nearest_gaps(squared: Tensor) -> Tensor:
    """Second smallest less smallest squared distance of each row, [n]. squared: [n, K], K >= 2."""
    two = squared.topk(2, largest=False).values
    return two[:, 1] - two[:, 0]
