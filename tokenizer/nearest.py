"""Squared distances between rows and codes, the inner loop of every quantizer."""

from __future__ import annotations

import torch


def distances(rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None = None) -> torch.Tensor:
    """||c||^2 - 2 r·c (+ price) for rows [n, e] and a codebook [K, e]: [n, K], the squared distance less ||r||^2.

    ||r||^2 is the same for all codes, so that argmin over k is the nearest code.
    """
    assert rows.shape[1] == codebook.shape[1], f"rows {tuple(rows.shape)} and codebook {tuple(codebook.shape)} differ"
    bias = codebook.square().sum(1)
    return torch.addmm(bias if prices is None else bias + prices, rows, codebook.T, alpha=-2)
