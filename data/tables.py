"""CSV and Parquet files with the columns that a reader needs, and one sentence when they are not there."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl

from sidrec.pipeline.errors import InputError

TAIL_BYTES = 1 << 16
QUOTED_CHARACTERS = 80


def read_table(path: Path, required: list[str]) -> pl.LazyFrame:
    """A CSV (also .csv.gz) or Parquet file with at least the `required` columns; in a CSV these are read as strings.

    A CSV is read and checked whole; of a Parquet file only the schema is, so that collecting it can be streamed. Raises InputError
    when the file is missing, empty, of another kind, cut short, or without a required column.
    """
    require_file(path)
    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise InputError(f"{path} is neither .csv nor .parquet; convert it to one of them.")
    is_csv = path.suffix != ".parquet"
    try:
        if is_csv:
            as_text = dict.fromkeys(required, pl.String)
            table = pl.read_csv(path, glob=False, schema_overrides=as_text, infer_schema_length=None).lazy()
        else:
            table = pl.scan_parquet(path, glob=False)
        names = table.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    missing = [name for name in required if name not in names]
    if missing and is_csv and len(names) == 1:
        raise InputError(
            f"{path}: expected columns separated by ',' but the first line is {quote(names[0])}; export it with commas."
        )
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r} (found: {', '.join(names)}); rename or add it.")
    rows = table.select(pl.len()).collect().item()
    if not rows:
        raise InputError(f"{path} has a header but no rows; export it again.")
    if path.suffix == ".csv" and _last_line_is_short(path, table):
        raise InputError(
            f"{path} row {rows}, the last one, has fewer than {len(names)} fields; the file looks truncated."
        )
    return table


def collect(path: Path, table: pl.LazyFrame) -> pl.DataFrame:
    """Run a query on `read_table(path, …)` batch by batch; raises InputError when the file turns out to be damaged."""
    try:
        return table.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error


def require_file(path: Path) -> None:
    """Raise InputError unless `path` is a file with something in it."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file; check the path.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; download or export it again.")


def quote(line: str) -> str:
    """A line in quotation marks, cut after 80 characters."""
    return repr(line if len(line) <= QUOTED_CHARACTERS else line[:QUOTED_CHARACTERS] + "…")


def _unreadable(path: Path, error: Exception) -> InputError:
    kind = "parquet" if path.suffix == ".parquet" else "csv"
    reason = " ".join(str(error).split("\n")[0].split())
    where = _where_fields_differ(path) if path.suffix == ".csv" else ""
    return InputError(f"{path} cannot be read as {kind}: {reason}{where}; repair or export it again.")


def _where_fields_differ(path: Path) -> str:
    """The first row of a CSV with another number of fields than the header has, in words; empty when there is none."""
    header, *rows = csv.reader(path.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    odd = next((row for row, fields in enumerate(rows, 1) if len(fields) != len(header)), None)
    if odd is None:
        return ""
    return f" (row {odd} has {len(rows[odd - 1])} fields separated by ',', the header has {len(header)})"


def _last_line_is_short(path: Path, table: pl.LazyFrame) -> bool:
    """Whether the file ends inside a row: Polars fills such a row with nulls, which look like empty fields."""
    last_row = table.tail(1).collect()
    if last_row.width == 1 or last_row[-1, -1] is not None:
        return False
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - TAIL_BYTES))
        last_line = handle.read().rstrip(b"\r\n").rsplit(b"\n", 1)[-1]
    return not last_line.endswith((b",", b'""'))
