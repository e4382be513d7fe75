"""CSV and Parquet files with the columns that a reader needs, and one sentence when they are not there."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path

import polars as pl

from sidrec.data.dialect import Dialect, decoded, dialect_of, is_packed, listed, shown
from sidrec.pipeline.errors import InputError

TAIL_BYTES = 1 << 16
CSV_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
NUMBERS_FROM = 0.9  # share of a column's cells that are not empty, from which on the others are held to be mistakes
DECIMAL_COMMA = r"^\s*(?:[+-]?\d+(?:,\d+)?)?\s*$"  # or nothing


def read_table(
    path: Path,
    required: list[str],
    separator: str | None = ",",
    encoding: str | None = None,
    words: Collection[str] = (),
) -> pl.LazyFrame:
    """A CSV or Parquet file with at least the `required` columns; in a CSV these, and the columns `words`, are read as strings.

    separator: of a CSV's columns, None for what fits the first line; where it is no comma, columns of numbers such as 12,5 are read as
    numbers. encoding: of a CSV, None for UTF-8. A CSV is read and checked whole, packed with gzip or not; of a Parquet file only the
    schema is, so that collecting it can be streamed. Raises InputError when the file is missing, empty, of another kind, cut short, or
    without a required column.
    """
    require_file(path)
    if is_csv(path):
        dialect = dialect_of(path, required, separator, encoding)
        table = _read_csv(path, {*required, *words}, dialect)
    elif path.suffix.lower() == ".parquet":
        table = _scan_parquet(path, required)
    else:
        raise InputError(f"{path} is neither .csv nor .parquet; convert it to one of them.")
    rows = table.select(pl.len()).collect().item()
    if not rows:
        raise InputError(f"{path} has a header but no rows; export it again.")
    if is_csv(path) and _last_line_is_short(path, table, dialect):
        raise InputError(
            f"{path} row {rows}, the last one, has fewer than {len(dialect.names)} fields; the file looks truncated."
        )
    return table


def is_csv(path: Path) -> bool:
    """Whether the file's name says that it is a CSV, .tsv and .CSV.GZ included."""
    return path.name.lower().endswith(CSV_ENDINGS)


def collect(path: Path, table: pl.LazyFrame) -> pl.DataFrame:
    """Run a query on `read_table(path, …)` batch by batch; raises InputError when the file turns out to be damaged."""
    try:
        return table.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error


def texts_among_numbers(path: Path, table: pl.LazyFrame, ids: Collection[str]) -> list[str]:
    """A warning for each column of a CSV that is one of texts, while NUMBERS_FROM of its cells that are not empty are numbers.

    table: as `read_table` gives it. ids: columns that are texts whatever they hold.
    """
    if not is_csv(path):
        return []
    names = [name for name, dtype in table.collect_schema().items() if dtype == pl.String and name not in ids]
    warnings = []
    for cells in table.select(names).collect():
        text = cells.str.strip_chars()
        is_number = text.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False).is_not_null()
        is_filled = (text != "").fill_null(False)
        odd, n_filled = is_filled & ~is_number, int(is_filled.sum())
        n_odd = int(odd.sum())
        if n_odd and n_filled - n_odd >= NUMBERS_FROM * n_filled:
            row = int(odd.arg_true()[0])
            warnings.append(
                f"Warning: {path}: column {cells.name!r} is one of texts, since not all of its {n_filled:,} cells are numbers ({n_odd:,} "
                f"{'is' if n_odd == 1 else 'are'} none, the first in row {row + 1}: {cells[row]!r}); correct or empty what is no number."
            )
    return warnings


def require_file(path: Path) -> None:
    """Raise InputError unless `path` is a file with something in it."""
    if path.is_dir():
        raise InputError(f"{path} is a folder where a file is wanted; name a file in it.")
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file; check the path.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; download or export it again.")


def _read_csv(path: Path, strings: Collection[str], dialect: Dialect) -> pl.LazyFrame:
    source: Path | io.BytesIO = path
    if not dialect.is_utf8:
        source = io.BytesIO(decoded(path, dialect.encoding).encode("utf-8"))
    try:
        table = pl.read_csv(
            source,
            glob=False,
            separator=dialect.separator,
            quote_char=dialect.quote,
            schema_overrides=dict.fromkeys((name for name in dialect.names if name.strip() in strings), pl.String),
            infer_schema_length=None,
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error, dialect) from error
    table = table.rename(lambda name: name.strip())
    return (table if dialect.separator == "," else _with_decimal_commas(table)).lazy()


def _with_decimal_commas(table: pl.DataFrame) -> pl.DataFrame:
    """Columns of strings that are all numbers, one at least with a decimal comma, as numbers."""
    names = [
        name
        for name in table.select(pl.col(pl.String)).columns
        if table[name].str.contains(DECIMAL_COMMA).all() and table[name].str.contains(",", literal=True).any()
    ]
    return table.with_columns(
        pl.col(names).str.strip_chars().str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    )


def _scan_parquet(path: Path, required: list[str]) -> pl.LazyFrame:
    table = pl.scan_parquet(path, glob=False)
    try:
        names = table.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    missing = next((name for name in required if name not in names), None)
    if missing is not None:
        raise InputError(f"{path} has no column {missing!r} (found: {listed(names)}); rename or add it.")
    return table


def _unreadable(path: Path, error: Exception, dialect: Dialect | None = None) -> InputError:
    kind = "parquet" if dialect is None else "csv"
    reason = " ".join(str(error).split("\n")[0].split())
    where = ""
    if dialect is not None:
        try:
            text = decoded(path, dialect.encoding)
            where = _where_fields_differ(text, dialect) or _where_quotes_are_odd(text, dialect)
        except InputError as not_text:
            return not_text
    return InputError(f"{path} cannot be read as {kind}: {reason}{where}; repair or export it again.")


def _where_fields_differ(text: str, dialect: Dialect) -> str:
    """The first row of a CSV with another number of fields than the header has, in words; empty when there is none."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=dialect.separator, quotechar=dialect.quote)
    try:
        odd = next(((row, len(fields)) for row, fields in enumerate(rows) if len(fields) != len(dialect.names)), None)
    except csv.Error:
        return ""
    if odd is None:
        return ""
    separated = f"fields separated by {shown(dialect.separator)}"
    return f" (row {odd[0]} has {odd[1]} {separated}, the header has {len(dialect.names)})"


def _where_quotes_are_odd(text: str, dialect: Dialect) -> str:
    """The first line with an odd number of quotation marks, in words; empty when there is none."""
    odd = next((line for line, words in enumerate(text.splitlines(), 1) if words.count(dialect.quote) % 2), None)
    if odd is None:
        return ""
    return f" (line {odd} has an odd number of quotation marks; where one stands in a field, quote the field and double the mark)"


def _last_line_is_short(path: Path, table: pl.LazyFrame, dialect: Dialect) -> bool:
    """Whether the file ends inside a row: Polars fills such a row with nulls, which look like empty fields."""
    last_row = table.tail(1).collect()
    if last_row.width == 1 or last_row[-1, -1] is not None:
        return False
    last_line = _tail(path, dialect).rstrip("\r\n").rsplit("\n", 1)[-1]
    return not last_line.endswith((dialect.separator, 2 * dialect.quote))


def _tail(path: Path, dialect: Dialect) -> str:
    if not dialect.is_utf8 or is_packed(path):
        return decoded(path, dialect.encoding)
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return handle.read().decode("utf-8", errors="replace")
