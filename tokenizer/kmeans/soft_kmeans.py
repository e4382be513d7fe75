"""Residual soft k-means: as residual k-means, with every row shared by all codes; a start for codebooks that are trained.

A level is a mixture of K Gaussians, all of the same width s in each of the D directions, fitted to the level's residuals by EM from the
codebook of k-means. With d_k = ||r - C[k]||^2 and pi_k the code's share of all rows:

    Q_k ∝ pi_k exp(-d_k / (2 s^2))        C[k] = sum_r Q_k r / sum_r Q_k        s^2 = sum_{r,k} Q_k ||r - C[k]||^2 / (n D)

pi_k is 1 / K (soft k-means with a width that is learnt), or the mean of Q_k (a Gaussian mixture, `gmm`). The next level is of the residuals
of the nearest codes, as everywhere. As s → 0 this is k-means.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.kmeans import residual_kmeans
from sidrec.tokenizer.kmeans.nearest import BLOCK, distances, nearest_codes
from sidrec.tokenizer.kmeans.settings import KmeansSettings

ITERATIONS = 10


def fit(
    vectors: Rows,
    level_sizes: list[int],
    seed: int,
    settings: KmeansSettings | None = None,
    screen: Screen | None = None,
    *,
    learn_shares: bool = False,
) -> Codebooks:
    """Codebooks [K_l, D] of `vectors` [N, D], seen in at most `train_rows_per_code` · max K_l rows. learn_shares: pi_k is learnt."""
    settings = settings or KmeansSettings()
    n_train = min(len(vectors), settings.train_rows_per_code * max(level_sizes))
    sample = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:n_train])
    residual = torch.tensor(vectors[sample], dtype=torch.float32)  # [n, D]
    books = []
    for level, size in enumerate(level_sizes):
        start = residual_kmeans.fit(residual.numpy(), [size], seed + level, settings, screen).books[0]
        book = soft_kmeans(residual, torch.from_numpy(start), ITERATIONS, learn_shares)
        residual -= book[nearest_codes(residual, book)]
        books.append(book.numpy())
    return Codebooks(books)


def soft_kmeans(rows: Tensor, start: Tensor, iterations: int, learn_shares: bool) -> Tensor:
    """The codes [K, D] after so many iterations of EM on rows [n, D], from the codes `start` [K, D]. A code without rows stays."""
    n, D = rows.shape
    tiny = torch.finfo(torch.float64).tiny
    length = rows.double().square().sum()  # sum of ||r||^2
    centres, log_shares = start.double(), torch.zeros(len(start), dtype=torch.float64)
    nearest = sum(distances(block.double(), centres).amin(1).sum() for block in rows.split(BLOCK))
    width = ((nearest + length) / (n * D)).clamp_min(tiny)  # s^2
    for _ in range(iterations):
        counts, sums = torch.zeros_like(log_shares), torch.zeros_like(centres)
        for block in rows.split(BLOCK):
            shares = torch.softmax(
                log_shares - distances(block.double(), centres) / (2 * width), dim=1
            )  # Q, [block, K]
            counts += shares.sum(0)
            sums += shares.T @ block.double()
        centres = torch.where(counts[:, None] > tiny, sums / counts.clamp_min(tiny)[:, None], centres)
        width = ((length - (counts * centres.square().sum(1)).sum()) / (n * D)).clamp_min(tiny)
        if learn_shares:
            log_shares = (counts / n).clamp_min(tiny).log()
    return centres.to(rows.dtype)
