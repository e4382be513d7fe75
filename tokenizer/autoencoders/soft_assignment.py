"""Soft assignment in training, annealed to hard: a level's vector is a mixture of codes first, its nearest code in the end.

With d_k = ||r - C[k]||^2 and g the batch's mean of (second smallest d - smallest d), a level's vector is sum_k Q_k C[k], over all codes or
over the best few of them. Q is one of these:
    softmax     softmax(-d / (T g)).
    sinkhorn    exp(-d / (T g)), scaled by turns so that each code has an equal share of the batch and each row a share of 1.
    uniform     1 / k for the k nearest codes.
    learnt      softmax(a_1, …, a_k) for the nearest, second nearest, …: one number a rank, which the level learns by the codebook loss.
T is so in units of the distances at hand; it falls geometrically over training, and as T → 0 the mixture is the nearest code (with
Sinkhorn: the code that balances the batch). `uniform` and `learnt` have no T; there k falls from `top_k` to 1 in equal parts of the
training. Only one code a level has a semantic ID: what is exported are hard codes.

Q is a constant to rows and codes, as in the M step of soft k-means. Were it not, the codebook loss ||mixture - sg[r]||^2 would reach the
encoder through Q, and near T = 0 its gradient with respect to distances would grow as 1 / T. (Soft-to-hard annealing: arXiv 1704.00648.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sidrec.tokenizer.autoencoders.sinkhorn import balanced
from sidrec.tokenizer.kmeans.nearest import distances


@dataclass(frozen=True)
class SoftAssignment:
    """top_k: how many codes are mixed, None for all; start, end: T at the first and the last step, above 0; iterations: Sinkhorn's."""

    top_k: int | None
    start: float
    end: float
    form: str = "softmax"
    iterations: int = 50

    def temperature(self, progress: float) -> float:
        """T when `progress` (0 to 1) of the training is done: start^(1 - progress) · end^progress."""
        assert 0 <= progress <= 1
        return self.start ** (1 - progress) * self.end**progress

    def mixed(self, progress: float, n_codes: int) -> int:
        """k, how many of `n_codes` codes are mixed when `progress` of the training is done."""
        if self.form in ("uniform", "learnt"):
            assert self.top_k is not None
            return max(1, math.ceil(self.top_k * (1 - progress)))
        return min(self.top_k or n_codes, n_codes)

    def weights(self, rows: Tensor, vectors: Tensor, progress: float, ranks: Tensor | None = None) -> Tensor:
        """Q, [n, K]: non-negative, every row sums to 1, at most k above 0 in each. rows: [n, e]; vectors: [K, e].

        ranks: a [top_k] of `learnt`; only they get a gradient.
        """
        scores = self._scores(rows.detach(), vectors.detach(), progress)
        k = self.mixed(progress, len(vectors))
        if k == len(vectors) and self.form in ("softmax", "sinkhorn"):
            return torch.softmax(scores, dim=1)
        best, codes = scores.topk(k)
        if self.form == "learnt":
            assert ranks is not None
            best = ranks[:k].expand_as(best)
        elif self.form == "uniform":
            best = torch.zeros_like(best)
        return torch.zeros_like(scores).scatter(1, codes, torch.softmax(best, dim=1))

    @torch.no_grad()
    def _scores(self, rows: Tensor, vectors: Tensor, progress: float) -> Tensor:
        """log Q up to a constant of each row, [n, K], before codes are left out: the larger, the better the code."""
        squared = distances(rows, vectors)  # less ||r||^2, which softmax and Sinkhorn do not see
        gap = nearest_gaps(squared).mean().clamp_min(torch.finfo(squared.dtype).tiny)
        scores = (squared.min(1, keepdim=True).values - squared) / (self.temperature(progress) * gap)
        return balanced(scores.double(), self.iterations).to(squared.dtype) if self.form == "sinkhorn" else scores


def nearest_gaps(squared: Tensor) -> Tensor:
    """Second smallest less smallest squared distance of each row, [n]. squared: [n, K], K >= 2."""
    two = squared.topk(2, largest=False).values
    return two[:, 1] - two[:, 0]
