"""k-means within clusters: all start from one shared codebook, and each row's code is one of its cluster's."""

from __future__ import annotations

import torch
from torch import Tensor

from sidrec.tokenizer.kmeans.nearest import distances


def local_kmeans(rows: Tensor, before: Tensor, n_before: int, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """k-means within each cluster of rows with the same code before, all from the centroids `start` [K, D].

    rows: [n, D]; before: int [n], under n_before. Returns the centroids [n_before, K, D] and each row's nearest one of its cluster
    [n]. A centroid without rows is that of `start`.
    """
    K, D = start.shape
    assert rows.shape == (len(before), D)
    centroids = start.repeat(n_before, 1, 1)
    nearest = nearest_local(rows, before, centroids)
    for _ in range(iterations):
        place = before * K + nearest
        counts = torch.bincount(place, minlength=n_before * K)[:, None]  # [n_before · K, 1]
        sums = torch.zeros(n_before * K, D).index_add_(0, place, rows)
        means = torch.where(counts > 0, sums / counts.clamp_min(1), start.repeat(n_before, 1))
        centroids = means.view(n_before, K, D)
        nearest = nearest_local(rows, before, centroids)
    return centroids, nearest


def nearest_local(rows: Tensor, before: Tensor, centroids: Tensor) -> Tensor:
    """Index [n] of the nearest of the centroids [n_before, K, D] that belong to each row's code before."""
    nearest = torch.empty(len(rows), dtype=torch.int64)
    for previous in before.unique():
        members = (before == previous).nonzero().flatten()
        nearest[members] = distances(rows[members], centroids[previous]).argmin(1)
    return nearest
