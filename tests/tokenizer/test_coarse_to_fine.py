"""Coarse-to-fine codebooks: local k-means against an independent one, codes in use, clusters smaller than their codebooks."""

import numpy as np
import torch

from sidrec.tokenizer.kmeans.local_kmeans import local_kmeans
from sidrec.tokenizer.kmeans.residual_kmeans import fit as fit_residual
from sidrec.tokenizer.kmeans.settings import KmeansSettings
from sidrec.tokenizer.quantizers.coarse_to_fine import CoarseToFine


def clusters(n: int, n_clusters: int, dim: int, seed: int = 0) -> np.ndarray:
    """Clusters far apart, each elongated along a direction of its own."""
    rng = np.random.default_rng(seed)
    centres, directions = 6 * rng.standard_normal((n_clusters, dim)), rng.standard_normal((n_clusters, dim))
    which = rng.integers(0, n_clusters, n)
    along = rng.standard_normal((n, 1)) * directions[which]
    return (centres[which] + along + 0.05 * rng.standard_normal((n, dim))).astype(np.float32)


def test_local_kmeans_is_kmeans_of_each_cluster_alone() -> None:
    """Against numpy, cluster by cluster, from the same start."""
    rng = np.random.default_rng(0)
    rows, before = rng.standard_normal((90, 3)).astype(np.float32), rng.integers(0, 3, 90)
    start = rng.standard_normal((4, 3)).astype(np.float32)
    centroids, nearest = local_kmeans(
        torch.from_numpy(rows), torch.from_numpy(before), 3, torch.from_numpy(start), iterations=5
    )
    for cluster in range(3):
        members, books = rows[before == cluster].astype(np.float64), start.astype(np.float64)
        for _ in range(5):
            codes = ((members[:, None] - books) ** 2).sum(-1).argmin(1)
            books = np.stack([members[codes == k].mean(0) if (codes == k).any() else start[k] for k in range(4)])
        np.testing.assert_allclose(centroids[cluster].numpy(), books, atol=1e-5)
        codes = ((members[:, None] - books) ** 2).sum(-1).argmin(1)
        np.testing.assert_array_equal(nearest.numpy()[before == cluster], codes)


def test_shapes_and_codes_of_three_levels() -> None:
    rows = clusters(600, 8, 6)
    books = CoarseToFine().fit(rows, [8, 4, 3], seed=0).codebooks
    assert [book.shape for book in books.books] == [(8, 6), (8, 4, 6), (4, 3, 6)]
    codes = books.encode(rows)
    residual = rows.astype(np.float64)
    for level in range(3):
        book = books.books[level] if level == 0 else books.books[level][codes[:, level - 1]]
        squared = ((residual[:, None] - book) ** 2).sum(-1)
        np.testing.assert_allclose(squared[np.arange(600), codes[:, level]], squared.min(1), atol=1e-4)
        residual -= books.vectors_of(level, codes)
    np.testing.assert_allclose(rows - books.reconstruct(codes), residual, atol=1e-4)


def test_clusters_of_different_shape_are_coded_better_than_by_one_codebook() -> None:
    rows = clusters(800, 8, 12)
    errors = [
        ((rows - books.reconstruct(books.encode(rows))) ** 2).sum(1).mean()
        for books in (
            CoarseToFine().fit(rows, [8, 4], seed=0).codebooks,
            fit_residual(rows, [8, 4], 0, KmeansSettings()),
        )
    ]
    assert errors[0] < 0.7 * errors[1]


def test_a_cluster_of_one_row_keeps_the_shared_vectors_for_items_to_come() -> None:
    rows = torch.tensor([[0.0, 0.1], [1.0, 1.0], [2.0, 2.0]])
    start = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    centroids, nearest = local_kmeans(rows, torch.tensor([0, 1, 1]), 3, start, iterations=3)
    assert nearest.tolist() == [0, 1, 1]
    np.testing.assert_allclose(centroids[0].numpy(), [[0, 0.1], [1, 1], [5, 5]])  # one row: its code is the row itself
    np.testing.assert_allclose(centroids[1].numpy(), [[0, 0], [1.5, 1.5], [5, 5]])
    np.testing.assert_allclose(centroids[2].numpy(), start.numpy())  # no row at all


def test_fewer_distinct_rows_than_codes() -> None:
    rows = np.repeat(np.eye(6, dtype=np.float32), 4, axis=0)
    books = CoarseToFine().fit(rows, [3, 8, 8], seed=0).codebooks
    assert all(np.isfinite(book).all() for book in books.books)
    codes = books.encode(rows)
    assert ((rows - books.reconstruct(codes)) ** 2).sum() < 1e-6
    assert len(np.unique(codes, axis=0)) == 6


def test_the_same_seed_gives_the_same_bytes() -> None:
    rows = clusters(300, 5, 4)
    first, second, other = (CoarseToFine().fit(rows, [5, 4], seed).codebooks for seed in (1, 1, 2))
    assert [book.tobytes() for book in first.books] == [book.tobytes() for book in second.books]
    assert first.books[1].tobytes() != other.books[1].tobytes()
