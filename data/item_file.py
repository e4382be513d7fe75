"""A file of items that come into a catalogue, or change in it: CSV, Parquet or JSON lines, checked against the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from sidrec.data.dialect import listed
from sidrec.data.item_text import one_line, with_text, words_of
from sidrec.data.json_lines import NO_TABLE, read_objects
from sidrec.data.readers import refuse_blank, text_ids
from sidrec.data.tables import collect, read_table
from sidrec.pipeline.errors import InputError

JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


def source_columns(items: pl.DataFrame) -> pl.DataFrame:
    """A prepared catalogue as its source had it: without what `sidrec prepare` adds, and a column `text` by that name."""
    return items.drop("item_index", "text").rename({"given_text": "text"}, strict=False)


def with_text_of(source: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """The items numbered from 0, with a text made of title and these columns, whatever others say something by now.

    source: as `source_columns` gives it. columns: title and those that joined the text when the catalogue was prepared.
    """
    words = {name: words_of(name, source.schema[name]) for name in columns[1:]}
    return with_text(source, {name: expression for name, expression in words.items() if expression is not None})


def read_item_file(
    path: Path, source: pl.DataFrame, separator: str | None = None, encoding: str | None = None
) -> pl.DataFrame:
    """item_id, each once, and those columns of the catalogue that the file has, with the catalogue's types; a title is one line, or null.

    source: the catalogue, as `source_columns` gives it. separator, encoding: of a CSV; None for what fits its first line, and for UTF-8.
    Raises InputError, naming the row, for an id that is empty or there twice and a value of another type, and for a column that the
    catalogue does not have.
    """
    if path.name.lower().endswith(JSON_LINES):
        table = read_objects(path)
        if "item_id" not in table.columns:
            raise InputError(f"{path} has no field 'item_id' (found: {listed(table.columns)}); rename or add it.")
    else:
        strings = [name for name, dtype in source.schema.items() if dtype == pl.String]
        table = collect(path, read_table(path, ["item_id"], separator, encoding, words=strings))
    return _fitted(path, table, source)


def items_of_records(records: list[dict[str, Any]], source: pl.DataFrame) -> pl.DataFrame:
    """`read_item_file` of objects that came in another way than in a file; errors name their place among them."""
    where = Path("items")
    for number, record in enumerate(records, 1):
        _refuse_unknown(Path(f"items row {number}"), list(record), source)
        if "item_id" not in record:
            raise InputError(f"items row {number} has no item_id; add it.")
    try:
        table = pl.DataFrame(records, infer_schema_length=None, strict=False)
    except NO_TABLE as error:
        raise InputError(f"items make no table: {' '.join(str(error).split())}") from error
    return _fitted(where, table, source)


def _fitted(path: Path, table: pl.DataFrame, source: pl.DataFrame) -> pl.DataFrame:
    """The table as `read_item_file` gives it."""
    _refuse_unknown(path, table.columns, source)
    table = table.with_columns(text_ids(path, "item_id", table.schema["item_id"]))
    refuse_blank(path, table["item_id"], "row")
    _refuse_twice(path, table["item_id"])
    table = table.select(_converted(path, table[name], source.schema[name]) for name in table.columns)
    if "title" in table.columns:
        title = one_line(pl.col("title"))
        table = table.with_columns(title=pl.when(title != "").then(title))
    return table


def _refuse_unknown(path: Path, columns: list[str], source: pl.DataFrame) -> None:
    unknown = [name for name in columns if name not in source.columns]
    if unknown:
        raise InputError(
            f"{path} has a column {unknown[0][:60]!r}, which the catalogue does not have (it has {listed(source.columns)}); rename it or "
            "take it out."
        )


def _refuse_twice(path: Path, ids: pl.Series) -> None:
    twice = ids.is_duplicated()
    if twice.any():
        name = ids.filter(twice)[0]
        first, second = (ids == name).arg_true()[:2]
        raise InputError(f"{path}: item_id {name!r} is in rows {first + 1} and {second + 1}; keep one of them.")


def _converted(path: Path, cells: pl.Series, dtype: pl.DataType) -> pl.Series:
    """A column in the catalogue's type, NaN as an empty cell. Raises InputError for the first cell that has no such value."""
    if cells.dtype.is_float():
        cells = cells.fill_nan(None)
        if cells.is_infinite().any():
            row = int(cells.is_infinite().arg_true()[0])
            raise InputError(f"{path} row {row + 1}: column {cells.name!r} is infinite; write a number, or nothing.")
    if cells.dtype == dtype:
        return cells
    if cells.null_count() == len(cells):
        return pl.Series(cells.name, [None] * len(cells), dtype)
    try:
        converted = cells.cast(dtype, strict=False)
        lost = converted.is_null() & cells.is_not_null()
        if cells.dtype.is_float() and dtype.is_integer():
            lost |= (cells != cells.floor()).fill_null(False)
    except pl.exceptions.PolarsError:
        converted, lost = cells, cells.is_not_null()
    if lost.any():
        row = int(lost.arg_true()[0])
        raise InputError(
            f"{path} row {row + 1}: column {cells.name!r} holds {cells[row]!r}, and the catalogue has {dtype} there; correct it."
        )
    return converted.cast(dtype)
