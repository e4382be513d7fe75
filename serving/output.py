"""Recommendations as a file, written part by part: CSV, JSON lines or Parquet, by its ending. It is there when all of it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from sidrec.pipeline.files import atomic_path

FORMULA = r"^[=+\-@\t\r]"  # a text that begins so is one to a spreadsheet
ENDINGS = (".csv", ".jsonl", ".parquet")


def write_parts(path: Path, parts: Iterable[pl.DataFrame]) -> int:
    """Write frames of one schema, with a title, one after the other, as a file that replaces an older one; the number of rows."""
    writers = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
    with atomic_path(path) as temporary:
        return writers[path.suffix.lower()](temporary, parts)


def _write_csv(path: Path, parts: Iterable[pl.DataFrame]) -> int:
    """Titles that a spreadsheet would run as formulas have an apostrophe before them; ids stay as they are, for others join by them."""
    rows = 0
    with path.open("wb") as file:
        for number, part in enumerate(parts):
            safe = part.with_columns(pl.col("title").str.replace(FORMULA, "'${0}"))
            safe.write_csv(file, include_header=number == 0)
            rows += len(part)
    return rows


def _write_json_lines(path: Path, parts: Iterable[pl.DataFrame]) -> int:
    rows = 0
    with path.open("wb") as file:
        for part in parts:
            part.write_ndjson(file)
            rows += len(part)
    return rows


def _write_parquet(path: Path, parts: Iterable[pl.DataFrame]) -> int:
    from pyarrow.parquet import ParquetWriter

    rows, writer = 0, None
    try:
        for part in parts:
            table = part.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            rows += len(part)
    finally:
        if writer is not None:
            writer.close()
    return rows
