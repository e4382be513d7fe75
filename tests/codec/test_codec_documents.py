"""codec/documents.py: every kind of file by hand, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import polars as pl
import pytest

from sidrec.codec import documents
from sidrec.codec.documents import Document, documents_of, files_of, size_of
from sidrec.pipeline.errors import InputError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "b.txt").write_text("two\nlines\n", encoding="utf-8")
    (folder / "blank.md").write_text(" \n", encoding="utf-8")
    (folder / "deep" / "a.MD").write_text("é 🙂", encoding="utf-8-sig")
    (folder / ".hidden" / "c.txt").write_text("not read")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    rows = [{"text": "first", "id": 1}, {"text": ""}, {"text": "third\r\n"}]
    (folder / "rows.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    table = pl.DataFrame({"meta": [{"text": 1}, {"text": 2}], "text": ["one row", "another row"]})
    table.write_parquet(folder / "table.parquet")
    return folder


def test_a_folder_is_read_in_the_order_of_its_files(corpus: Path) -> None:
    expected = [
        Document("b.txt", "two\nlines\n"),
        Document("deep/a.MD", "é 🙂"),
        Document("rows.jsonl:1", "first"),
        Document("rows.jsonl:5", "third\r\n"),
        Document("table.parquet:1", "one row"),
        Document("table.parquet:2", "another row"),
    ]
    assert list(documents_of([str(corpus)])) == expected
    assert expected[1].n_bytes == 7
    one_by_one = [str(corpus / name) for name in ("table.parquet", "rows.jsonl")]
    assert list(documents_of(one_by_one)) == [*expected[4:], *expected[2:4]]


def test_another_field_is_read_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "rows.ndjson").write_text('{"body": "here"}\n')
    assert [document.text for document in documents_of([str(tmp_path)], "body")] == ["here"]


def test_the_size_is_about_that_of_the_text(corpus: Path) -> None:
    assert size_of(corpus / "b.txt", "text") == 10
    assert 20 <= size_of(corpus / "table.parquet", "text") < 120


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("latin.txt", b"caf\xe9", "no UTF-8 text"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is no JSON"),
        ("rows.jsonl", b'{"text": "caf\xe9"}', "line 1 is no JSON"),
        ("rows.jsonl", b"[" * 100_000, "line 1 is no JSON"),
        ("rows.jsonl", b'["text"]', "line 1 has no field 'text'"),
        ("rows.jsonl", b'{"body": "a"}', "line 1 has no field 'text'"),
        ("rows.jsonl", b'{"text": 3}', "line 1: text is int"),
        ("rows.jsonl", b'{"text": null}', "line 1: text is NoneType"),
        ("rows.jsonl", b'{"text": "\\ud800"}', "half a character"),
        ("rows.jsonl", b'{"text": " "}', "holds no text"),
        ("table.parquet", b"PAR1 and nothing", "cannot be read as Parquet"),
        ("table.parquet", b"", "cannot be read as Parquet"),
        ("table.csv", b"text\na\n", "is none of .txt"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(documents_of([str(tmp_path / name)]))


def test_a_parquet_file_without_the_column_or_with_numbers_in_it_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"body": ["a"]}).write_parquet(tmp_path / "body.parquet")
    with pytest.raises(InputError, match="no column 'text', it has body"):
        list(documents_of([str(tmp_path / "body.parquet")]))
    pl.DataFrame({"text": ["a", None]}).write_parquet(tmp_path / "holes.parquet")
    with pytest.raises(InputError, match="row 2: text is NoneType"):
        list(documents_of([str(tmp_path / "holes.parquet")]))


def test_a_damaged_page_of_a_parquet_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    pl.DataFrame({"text": [f"text number {number}" for number in range(5000)]}).write_parquet(file)
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged after row 0"):
        list(documents_of([str(file)]))


def test_what_is_too_long_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 5)
    (tmp_path / "long.txt").write_text("123456")
    (tmp_path / "long.jsonl").write_text('{"text": "123456"}')
    for name, words in (("long.txt", "larger than 5 bytes"), ("long.jsonl", "line 1: text is longer than 5")):
        with pytest.raises(InputError, match=words):
            list(documents_of([str(tmp_path / name)]))


def test_a_missing_source_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        files_of(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no file of \.txt"):
        files_of(tmp_path)


def test_fineweb_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def load(path: str, **options: object) -> list[dict[str, str]]:
        asked.update(options, path=path)
        return [{"text": "a"}, {"text": " "}, {"text": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [(each.name, each.text) for each in documents_of(["fineweb"])] == [("fineweb:1", "a"), ("fineweb:3", "b")]
    assert asked["path"] == "HuggingFaceFW/fineweb"
    assert asked["streaming"] is True


def test_fineweb_without_a_connection_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **options: object) -> None:
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"cannot be read \(no route\); it needs a connection"):
        list(documents_of(["fineweb"]))


def test_a_folder_named_fineweb_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fineweb").mkdir()
    (tmp_path / "fineweb" / "a.txt").write_text("mine")
    assert [document.text for document in documents_of(["fineweb"])] == ["mine"]
