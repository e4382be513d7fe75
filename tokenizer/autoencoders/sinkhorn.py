"""Codes of a batch with equal use of all codes: Sinkhorn's algorithm on the batch's distances, as in LC-Rec (arXiv 2311.09049).

The result depends on which items are in the batch, so it is for training only: an item is always served by its nearest code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sidrec.tokenizer.kmeans.nearest import distances


def log_plan(squared: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The logarithm of the transport plan [n, K], float64: rows sum to 1/n, columns to 1/K, after enough iterations.

    Q = exp(-d / epsilon) is scaled to those sums by turns, rows first. d is `squared` [n, K], squared distances, moved and scaled so that
    the batch's smallest and largest are -1 and 1: epsilon needs no unit.
    """
    middle, half = (squared.max() + squared.min()) / 2, (squared.max() - squared.min()) / 2
    return balanced(-((squared - middle) / (half + 1e-5)).double() / epsilon, iterations)


def balanced(plan: Tensor, iterations: int) -> Tensor:
    """The logarithm of a kernel [n, K], scaled so that rows sum to 1/n and columns to 1/K: by turns, rows first."""
    n, K = plan.shape
    for _ in range(iterations):
        plan = plan - plan.logsumexp(1, keepdim=True) - math.log(n)
        plan = plan - plan.logsumexp(0, keepdim=True) - math.log(K)
    return plan


@torch.no_grad()
def balanced_codes(rows: Tensor, codebook: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The code of largest share in the plan for every row, int64 [n]. rows: [n, e], codebook: [K, e]."""
    squared = distances(rows, codebook) + rows.square().sum(1, keepdim=True)
    return log_plan(squared, epsilon, iterations).argmax(1)
