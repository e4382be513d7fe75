"""The artefact that every later stage reads: its files, its tokens, its digest."""

import json
from pathlib import Path

import numpy as np
import pytest

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage
from sidrec.tokenizer.semantic_ids import SemanticIds, sid_token


def make() -> SemanticIds:
    codes = np.array([[0, 2], [1, 0], [1, 2]], dtype=np.int32)
    raw = np.array([[0, 2], [1, 2], [1, 2]], dtype=np.int32)
    books = [np.arange(4, dtype=np.float32).reshape(2, 2), np.arange(6, dtype=np.float32).reshape(3, 2)]
    return SemanticIds(codes, raw, books)


def test_saved_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    sids = make()
    paths = sids.save(tmp_path)
    again = SemanticIds.read(tmp_path)
    np.testing.assert_array_equal(again.codes, sids.codes)
    np.testing.assert_array_equal(again.codes_raw, sids.codes_raw)
    assert [book.tobytes() for book in again.codebooks] == [book.tobytes() for book in sids.codebooks]
    assert again.digest == sids.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in paths
    )  # nothing temporary left


def test_files_have_the_documented_layout(tmp_path: Path) -> None:
    make().save(tmp_path)
    assert np.load(tmp_path / "codes_all.npy").dtype == np.int32
    with np.load(tmp_path / "codebooks.npz") as books:
        assert sorted(books.files) == ["codebook_0", "codebook_1"]
        assert books["codebook_1"].shape == (3, 2)
    rows = json.loads((tmp_path / "sid.json").read_text())
    assert rows == {"0": ["<a_0>", "<b_2>"], "1": ["<a_1>", "<b_0>"], "2": ["<a_1>", "<b_2>"]}


def test_tokens_and_text() -> None:
    sids = make()
    assert sid_token(2, 17) == "<c_17>"
    assert sids.tokens() == ["<a_0>", "<a_1>", "<b_0>", "<b_1>", "<b_2>"]
    assert sids.text(2) == "<a_1><b_2>"
    assert (sids.n_items, sids.n_levels, sids.level_sizes) == (3, 2, [2, 3])


def test_digest_depends_on_codes_and_level_sizes_alone() -> None:
    sids = make()
    more_codes = SemanticIds(sids.codes, sids.codes_raw, [sids.codebooks[0], np.zeros((4, 2), dtype=np.float32)])
    other_vectors = SemanticIds(sids.codes, sids.codes_raw, [book + 1 for book in sids.codebooks])
    swapped = SemanticIds(sids.codes[::-1], sids.codes_raw, sids.codebooks)
    wider = SemanticIds(sids.codes.astype(np.int64), sids.codes_raw, sids.codebooks)
    assert sids.digest == other_vectors.digest == wider.digest
    assert len({sids.digest, more_codes.digest, swapped.digest}) == 3


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1], [0, 3]], None),
        ([[0, 1], [-1, 0]], None),
        ([0, 1], r"must be \[N, L\]"),
    ],
)
def test_codes_that_cannot_be_are_refused(codes: list, message: str | None) -> None:
    array = np.array(codes, dtype=np.int32)
    with pytest.raises(AssertionError, match=message):
        SemanticIds(array, array, make().codebooks)


def test_a_run_whose_items_share_a_semantic_id_is_refused(tmp_path: Path) -> None:
    """`--unique none` makes SIDs to look at; they can be read from their folder, but no later stage takes them."""
    stage = Stage(tmp_path, "sid", {"unique": "none"})
    sids = make()
    with stage.building() as folder:
        SemanticIds(sids.codes_raw, sids.codes_raw, sids.codebooks).save(folder)
    assert SemanticIds.read(stage.folder).n_distinct == 2
    with pytest.raises(InputError, match=r"sid holds 3 items but 2 different semantic IDs; .*--unique assign"):
        SemanticIds.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    make().save(tmp_path)
    (tmp_path / "codebooks.npz").unlink()
    with pytest.raises(InputError, match=r"codebooks.npz is missing.*run_tokenizer.sh"):
        SemanticIds.read(tmp_path)
    with pytest.raises(InputError, match=r"run_tokenizer\.sh --run_dir"):
        SemanticIds.load(tmp_path)
