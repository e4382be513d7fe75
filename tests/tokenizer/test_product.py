"""Product quantization: parts of equal variance, additive codes equal to the parts' own, exact on data that is a product."""

import itertools

import numpy as np
import pytest

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.quantizers.product import Product, balanced_parts


def decaying_rows(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows whose principal variances fall as 1 / i, turned at random, away from the origin."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return ((rng.standard_normal((n, dim)) / np.sqrt(np.arange(1, dim + 1)) + 0.3) @ turned).astype(np.float32)


@pytest.mark.parametrize(("dim", "n_parts"), [(24, 3), (25, 3), (7, 7), (10, 1)])
def test_parts_are_an_orthonormal_basis_of_equal_sizes(dim: int, n_parts: int) -> None:
    parts = balanced_parts(decaying_rows(300, dim), n_parts)
    together = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(together.T @ together, np.eye(dim), atol=1e-5)
    sizes = [part.shape[1] for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_parts_have_about_equal_variance_where_slices_of_pca_do_not() -> None:
    rows = decaying_rows(2000, 48)
    shares = np.array([(rows @ part).var(axis=0).sum() for part in balanced_parts(rows, 3)])
    assert shares.max() / shares.min() < 1.25
    principal = np.linalg.eigvalsh(np.cov(rows.T))[::-1].reshape(3, 16).sum(axis=1)
    assert principal[0] / principal[-1] > 3


def test_additive_codes_are_each_parts_nearest_centroid() -> None:
    """Codebooks.encode, on residuals in the full space, against the argmin within each part on its own."""
    rows, sizes = decaying_rows(400, 20), [16, 8, 12]
    books = Product().fit(rows, sizes, seed=3).codebooks
    assert [book.shape for book in books.books] == [(16, 20), (8, 20), (12, 20)]
    codes = books.encode(rows)
    parts = balanced_parts(rows, 3)  # all rows are training rows
    for level, part in enumerate(parts):
        coordinates, centroids = (rows @ part).astype(np.float64), (books.books[level] @ part).astype(np.float64)
        squared = ((coordinates[:, None] - centroids[None]) ** 2).sum(-1)
        chosen = squared[np.arange(400), codes[:, level]]
        np.testing.assert_allclose(chosen, squared.min(axis=1), atol=1e-5)
        for other in parts[:level] + parts[level + 1 :]:
            np.testing.assert_allclose(books.books[level] @ other, 0, atol=1e-5)
    np.testing.assert_allclose(
        books.reconstruct(codes), sum(books.books[level][codes[:, level]] for level in range(3)), atol=1e-6
    )


def test_order_of_levels_does_not_matter() -> None:
    """Parts are orthogonal, so the error is the sum of the parts' errors."""
    rows = decaying_rows(300, 12)
    books = Product().fit(rows, [8, 8], seed=0).codebooks
    codes = books.encode(rows)
    error = ((rows - books.reconstruct(codes)) ** 2).sum()
    parts = balanced_parts(rows, 2)
    separate = sum(
        ((rows @ part - (books.books[level] @ part)[codes[:, level]]) ** 2).sum() for level, part in enumerate(parts)
    )
    assert error == pytest.approx(separate, rel=1e-4)


def test_data_that_is_a_product_is_coded_without_error() -> None:
    """Every pair of 4 points in one plane and 4 in the orthogonal one: 16 rows, 4 + 4 codes, nothing left over."""
    square = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=np.float32)
    rows = np.array([np.concatenate([a, 0.9 * b]) for a, b in itertools.product(square, square)], dtype=np.float32)
    books = Product().fit(rows, [4, 4], seed=1).codebooks
    codes = books.encode(rows)
    np.testing.assert_allclose(books.reconstruct(codes), rows, atol=1e-4)
    assert len(np.unique(codes, axis=0)) == 16


def test_the_same_seed_gives_the_same_bytes_and_a_sample_is_enough() -> None:
    rows = decaying_rows(1000, 12)
    sampled = Product(train_rows_per_code=32)
    first, second, other = (sampled.fit(rows, [8, 8], seed).codebooks for seed in (5, 5, 6))
    assert [book.tobytes() for book in first.books] == [book.tobytes() for book in second.books]
    assert first.books[0].tobytes() != other.books[0].tobytes()
    full = Product().fit(rows, [8, 8], 5).codebooks
    errors = [((rows - books.reconstruct(books.encode(rows))) ** 2).sum() for books in (first, full)]
    assert errors[1] < errors[0] < 1.3 * errors[1]


def test_more_levels_than_dimensions_is_refused() -> None:
    with pytest.raises(InputError, match="3 level_sizes and vectors of 2 numbers"):
        Product().fit(decaying_rows(50, 2), [4, 4, 4], seed=0)
