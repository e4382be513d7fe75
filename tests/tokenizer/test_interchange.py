"""Files of other programs: what is written is read again, and every wrong file is named in a sentence."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_sids

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer import interchange
from sidrec.tokenizer.config import parse_arguments
from sidrec.tokenizer.interchange import read_codebooks, read_codes, write_codes
from sidrec.tokenizer.quantizers.given import Given
from sidrec.tokenizer.quantizers.random import random_codes


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
    with pytest.raises(InputError, match=r"b.npz cannot be read as an .npz file \(No such file or directory\)"):
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


# codes


def write_index(path: Path, rows: list[list[str]]) -> Path:
    path.write_text(json.dumps({str(item): row for item, row in enumerate(rows)}))
    return path


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        *((name, offset) for name in ("X.index.json", "codes.npy") for offset in (0, 1)),
        ("sid2vid.json", 0),
        ("m.pt", 0),
    ],
)
def test_codes_that_are_written_are_read_again(tmp_path: Path, name: str, offset: int) -> None:
    codes = np.random.default_rng(0).integers(0, 300, (50, 4)).astype(np.int32)
    write_codes(tmp_path / name, codes, offset)
    read, has_extra = read_codes(tmp_path / name, offset)
    np.testing.assert_array_equal(read, codes)
    assert read.dtype == np.int32
    assert not has_extra


def test_an_index_has_minionerecs_layout(tmp_path: Path) -> None:
    write_codes(tmp_path / "X.index.json", np.array([[11, 6, 199], [0, 0, 0]]), offset=1)
    assert json.loads((tmp_path / "X.index.json").read_text()) == {
        "0": ["<a_12>", "<b_7>", "<c_200>"],
        "1": ["<a_1>", "<b_1>", "<c_1>"],
    }


def test_a_flashrec_catalogue_gives_the_models_tokens(tmp_path: Path) -> None:
    """As its loader reads keys: token of level i = first token + the sizes of the levels before + code."""
    sids = make_sids(20, [4, 5, 6])
    write_codes(tmp_path / "sid2vid.json", sids.codes)
    rows = json.loads((tmp_path / "sid2vid.json").read_text())
    tokens = sids.tokens()
    for key, item in rows.items():
        places = [sum(sids.level_sizes[:i]) + int(code) for i, code in enumerate(key.split(","))]
        assert "".join(tokens[place] for place in places) == sids.text(item)
    assert sorted(rows.values()) == list(range(20))


def test_a_mapping_tensor_is_what_nvidias_loader_asks_for(tmp_path: Path) -> None:
    """Two dimensions, a row a level; it selects items from the columns, and adds the levels' offsets itself."""
    sids = make_sids(20, [4, 5, 6])
    write_codes(tmp_path / "mapping.pt", sids.codes)
    mapping = torch.load(tmp_path / "mapping.pt")
    assert (mapping.shape, mapping.dtype) == ((3, 20), torch.int64)
    offsets = torch.tensor(np.cumsum([0, *sids.level_sizes[:-1]]))
    history = torch.index_select(mapping, dim=1, index=torch.tensor([7, 3])).transpose(0, 1) + offsets[None]
    tokens = sids.tokens()
    assert ["".join(tokens[place] for place in row) for row in history.tolist()] == [sids.text(7), sids.text(3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "a JSON object whose values are all the items"),
        ('{"1,2": 1, "1,3": 1}', "whose values are all the items"),
        ('{"1,2": 0, "1": 1}', "the key '1' must be like"),
        ('{"1,-2": 0}', "the key '1,-2' must be like"),
        ("{", "it is not JSON"),
    ],
)
def test_wrong_catalogues_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sid2vid.json").write_text(content)
    with pytest.raises(InputError, match=f"sid2vid.json.*{message}"):
        read_codes(tmp_path / "sid2vid.json")


