"""Files of other programs: what is written is read again, and every wrong file is named in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.stage import InputError
from tokenizer.interchange import read_codebooks


def test_codebooks_are_read_as_float32_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    books = {f"codebook_{level}": rng.standard_normal((4 + level, 3)) for level in range(11)}
    np.savez(tmp_path / "b.npz", **dict(reversed(books.items())))
    read = read_codebooks(tmp_path / "b.npz")
    assert [book.shape for book in read] == [(4 + level, 3) for level in range(11)]
    for level, book in enumerate(read):
        assert book.dtype == np.float32
        np.testing.assert_array_equal(book, books[f"codebook_{level}"].astype(np.float32))


GOOD = {"codebook_0": np.ones((4, 3)), "codebook_1": np.ones((5, 3))}


@pytest.mark.parametrize(
    ("books", "message"),
    [
        (
            {"codebook_0": GOOD["codebook_0"]},
            "has no codebook_1; it must hold codebook_0 to codebook_1, and holds codebook_0",
        ),
        ({"centroids": np.ones((4, 3))}, "has no codebook_0"),
        ({}, "has no codebook_0; .* and holds nothing"),
        (GOOD | {"codebook_2": np.ones((4, 3))}, "holds codebook_2 beside the 2 codebooks"),
        (GOOD | {"codebook_1": np.ones((4, 3))}, r"codebook_1 is float64 of shape \[4, 3\]; .* of shape \[5, 3\]"),
        (GOOD | {"codebook_0": np.ones((4, 2))}, r"codebook_0 is float64 of shape \[4, 2\]; .* of shape \[4, 3\]"),
        (GOOD | {"codebook_0": np.ones(4)}, r"codebook_0 is float64 of shape \[4\]"),
        (GOOD | {"codebook_0": np.array(4.0)}, r"codebook_0 is float64 of shape \[\]"),
        (GOOD | {"codebook_1": np.full((5, 3), "a")}, "codebook_1 is <U1"),
        (GOOD | {"codebook_1": np.full((5, 3), np.nan)}, "codebook_1 holds NaN"),
    ],
)
def test_wrong_codebooks_name_the_key(tmp_path: Path, books: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "b.npz", **books)
    with pytest.raises(InputError, match=message):
        read_codebooks(tmp_path / "b.npz", [4, 5], 3)


def test_codebooks_need_one_width_even_when_none_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", codebook_0=np.ones((4, 3)), codebook_1=np.ones((4, 2)))
    with pytest.raises(InputError, match=r"codebook_1 is .*\[4, 2\]; it must hold numbers of shape \[K, 3\]"):
        read_codebooks(tmp_path / "b.npz")


def test_a_file_that_holds_no_codebooks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b.npz cannot be read as codebooks \(No such file or directory\)"):
        read_codebooks(tmp_path / "b.npz")
    (tmp_path / "b.npz").write_text("1,2,3")
    with pytest.raises(InputError, match=r"is not an \.npz file"):
        read_codebooks(tmp_path / "b.npz")
    np.save(tmp_path / "b.npy", np.ones((4, 3)))
    with pytest.raises(InputError, match=r"is not an \.npz file"):
        read_codebooks(tmp_path / "b.npy")
    np.savez(tmp_path / "o.npz", codebook_0=np.array([None, 1], dtype=object))
    with pytest.raises(InputError, match=r"o\.npz cannot be read"):
        read_codebooks(tmp_path / "o.npz")
