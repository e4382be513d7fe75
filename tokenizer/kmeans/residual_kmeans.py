"""Residual k-means: level after level, cluster what the levels before have left over.

Level l has a codebook C_l of K_l vectors. With r_0 = x: code_l = argmin_k ||r_l - C_l[k]||^2, r_{l+1} = r_l -
C_l[code_l]; the reconstruction of x is the sum of its codes' vectors. (QARM, arXiv 2411.11739; OneRec's technical
report, arXiv 2506.13695.)

Started from random rows, Lloyd's algorithm collapses on the later levels: most residuals are short, so one code near
the origin takes a tenth of the catalogue. Here every level is pushed out of that by some iterations with **balanced**
clusters, then plain Lloyd iterations relax it: on real item embeddings that ends in a lower error *and* evenly used
codes.

Under `accelerate launch` with several processes each holds a part of the rows (tokenizer/kmeans/training_rows.py) and all learn the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.kmeans.balanced_kmeans import balancing_prices, codes_of_equal_size
from sidrec.tokenizer.kmeans.nearest import BLOCK, distances, nearest_codes
from sidrec.tokenizer.kmeans.settings import KmeansSettings
from sidrec.tokenizer.kmeans.training_rows import TrainingRows

WARM_UP = 10  # plain Lloyd iterations before the balanced ones: 1 to 2 % less error on MovieLens-100K than none
WARM_UP_ROWS_PER_CODE = 32  # enough rows for them
EARLY_ROWS_PER_CODE = (
    64  # enough for the balanced and the first plain iterations: the last ones, on all rows, correct them
)
MOST_DISTANCES = 2**28  # about as many are kept at once by all processes while clusters are balanced: 1 to 2 GiB


def fit(
    vectors: Rows,
    level_sizes: list[int],
    seed: int,
    settings: KmeansSettings | None = None,
    screen: Screen | None = None,
) -> Codebooks:
    """Learn the codebooks, level by level, as `settings.clusters` says.

    `plain`: Lloyd iterations from random rows. `relaxed`: WARM_UP of them, then iterations with clusters of exactly equal size, then
    plain ones. `balanced`, `exact`: no plain ones after those of (nearly) equal size, whose prices stay in the codebooks, so that items
    that come later follow them. vectors: float32 [N, D], N >= every K_l. With more than `train_rows_per_code` · max K_l rows, a random
    sample of that many is used, and a part of that for the iterations that others follow. The same bytes for the same seed, however many
    processes learn.
    """
    settings = settings or KmeansSettings()
    assert len(vectors.shape) == 2, f"vectors must be [N, D], got {vectors.shape}"
    assert len(vectors) >= max(level_sizes), f"{len(vectors)} rows cannot fill {max(level_sizes)} codes"
    generator = torch.Generator().manual_seed(seed)
    n_train = min(len(vectors), settings.train_rows_per_code * max(level_sizes))
    sample = torch.randperm(len(vectors), generator=generator)[:n_train].sort().values
    rows = TrainingRows.read(vectors, sample)
    books, prices = [], []
    screen = screen or Screen("k-means", quiet=True)
    with screen.bar("k-means", len(level_sizes) * _iterations(settings), "iterations") as bar:
        for level, size in enumerate(level_sizes):
            start = rows.at(torch.randperm(n_train, generator=generator)[:size])
            book, price = _cluster(rows, start, settings, bar.advance)
            books.append(book.numpy())
            prices.append(price.numpy())
            if level + 1 < len(level_sizes):
                rows = rows.with_values(rows.values - book[nearest_codes(rows.values, book, price)])
    return Codebooks(books, prices)


def codes_of_exact_levels(vectors: Rows, codebooks: Codebooks, n_levels: int) -> np.ndarray:
    """Codes of the first levels, int32 [N, n_levels], such that every code of a level has N // K_l items, or one more.

    Prices alone come near to that, but equal vectors have one nearest code, and a price balances the rows it was learnt on. So the
    items that cost least to move go to codes that have room, level by level, and the next level codes what that leaves over.
    vectors: float32 [N, D], of which N x K_l distances are in memory.
    """
    rows = TrainingRows.read(vectors, torch.arange(len(vectors)))
    codes = []
    for book, price in zip(codebooks.books[:n_levels], codebooks.prices, strict=False):
        vectors_of_codes = torch.tensor(book)
        priced = torch.empty(len(rows.values), len(book))
        _distances_into(priced, rows.values, vectors_of_codes)
        code = codes_of_equal_size(rows, priced.add_(torch.tensor(price)))
        codes.append(rows.whole(code).numpy())
        rows = rows.with_values(rows.values - vectors_of_codes[code])
    return np.stack(codes, axis=1).astype(np.int32)


def _iterations(settings: KmeansSettings) -> int:
    """Iterations per level."""
    balanced = 0 if settings.clusters == "plain" else settings.balanced_iterations
    plain = settings.lloyd_iterations if settings.clusters in ("plain", "relaxed") else 0
    return (WARM_UP if balanced else 0) + balanced + plain


def _cluster(
    rows: TrainingRows, start: torch.Tensor, settings: KmeansSettings, advance: Callable[[], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One level, from the centroids `start` [K, D]: its codebook [K, D] and its prices [K]."""
    K = len(start)
    few = rows.thinned(EARLY_ROWS_PER_CODE * K)
    centroids, prices = start, torch.zeros(K)
    if settings.clusters != "plain" and settings.balanced_iterations:
        centroids = _plain_iterations(rows.thinned(WARM_UP_ROWS_PER_CODE * K), centroids, WARM_UP, advance)
        most = MOST_DISTANCES // K
        some = (few if settings.clusters == "relaxed" else rows).thinned(most)
        centroids, balanced = balanced_iterations(some, centroids, settings, advance)
        prices = prices if settings.clusters == "relaxed" else balanced
    if settings.clusters in ("plain", "relaxed"):
        early = settings.lloyd_iterations // 2
        centroids = _plain_iterations(few, centroids, early, advance)
        centroids = _plain_iterations(rows, centroids, settings.lloyd_iterations - early, advance)
    return centroids, prices