def test_items_that_share_codes_have_no_flashrec_catalogue(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 items have 2 different codes"):
        write_codes(tmp_path / "sid2vid.json", np.array([[0, 1], [0, 1], [1, 1]]))
    assert not list(tmp_path.iterdir())


def test_wrong_mapping_tensors_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no tensor")
    torch.save(torch.ones(3), tmp_path / "flat.pt")
    torch.save({"codes": 1}, tmp_path / "dictionary.pt")
    torch.save(torch.ones(3, 4), tmp_path / "fractions.pt")
    for name in ("text", "flat", "dictionary", "fractions", "absent"):
        with pytest.raises(InputError, match=rf"{name}.pt (cannot be read as a tensor|must hold a torch tensor)"):
            read_codes(tmp_path / f"{name}.pt")


def test_an_extra_token_becomes_a_level_on_which_0_is_none(tmp_path: Path) -> None:
    """MiniOneRec counts items that collide from 1 on, and gives the others no fourth token; the offset is not this token's."""
    collided = [["<a_3>", "<b_5>", "<c_6>", f"<d_{rank}>"] for rank in (1, 2)]
    path = write_index(tmp_path / "X.index.json", [["<a_1>", "<b_1>", "<c_1>"], *collided])
    codes, has_extra = read_codes(path, offset=1)
    assert has_extra
    np.testing.assert_array_equal(codes, [[0, 0, 0, 0], [2, 4, 5, 1], [2, 4, 5, 2]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be a JSON object whose keys are all the items"),
        ("{}", "must be a JSON object"),
        ('{"0": ["<a_1>"], "2": ["<a_2>"]}', 'from "0" on'),
        ("{", "it is not JSON"),
        ('{"0": ["<a_1>", "<c_1>"]}', r"token 2 of item 0 is '<c_1>'; it must be like `<b_12>`"),
        ('{"0": ["<a_1>", 5]}', "token 2 of item 0 is 5"),
        ('{"0": ["<a_-1>"]}', "token 1 of item 0 is '<a_-1>'"),
        ('{"0": "<a_1>"}', "item 0 must have a list"),
        ('{"0": ["<a_1>"], "1": ["<a_1>", "<b_1>", "<c_1>"]}', "items of 1 and of 3 tokens"),
        ('{"0": []}', "items of 0 and of 0 tokens"),
        ('{"0": ["<a_1>"], "1": ["<a_0>"]}', "gives item 1 the number 0 on level 1, which is under the offset 1"),
    ],
)
def test_wrong_index_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "X.index.json").write_text(content)
    with pytest.raises(InputError, match=f"X.index.json.*{message}"):
        read_codes(tmp_path / "X.index.json", offset=1)


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 2)), np.zeros(3, dtype=int), np.zeros((0, 3), dtype=int), np.zeros((3, 9), int)]
)
def test_wrong_arrays_of_codes_are_named(tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "codes.npy", codes)
    with pytest.raises(InputError, match=r"codes.npy holds .*; codes are whole numbers"):
        read_codes(tmp_path / "codes.npy")


def test_a_number_that_no_level_has_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.array([[0, 1], [2, 960_051_514]]))
    with pytest.raises(
        InputError, match="item 1 the number 960051514 on level 2; levels have at most 16,777,216 codes"
    ):
        read_codes(tmp_path / "codes.npy")


def test_the_command_turns_one_file_into_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_index(tmp_path / "X.index.json", [["<a_1>", "<b_3>"], ["<a_2>", "<b_3>"], ["<a_2>", "<b_3>"]])

    def call(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["command", *flags])
        interchange.main()

    call("--read_file", "X.index.json", "--write_file", "codes.npy", "--read_offset", "1")
    np.testing.assert_array_equal(np.load("codes.npy"), [[0, 2], [1, 2], [1, 2]])
    assert "3 items, 2 different, 2 levels; codes used per level: 2 1" in capsys.readouterr().out
    call("--read_file", "codes.npy", "--write_file", "again.json", "--write_offset", "1")
    assert json.loads(Path("again.json").read_text()) == json.loads(Path("X.index.json").read_text())
    with pytest.raises(InputError, match=r"write_file is 'codes.csv'; it must end in .json, .npy or .pt"):
        call("--read_file", "X.index.json", "--write_file", "codes.csv")
    with pytest.raises(InputError, match=r"write_offset is 1, and m.pt counts codes from 0"):
        call("--read_file", "codes.npy", "--write_file", "m.pt", "--write_offset", "1")


def test_the_index_that_minionerec_ships() -> None:
    """48 of 256 first codes are in use, and 16 items have the SID of another."""
    datasets = os.environ.get("SIDREC_DATASETS")
    if not datasets:
        pytest.skip("SIDREC_DATASETS does not say where the data sets are")
    folder = Path(datasets) / "minionerec-industrial" / "index"
    codes, has_extra = read_codes(folder / "Industrial_and_Scientific.index.json")
    assert codes.shape == (3686, 3)
    assert not has_extra
    assert len(np.unique(codes[:, 0])) == 48
    assert len(np.unique(codes, axis=0)) == 3670


# codes and codebooks as a run takes them


