"""codec/text_rows.py: what was written is read, and damaged files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sidrec.__main__ import main
from sidrec.codec.prepare_text import SPLITS
from sidrec.codec.text_rows import TextRows, read_rows
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.pipeline.stage import read_manifest, write_manifest

TEXTS = [f"Text {number} with an <eos> in it." for number in range(40)]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    flags = ["--valid_share", "0.2", "--test_share", "0.2", "--vocabulary", "280", "--row_length", "8"]
    main(["codec", "text", "--documents", str(corpus), "--run_dir", str(tmp_path / "run"), *flags])
    return tmp_path / "run"


def change(run_dir: Path, name: str, content: bytes) -> None:
    """Change a file, and let the manifest say that it was so written."""
    folder = run_dir / "text"
    (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    assert manifest is not None
    manifest["outputs"][name] = {"sha256": sha256(folder / name), "bytes": len(content)}
    write_manifest(folder / "manifest.json", manifest)


def test_rows_say_what_the_documents_said(run_dir: Path) -> None:
    rows = TextRows.open(run_dir)
    assert (rows.row_length, rows.pad_id, rows.eos_id) == (8, 0, 1)
    assert rows.vocabulary_size == len(rows.tokenizer) == 280
    texts = []
    for split in SPLITS:
        array = rows.rows[split]
        assert isinstance(array, np.memmap)
        stream = array.ravel()[: rows.n_tokens(split)]
        assert (array.ravel()[rows.n_tokens(split) :] == 0).all()
        ends = np.flatnonzero(stream == 1)
        members = rows.texts([ids[:-1] for ids in np.split(stream, ends + 1)[:-1]])
        assert rows.n_bytes(split) == sum(len(text.encode()) for text in members)
        texts += members
    assert sorted(texts) == sorted(TEXTS)


def test_padding_and_ends_say_nothing(run_dir: Path) -> None:
    rows = TextRows.open(run_dir)
    (text,) = rows.texts(rows.rows["valid"][-1:])
    assert "<pad>" not in text
    assert text.endswith("in it.")


def test_a_run_without_the_stage_and_a_changed_file_are_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `sidrec codec text` first"):
        TextRows.open(tmp_path / "other")
    with (run_dir / "text" / "train.npy").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"train.npy is not the file that"):
        TextRows.open(run_dir)


@pytest.mark.parametrize(
    "content", [b"[]", b'{"row_length": "x"}', b'{"row_length": 8, "splits": {}}', b'{"row_length": 8, "splits": 3}']
)
def test_a_damaged_report_is_refused(run_dir: Path, content: bytes) -> None:
    change(run_dir, "report.json", content)
    with pytest.raises(InputError, match=r"report.json is damaged"):
        TextRows.open(run_dir)


def test_a_damaged_tokenizer_is_refused_with_the_rows(run_dir: Path) -> None:
    change(run_dir, "tokenizer.json", b"{}")
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        TextRows.open(run_dir)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4), dtype=np.int64), "holds int64, not uint16"),
        (np.zeros((3, 4), dtype=np.float32), "holds float32, not uint16"),
        (np.zeros((2, 4), dtype=np.uint16), r"shape \[2, 4\], not \[3, 4\]"),
        (np.zeros(12, dtype=np.uint16), r"shape \[12\]"),
        (np.full((3, 4), 300, dtype=np.uint16), "the token 300, but the vocabulary has 300"),
    ],
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(InputError, match=words):
        read_rows(tmp_path / "rows.npy", (3, 4), 300)


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.npy").write_bytes(b"\x93NUMPY and no more")
    with pytest.raises(InputError, match=r"cannot be read as an \.npy file"):
        read_rows(tmp_path / "rows.npy", (3, 4), 300)
    np.save(tmp_path / "rows.npy", np.full((3, 4), 299, dtype=np.uint16))
    assert read_rows(tmp_path / "rows.npy", (3, 4), 300).shape == (3, 4)
