"""A file of new and changed items: the three kinds say the same, and what is wrong is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from sidrec.data.build import catalogue
from sidrec.data.item_file import read_item_file, source_columns, with_text_of
from sidrec.pipeline.errors import InputError

SOURCE = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Red tea", "Blue  tea", "Pot"],
        "year": [1990, 1991, None],
        "price": [1.5, 2.0, None],
        "model": ["007", "X1", None],
        "is_new": [True, False, None],
        "text": ["leaves", "leaves", "clay"],
    }
)


def test_a_prepared_catalogue_gives_its_source_and_its_texts_back() -> None:
    items, told = catalogue(SOURCE, None)
    source = source_columns(items)
    assert set(source.columns) == set(SOURCE.columns)
    assert source.drop("title").select(sorted(source.columns[:1])).equals(SOURCE.select("item_id"))
    assert source["text"].to_list() == SOURCE["text"].to_list()
    assert with_text_of(source, told["columns"]).select(items.columns).equals(items)


def test_csv_parquet_and_json_lines_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"item_id": "007", "title": "New  pot", "year": 2001, "model": "0815", "is_new": True},
        {"item_id": "a", "title": "", "year": None, "model": None, "is_new": None},
    ]
    table = pl.DataFrame(rows)
    table.write_csv(tmp_path / "new.csv")
    table.write_parquet(tmp_path / "new.parquet")
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "new.jsonl").write_text(lines + "\n")
    with gzip.open(tmp_path / "new.ndjson.gz", "wt") as packed:
        packed.write(lines)
    expected = [("007", "New pot", 2001, "0815", True), ("a", None, None, None, None)]
    for file in ("new.csv", "new.parquet", "new.jsonl", "new.ndjson.gz"):
        read = read_item_file(tmp_path / file, SOURCE)
        assert read.rows() == expected, file
        assert read.schema == {name: SOURCE.schema[name] for name in read.columns}


def test_the_catalogues_types_hold(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item_id;price;year\nx;12,5;\ny;;1999\n")
    read = read_item_file(tmp_path / "new.csv", SOURCE)
    assert read.rows() == [("x", 12.5, None), ("y", None, 1999)]
    (tmp_path / "new.jsonl").write_text('{"item_id": 7, "price": 3}\n{"item_id": "y"}\n')
    assert read_item_file(tmp_path / "new.jsonl", SOURCE).rows() == [("7", 3.0), ("y", None)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("new.csv", b"item_id,title,colour\nx,A,red\n", r"has a column 'colour', which the catalogue does not have \(it has"),
        ("new.csv", b"item_id,title,item_index\nx,A,1\n", "has a column 'item_index'"),
        ("new.csv", b"item_id,title\nx,A\ny,B\nx,C\n", "item_id 'x' is in rows 1 and 3; keep one"),
        ("new.csv", b"item_id,title\nx,A\n,B\n", "row 2 has an empty item_id"),
        ("new.csv", b"item_id,title,year\nx,A,1990\ny,B,soon\n", "row 2: column 'year' holds 'soon', and the catalogue has Int64"),
        ("new.csv", b"item_id,title,year\nx,A,1990.5\n", "row 1: column 'year' holds 1990.5"),
        ("new.csv", b"item_id,title,is_new\nx,A,perhaps\n", "row 1: column 'is_new' holds 'perhaps'"),
        ("new.csv", "item_id,title\nx,Café\n".encode("latin-1"), "is not utf-8 text .*--encoding"),
        ("new.csv", b"id,title\nx,A\n", "has no column 'item_id'"),
        ("new.csv", b"item_id,title\n", "has a header but no rows"),
        ("new.jsonl", b'{"item_id": "x"}\n[1]\n', "line 2 holds no object"),
        ("new.jsonl", b'{"item_id": "x"}\n{"item_id": \n', "line 2 is neither JSON"),
        ("new.jsonl", b'{"title": "x"}\n', "has no field 'item_id'"),
        ("new.csv", b"item_id,title,price\nx,A,1.5\ny,B,inf\n", "row 2: column 'price' is infinite; write a number"),
        ("new.jsonl", b'{"item_id": "x", "price": 1.5}\n{"item_id": "y", "price": -Infinity}\n', "row 2: column 'price' is inf"),
        ("new.jsonl", b'{"item_id": "x\\ud800"}\n', "cannot be read as JSON lines"),
        ("new.jsonl", b'{"item_id": {"a": 1}}\n', "column 'item_id' has type Struct"),
        ("new.jsonl", b"{'item_id': {1}}\n", "column 'item_id' has type Object"),
        ("new.jsonl", b"{'item_id': 'x', 'price': {1}}\n", "row 1: column 'price' holds"),
        ("new.jsonl", b'{"item_id": "x", "year": 1e400}\n', "row 1: column 'year' is infinite"),
        ("new.jsonl", b'{"item_id": "x", "year": 99999999999999999999}\n', "row 1: column 'year' holds"),
        ("new.xlsx", b"PK", "is neither .csv nor .parquet"),
        ("new.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_item_file(tmp_path / name, SOURCE)


def test_a_number_that_is_none_is_an_empty_cell(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item_id,price,year\nx,NaN,\ny,2.5,1999\n")
    (tmp_path / "new.jsonl").write_text(
        '{"item_id": "x", "price": NaN, "year": NaN}\n{"item_id": "y", "price": 2.5, "year": 1999}\n'
    )
    for name in ("new.csv", "new.jsonl"):
        assert read_item_file(tmp_path / name, SOURCE).rows() == [("x", None, None), ("y", 2.5, 1999)]


def test_another_encoding_is_read_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_bytes("item_id,title\nx,Café\n".encode("latin-1"))
    assert read_item_file(tmp_path / "new.csv", SOURCE, encoding="latin-1")["title"].to_list() == ["Café"]
