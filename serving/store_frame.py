"""The rows of a query on the store as a Polars frame, with one sentence where something else wrote what no column of it holds."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
from sqlalchemy import Select

from sidrec.pipeline.errors import InputError
from sidrec.serving.store import Store

TYPES: dict[Any, set[type]] = {
    pl.String: {str},
    pl.Int64: {int},
    pl.Float64: {float, int},
    pl.Boolean: {bool},
    pl.List(pl.String): {list},
}


def store_frame(store: Store, query: Select[Any], schema: dict[str, Any], json_column: str = "") -> pl.DataFrame:
    """schema: of the query's columns, in their order, with types of TYPES. json_column: one whose values become their JSON. Raises
    InputError, naming column and value, for a value of another type."""
    frames = [pl.DataFrame(schema=schema)]
    try:
        for rows in store.blocks(query):
            columns = zip(schema.items(), zip(*rows, strict=True), strict=True)
            frames.append(pl.DataFrame([_column(*each, cells, json_column) for each, cells in columns]))
    except (TypeError, ValueError, OverflowError) as error:  # of JSON, switches and numbers
        reason = " ".join(str(error).split())
        raise InputError(
            f"--store holds a row that cannot be read ({reason}); correct it, or put back a copy."
        ) from error
    return pl.concat(frames)


def _column(name: str, dtype: Any, cells: tuple[Any, ...], json_column: str) -> pl.Series:
    if name == json_column:
        cells = tuple(None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells)
    for cell in cells if set(map(type, cells)) - TYPES[dtype] - {type(None)} else ():
        if cell is not None and type(cell) not in TYPES[dtype]:
            raise _odd(name, dtype, cell)
    if dtype == pl.List:
        for cell in cells:
            if cell is not None and set(map(type, cell)) - {str}:
                raise _odd(name, dtype, cell)
    return pl.Series(name, cells, dtype)


def _odd(name: str, dtype: Any, cell: Any) -> InputError:
    return InputError(
        f"--store holds {str(cell)[:60]!r} as {name}, which is no {dtype}: something else wrote it; correct the row, or put back a copy."
    )