def test_given_codes_get_the_mean_of_what_is_left_as_codebooks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = np.column_stack([rng.integers(0, 3, 40), rng.integers(0, 4, 40)]).astype(np.int32)
    codes[:, 1][codes[:, 1] == 2] = 3  # code 2 has no item
    vectors = rng.standard_normal((40, 5)).astype(np.float32)
    np.save(tmp_path / "codes.npy", codes)
    given = Given(codes_file=str(tmp_path / "codes.npy"))
    assert given.choose_level_sizes([], (40, 5), "none") == [3, 4]
    books = given.fit(vectors, [3, 4], seed=0).codebooks
    for code in range(3):
        np.testing.assert_allclose(books.books[0][code], vectors[codes[:, 0] == code].mean(axis=0), atol=1e-6)
    left = vectors - books.books[0][codes[:, 0]]
    for code in (0, 1, 3):
        np.testing.assert_allclose(books.books[1][code], left[codes[:, 1] == code].mean(axis=0), atol=1e-6)
    assert 2 not in books.encode(rng.standard_normal((500, 5)).astype(np.float32))[:, 1]


def test_given_codebooks_are_taken_and_an_extra_token_is_left_out(tmp_path: Path) -> None:
    path = write_index(
        tmp_path / "X.index.json", [["<a_0>", "<b_1>", "<c_1>"], ["<a_0>", "<b_1>", "<c_2>"], ["<a_1>", "<b_2>"]]
    )
    books = {"codebook_0": np.ones((2, 5)), "codebook_1": np.zeros((3, 5))}
    np.savez(tmp_path / "b.npz", **books)
    given = Given(codes_file=str(path), codebooks_file=str(tmp_path / "b.npz"))
    assert given.choose_level_sizes([], (3, 5), "none") == [2, 3]
    vectors = np.zeros((3, 5), dtype=np.float32)
    quantizer = given.fit(vectors, [2, 3], seed=0)
    np.testing.assert_array_equal(given.encode(quantizer, vectors, seed=0), [[0, 1], [0, 1], [1, 2]])
    for level, book in enumerate(quantizer.codebooks.books):
        np.testing.assert_array_equal(book, books[f"codebook_{level}"])


def test_given_codes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = write_index(tmp_path / "X.index.json", [["<a_0>", "<b_1>"], ["<a_1>", "<b_7>"]])
    given = Given(codes_file=str(path))
    with pytest.raises(InputError, match=r"has codes for 2 items, but the catalogue has 3"):
        given.choose_level_sizes([], (3, 5), "assign")
    with pytest.raises(InputError, match=r"gives item 1 the code 7 on level 2, which has 7 codes"):
        given.choose_level_sizes([2, 7], (2, 5), "assign")
    with pytest.raises(InputError, match="has 2 codes an item, but --level_sizes has 3 levels"):
        given.choose_level_sizes([8, 8, 8], (2, 5), "assign")
    np.savez(tmp_path / "b.npz", codebook_0=np.ones((8, 4)), codebook_1=np.ones((8, 4)))
    with pytest.raises(InputError, match=r"codebook_0 is .*\[8, 4\]; it must hold numbers of shape \[K, 5\]"):
        Given(codes_file=str(path), codebooks_file=str(tmp_path / "b.npz")).choose_level_sizes([], (2, 5), "assign")
    with pytest.raises(InputError, match="no --codes_file says which"):
        Given().choose_level_sizes([], (2, 5), "assign")
    for flag in ("--codes_file", "--codes_offset"):
        with pytest.raises(InputError, match=f"{flag} is not a setting"):
            parse_arguments([flag, "1"], stage="sid")


@pytest.mark.parametrize(
    ("n_items", "sizes"), [(64, [4, 4, 4]), (50, [4, 4, 4]), (1000, [256, 256, 256]), (30, [256] * 8)]
)
def test_random_codes_are_all_different_and_use_all_codes(n_items: int, sizes: list[int]) -> None:
    codes = random_codes(n_items, sizes, seed=0)
    assert len(np.unique(codes, axis=0)) == n_items
    assert (codes >= 0).all()
    assert (codes < sizes).all()
    assert (random_codes(n_items, sizes, seed=0) == codes).all()
    assert (random_codes(n_items, sizes, seed=1) != codes).any()
    for level, size in enumerate(sizes[:7]):
        assert len(np.unique(codes[:, level])) > 0.9 * min(size, n_items) * (1 - np.exp(-n_items / size))


def test_fewer_random_codes_than_items_are_shared_evenly() -> None:
    codes = random_codes(50, [2, 4], seed=0)
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    assert (len(counts), set(counts.tolist())) == (8, {6, 7})
    assert (random_codes(50, [2, 4], seed=1) != codes).any()
