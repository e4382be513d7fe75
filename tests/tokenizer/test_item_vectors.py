"""Item vectors read on demand: lengths, weights, slices and files left on disk."""

from pathlib import Path

import numpy as np
import pytest

from sidrec.tokenizer.embeddings import item_vectors
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, chunks, longest_row


def two_sources() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sources = [rng.standard_normal((50, 3)) * 100, rng.standard_normal((50, 2)).astype(np.float16)]
    sources[1][2] = 0
    return sources


def test_every_source_has_its_weight_as_length() -> None:
    vectors = ItemVectors(two_sources(), [2.0, 0.5])
    assert vectors.shape == (50, 5)
    together = vectors[:]
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together[:, :3], axis=1), 2.0, rtol=1e-5)
    expected = np.where(np.arange(50) == 2, 0, 0.5)
    np.testing.assert_allclose(np.linalg.norm(together[:, 3:], axis=1), expected, rtol=1e-3)


def test_directions_are_kept() -> None:
    sources = two_sources()
    together = ItemVectors(sources, [2.0, 0.5])[:]
    expected = sources[0] / np.linalg.norm(sources[0], axis=1, keepdims=True) * 2
    np.testing.assert_allclose(together[:, :3], expected, rtol=1e-5)


def test_a_short_row_stays_near_the_origin() -> None:
    """Longest row 4, so the floor is 0.04: a row of length 0.01 gets a quarter of the weight, one of 0.04 and more all of it."""
    source = np.array([[4.0, 0.0], [0.0, 0.01], [0.04, 0.0], [0.0, 0.5]])
    lengths = np.linalg.norm(ItemVectors([source], [3.0])[:], axis=1)
    np.testing.assert_allclose(lengths, [3.0, 0.75, 3.0, 3.0], rtol=1e-5)


def test_rows_are_the_same_however_they_are_asked_for() -> None:
    vectors = ItemVectors(two_sources(), [1.0, 1.0])
    whole = vectors[:]
    np.testing.assert_array_equal(vectors[7:31], whole[7:31])
    some = np.array([40, 3, 3, 17])
    np.testing.assert_array_equal(vectors[some], whole[some])


def test_chunks_cover_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_vectors, "CHUNK", 7)
    vectors = ItemVectors(two_sources(), [1.0, 1.0])
    pieces = list(chunks(vectors))
    assert [len(piece) for _, piece in pieces] == [7] * 7 + [1]
    assert all(piece.dtype == np.float32 for _, piece in pieces)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), vectors[:])
    np.testing.assert_array_equal(np.concatenate([np.arange(50)[where] for where, _ in pieces]), np.arange(50))


def test_the_longest_row_is_found_beyond_the_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_vectors, "CHUNK", 4)
    rows = np.ones((10, 2))
    rows[9] = [3, 4]
    assert longest_row(rows) == pytest.approx(5)
    assert longest_row(np.zeros((0, 2))) == 0


def test_files_stay_on_disk(tmp_path: Path) -> None:
    """A memory map goes in, rows come out; the map itself is neither copied nor changed."""
    np.save(tmp_path / "vectors.npy", np.eye(6, dtype=np.float32) * 2)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    vectors = ItemVectors([mapped], [1.0])
    assert vectors.sources[0] is mapped
    np.testing.assert_array_equal(vectors[2:4], np.eye(6)[2:4])


def test_all_rows_zero_stay_zero_and_finite() -> None:
    np.testing.assert_array_equal(ItemVectors([np.zeros((3, 2))], [1.0])[:], np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("kind", "size"),
    [(np.float16, 2e3), (np.float16, 1e-6), (np.float32, 1e20), (np.float32, 1e-30), (np.float64, 1e30)],
)
def test_the_size_of_the_numbers_does_not_matter(kind: type, size: float) -> None:
    """Squares of 1e20 are no float32, those of 2,000 no float16."""
    source = np.random.default_rng(0).standard_normal((40, 6))
    with np.errstate(invalid="raise"):
        scaled = ItemVectors([(source * size).astype(kind)], [1.0])[:]
    assert np.linalg.norm(scaled, axis=1) == pytest.approx(np.ones(40), rel=1e-3)
    cosines = (scaled * source).sum(1) / np.linalg.norm(source, axis=1)
    assert cosines == pytest.approx(np.ones(40), rel=0.05 if size == 1e-6 else 1e-3)
