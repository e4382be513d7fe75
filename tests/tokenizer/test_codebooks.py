"""Codebooks that add up: coding and reconstruction against loops, prices, and levels that depend on the code before."""

import numpy as np
import pytest

from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors

SIZES = (4, 3, 5)


def random_codebooks(conditional: bool, width: int = 6, seed: int = 0) -> Codebooks:
    """Three levels with prices; with `conditional`, the second and the third have vectors for each code before."""
    rng = np.random.default_rng(seed)
    shapes = [(4, width), (4, 3, width), (3, 5, width)] if conditional else [(size, width) for size in SIZES]
    books = [rng.standard_normal(shape).astype(np.float32) / 2**level for level, shape in enumerate(shapes)]
    return Codebooks(books, [0.3 * rng.random(size).astype(np.float32) for size in SIZES])


def vector_of(codebooks: Codebooks, level: int, codes: np.ndarray) -> np.ndarray:
    book = codebooks.books[level]
    return book[codes[level]] if book.ndim == 2 else book[codes[level - 1], codes[level]]


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("piece", [7, 16_384])
def test_coding_is_greedy_with_prices(conditional: bool, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over items and levels: the smallest squared distance plus price of what is left."""
    monkeypatch.setattr("sidrec.tokenizer.embeddings.item_vectors.CHUNK", piece)
    codebooks = random_codebooks(conditional)
    latents = np.random.default_rng(1).standard_normal((60, 6)).astype(np.float32)
    codes = codebooks.encode(latents)
    assert codes.dtype == np.int32
    for item in range(60):
        left = latents[item].astype(np.float64)
        for level, size in enumerate(SIZES):
            trial = codes[item].copy()
            costs = []
            for code in range(size):
                trial[level] = code
                costs.append(((left - vector_of(codebooks, level, trial)) ** 2).sum() + codebooks.prices[level][code])
            assert codes[item, level] == int(np.argmin(costs))
            left -= vector_of(codebooks, level, codes[item])
    without = Codebooks(codebooks.books).encode(latents)
    assert (without != codes).any()


@pytest.mark.parametrize("conditional", [False, True])
def test_reconstruction_is_the_sum_of_the_vectors(conditional: bool) -> None:
    codebooks = random_codebooks(conditional)
    codes = np.stack([np.random.default_rng(2).integers(0, size, 30) for size in SIZES], axis=1)
    for n_levels in (1, 2, 3):
        expected = [sum(vector_of(codebooks, level, row) for level in range(n_levels)) for row in codes]
        np.testing.assert_allclose(codebooks.reconstruct(codes[:, :n_levels]), expected, rtol=1e-5, atol=1e-6)
    for n_levels, partial in enumerate(codebooks.partial_sums(codes), start=1):
        np.testing.assert_allclose(partial, codebooks.reconstruct(codes[:, :n_levels]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("conditional", [False, True])
def test_doubles_are_the_vectors_and_their_squared_lengths(conditional: bool) -> None:
    codebooks = random_codebooks(conditional)
    for level, previous in ((0, None), (1, 2), (2, 1), (1, 2), (1, 0)):
        doubles, lengths = codebooks.doubles_after(level, previous)
        assert doubles.dtype == np.float64
        np.testing.assert_array_equal(doubles, codebooks.vectors_after(level, previous))
        np.testing.assert_allclose(lengths, (doubles**2).sum(axis=1), rtol=1e-12)


def test_a_conditional_level_is_summed_up_per_code() -> None:
    codebooks = random_codebooks(conditional=True)
    codes = np.array([[0, 1, 2], [0, 1, 2], [3, 1, 0]], dtype=np.int32)
    flat = codebooks.per_code(codes)
    assert [book.shape for book in flat] == [(4, 6), (3, 6), (5, 6)]
    second = codebooks.books[1]
    np.testing.assert_allclose(flat[1][1], (2 * second[0, 1] + second[3, 1]) / 3, rtol=1e-5)
    np.testing.assert_allclose(flat[1][0], second[:, 0].mean(axis=0), rtol=1e-5, atol=1e-6)  # no item has it


def test_coding_reads_rows_piece_by_piece_and_leaves_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidrec.tokenizer.embeddings.item_vectors.CHUNK", 16)
    source = np.random.default_rng(0).standard_normal((100, 6))
    before = source.copy()
    vectors = ItemVectors([source], [1.0])
    asked: list[int] = []
    read = ItemVectors.__getitem__
    monkeypatch.setattr(
        ItemVectors, "__getitem__", lambda self, rows: (asked.append(rows.stop - rows.start), read(self, rows))[1]
    )
    codebooks = random_codebooks(conditional=False)
    np.testing.assert_array_equal(codebooks.encode(vectors), codebooks.encode(read(vectors, slice(None))))
    assert asked == [16] * 6 + [4]  # every row once, for all levels
    np.testing.assert_array_equal(source, before)


def test_wrong_shapes_are_refused() -> None:
    flat, first = np.zeros((4, 6), dtype=np.float32), np.zeros((3, 2, 6), dtype=np.float32)
    for books in ([first], [flat, first], [flat, flat[:, :5]], [flat, np.zeros((2, 4, 3, 6))]):
        with pytest.raises(AssertionError):
            Codebooks(books)
    with pytest.raises(AssertionError, match="codebooks hold vectors of 6"):
        Codebooks([flat]).encode(np.zeros((2, 5), dtype=np.float32))
