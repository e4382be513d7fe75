"""How evenly a batch uses a codebook, as a number that has a gradient; the hard codes' counts have none."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sidrec.tokenizer.kmeans.nearest import distances


def unevenness(rows: Tensor, codebook: Tensor, form: str = "entropy") -> Tensor:
    """log K - H(p) >= 0, with p the batch's mean of softmax(-d / T); 0 when all codes are used alike. rows: [n, e], codebook: [K, e].

    form `variance`: sum_k (p_k - 1/K)^2 instead, at most 1 - 1/K. Near even use it is 2 / K of the other.
    T is the batch's mean gap between the nearest and the second nearest squared distance, without gradient. Were T not tied to the scale
    of the distances, p would be even for far away codes, at no cost to the encoder.
    """
    K = len(codebook)
    squared = distances(rows, codebook)  # less ||r||^2, which softmax does not see
    nearest, second = squared.detach().topk(2, largest=False).values.unbind(1)
    tiny = torch.finfo(squared.dtype).tiny
    temperature = (second - nearest).mean().clamp_min(tiny)
    p = torch.softmax(-squared / temperature, dim=1).mean(0)
    if form == "variance":
        return (p - 1 / K).square().sum()
    return math.log(K) + (p * p.clamp_min(tiny).log()).sum()  # a share that underflows to 0 has a finite gradient