def _plain_iterations(
    rows: TrainingRows, centroids: torch.Tensor, iterations: int, advance: Callable[[], None]
) -> torch.Tensor:
    """Lloyd's algorithm: [K, D] → [K, D]."""
    for _ in range(iterations):
        centroids = rows.means(nearest_codes(rows.values, centroids), centroids)
        advance()
    return centroids


def balanced_iterations(
    rows: TrainingRows, centroids: torch.Tensor, settings: KmeansSettings, advance: Callable[[], None] = lambda: None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Iterations with clusters of (nearly) equal size: centroids [K, D], and the prices [K] that balance these."""
    prices = torch.zeros(len(centroids))
    squared = torch.empty(len(rows.values), len(centroids))  # [n, K], one memory for all iterations
    for _ in range(settings.balanced_iterations):
        _distances_into(squared, rows.values, centroids)
        prices = balancing_prices(squared, prices, settings.slack)
        squared += prices
        codes = squared.argmin(1) if settings.clusters == "balanced" else codes_of_equal_size(rows, squared)
        centroids = rows.means(codes, centroids, move_empty=False)  # the price of an empty code falls until it has rows
        advance()
    if settings.clusters != "relaxed":
        _distances_into(squared, rows.values, centroids)
        prices = balancing_prices(squared, prices, settings.slack)
    return centroids, prices


def _distances_into(squared: torch.Tensor, rows: torch.Tensor, centroids: torch.Tensor) -> None:
    """Write the distances [n, K], block by block."""
    for block, into in zip(rows.split(BLOCK), squared.split(BLOCK), strict=True):
        distances(block, centroids, out=into)
