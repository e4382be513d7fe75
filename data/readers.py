"""Readers: from files on disk to a `RawLog`, checked row by row.

MovieLens-100K and -1M in their publisher's layout, and your own CSV or Parquet. Every rating counts as an interaction, whatever its
value; repeated (user, item) pairs are kept. Rows in error messages count from 1 and leave a header out.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data.stage import InputError

# u.item's 19 flags in the publisher's order (u.genre)
ML_100K_GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)

ISO_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f")
TAIL_BYTES = 1 << 16
QUOTED_CHARACTERS = 80


@dataclass(frozen=True)
class RawLog:
    """What was read, before any filter.

    interactions: user_id, item_id (strings), timestamp (int64), in input order. items: item_id (unique), title (never empty), then
    any other column of the source.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame


def read_ml_100k(folder: Path) -> RawLog:
    """MovieLens-100K from `u.data` and `u.item`: columns title, genres ("Animation, Comedy"), year ("1995"). Time in Unix seconds.

    Raises InputError for a missing, truncated or differently delimited file, naming the line.
    """
    log_path, items_path = folder / "u.data", folder / "u.item"
    log = _read_delimited(log_path, "\t", ["user_id", "item_id", "rating", "timestamp"], "utf-8")
    columns = ["item_id", "title", "release_date", "video_date", "url", *ML_100K_GENRES]
    items = _read_delimited(items_path, "|", columns, "latin-1")
    genres = pl.concat_list(
        pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in ML_100K_GENRES if genre != "unknown"
    ).list.drop_nulls()
    items = items.select(
        "item_id",
        "title",
        genres=genres.list.join(", "),
        year=pl.coalesce(_year_in_title(), pl.col("release_date").str.extract(r"(\d{4})$")),
    )
    return _checked(log_path, log, items_path, items, "line")


def read_ml_1m(folder: Path) -> RawLog:
    """MovieLens-1M from `ratings.dat` and `movies.dat`: columns title, genres ("Animation, Comedy"), year. Time in Unix seconds.

    Raises InputError for a missing, truncated or differently delimited file, naming the line.
    """
    log_path, items_path = folder / "ratings.dat", folder / "movies.dat"
    log = _read_delimited(log_path, "::", ["user_id", "item_id", "rating", "timestamp"], "utf-8")
    items = _read_delimited(items_path, "::", ["item_id", "title", "genres"], "latin-1")
    items = items.with_columns(pl.col("genres").str.replace_all("|", ", ", literal=True), year=_year_in_title())
    return _checked(log_path, log, items_path, items, "line")


def read_own(interactions_file: Path, items_file: Path) -> RawLog:
    """Your own log (user_id, item_id, timestamp) and catalogue (item_id, title, anything else), each CSV or Parquet.

    Ids of any type become strings. Timestamps: integers are kept as they are; floats, datetimes and ISO dates (without an offset:
    UTC) become seconds, or microseconds when some lie between two seconds, so that the order is kept. An empty title becomes the
    item's id. Raises InputError for anything that does not fit, naming the row.
    """
    log = _read_table(interactions_file, ["user_id", "item_id", "timestamp"])
    items = _read_table(items_file, ["item_id", "title"])
    if "item_index" in items.columns:
        raise InputError(f"{items_file}: the column 'item_index' is one that this command writes; rename yours.")
    return _checked(interactions_file, log, items_file, items, "row")


def _year_in_title() -> pl.Expr:
    return pl.col("title").str.extract(r"\((\d{4})\)\s*$")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file; check the path.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; download or export it again.")


def _read_delimited(path: Path, separator: str, names: list[str], encoding: str) -> pl.DataFrame:
    """Every line split at `separator`, which may have several characters; all columns are strings."""
    _require_file(path)
    try:
        text = path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {encoding} text (byte {error.start}); download it again.") from error
    lines = pl.Series("line", text.replace("\r\n", "\n").rstrip("\n").split("\n"))
    fields = lines.str.split(separator)
    wrong = (fields.list.len() != len(names)).arg_true()
    if len(wrong):
        row = int(wrong[0])
        found = f"has {fields[row].len()} fields where {len(names)} separated by {separator!r} were expected: {_quote(lines[row])}"
        if row == len(lines) - 1 and row > 0:
            raise InputError(
                f"{path} line {row + 1}, the last one, {found}; the file looks truncated, so download it again."
            )
        raise InputError(f"{path} line {row + 1} {found}; check that this is the publisher's own file.")
    return fields.list.to_struct(fields=names).struct.unnest()


def _read_table(path: Path, required: list[str]) -> pl.DataFrame:
    """A CSV or Parquet file with at least the `required` columns; in a CSV these are read as strings."""
    _require_file(path)
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path} is neither .csv nor .parquet; convert it to one of them.")
    try:
        if path.suffix == ".parquet":
            table = pl.read_parquet(path)
        else:
            as_text = dict.fromkeys(required, pl.String)
            table = pl.read_csv(path, schema_overrides=as_text, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).split("\n")[0].split()) + (
            _where_fields_differ(path) if path.suffix == ".csv" else ""
        )
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {reason}; repair or export it again.") from error
    missing = [name for name in required if name not in table.columns]
    if missing and path.suffix == ".csv" and table.width == 1:
        first_line = _quote(_decoded_lines(path)[0])
        raise InputError(
            f"{path}: expected columns separated by ',' but the first line is {first_line}; export it with commas."
        )
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r} (found: {', '.join(table.columns)}); rename or add it.")
    if table.is_empty():
        raise InputError(f"{path} has a header but no rows; export it again.")
    if path.suffix == ".csv" and _last_line_is_short(path, table):
        raise InputError(
            f"{path} row {len(table)}, the last one, has fewer than {table.width} fields; the file looks truncated."
        )
    return table


def _decoded_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()


def _where_fields_differ(path: Path) -> str:
    """The first row of a CSV with another number of fields than the header has, in words; empty when there is none."""
    header, *rows = csv.reader(_decoded_lines(path))
    odd = next((row for row, fields in enumerate(rows, 1) if len(fields) != len(header)), None)
    return (
        ""
        if odd is None
        else f" (row {odd} has {len(rows[odd - 1])} fields separated by ',', the header has {len(header)})"
    )


def _last_line_is_short(path: Path, table: pl.DataFrame) -> bool:
    """Whether the file ends inside a row: Polars fills such a row with nulls, which look like empty fields."""
    if table.width == 1 or table[-1, -1] is not None:
        return False
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - TAIL_BYTES))
        last_line = handle.read().rstrip(b"\r\n").rsplit(b"\n", 1)[-1]
    return not last_line.endswith((b",", b'""'))


def _checked(log_path: Path, log: pl.DataFrame, items_path: Path, items: pl.DataFrame, unit: str) -> RawLog:
    """Ids as strings, times as integers; every id and time present, item ids unique, every item known."""
    items = _with_text_ids(items_path, items, ["item_id"], unit)
    log = _with_text_ids(log_path, log.select("user_id", "item_id", "timestamp"), ["user_id", "item_id"], unit)
    _refuse_duplicates(items_path, items, unit)
    _refuse_unknown_items(log_path, log, items_path, items, unit)
    log = log.with_columns(_timestamps(log_path, log["timestamp"], unit))
    title = pl.col("title").cast(pl.String)
    blank = title.is_null() | (title.str.strip_chars() == "")
    items = items.with_columns(title=pl.when(blank).then("item_id").otherwise(title))
    return RawLog(log, items.select("item_id", "title", pl.exclude("item_id", "title")))


def _with_text_ids(path: Path, table: pl.DataFrame, names: list[str], unit: str) -> pl.DataFrame:
    for name in names:
        try:
            ids = table[name].cast(pl.String)
        except pl.exceptions.PolarsError as error:
            raise InputError(
                f"{path}: column {name!r} has type {table[name].dtype}; ids must be numbers or strings."
            ) from error
        empty = (ids.is_null() | (ids.str.strip_chars() == "")).arg_true()
        if len(empty):
            raise InputError(f"{path} {unit} {empty[0] + 1} has an empty {name}; fill it in or remove the {unit}.")
        table = table.with_columns(ids)
    return table


def _refuse_duplicates(path: Path, items: pl.DataFrame, unit: str) -> None:
    repeated = items["item_id"].is_duplicated()
    if repeated.any():
        name = items["item_id"].filter(repeated)[0]
        first, second = (items["item_id"] == name).arg_true()[:2]
        raise InputError(f"{path}: item_id {name!r} is in {unit}s {first + 1} and {second + 1}; keep one of them.")


def _refuse_unknown_items(log_path: Path, log: pl.DataFrame, items_path: Path, items: pl.DataFrame, unit: str) -> None:
    unknown = (~log["item_id"].is_in(items["item_id"].implode())).arg_true()
    if len(unknown):
        row = int(unknown[0])
        user, item = log["user_id"][row], log["item_id"][row]
        raise InputError(
            f"{log_path} {unit} {row + 1}: user {user!r} took item {item!r}, which is not in {items_path} "
            f"({len(unknown)} such {unit}{'s' if len(unknown) > 1 else ''}); add the item or remove the {unit}."
        )


def _timestamps(path: Path, times: pl.Series, unit: str) -> pl.Series:
    """int64 times; what `read_own` says about types. Raises InputError naming the first row that does not parse."""
    if times.dtype.base_type() in (pl.Categorical, pl.Enum):
        times = times.cast(pl.String)
    if not (times.dtype.is_numeric() or times.dtype.base_type() in (pl.String, pl.Date, pl.Datetime)):
        raise InputError(f"{path}: the column 'timestamp' has type {times.dtype}; it must hold numbers or dates.")
    if times.dtype == pl.String:
        times = times.str.strip_chars()
        empty = times.is_null() | (times == "")
    else:
        empty = times.is_null() | (
            times.is_nan() if times.dtype.is_float() else pl.repeat(False, len(times), eager=True)
        )
    if empty.any():
        raise InputError(
            f"{path} {unit} {empty.arg_true()[0] + 1} has an empty timestamp; fill it in or remove the {unit}."
        )
    whole = times.cast(pl.Int64, strict=False) if times.dtype.is_integer() or times.dtype == pl.String else None
    if whole is not None and not whole.has_nulls():
        return whole.rename("timestamp")
    microseconds = _microseconds(times)
    if microseconds.has_nulls():
        row = int(microseconds.is_null().arg_true()[0])
        raise InputError(
            f"{path} {unit} {row + 1}: the timestamp {times[row]!r} is neither a number nor an ISO date like the others; "
            f"write every one as 1700000000 or as 2023-11-14 22:13:20."
        )
    seconds_only = bool((microseconds % 1_000_000 == 0).all())
    return (microseconds // 1_000_000 if seconds_only else microseconds).rename("timestamp")


def _microseconds(times: pl.Series) -> pl.Series:
    """Times as microseconds since 1970, null where they do not parse; the first value decides between numbers and ISO dates."""
    if times.dtype.is_temporal():
        return times.dt.epoch("us")
    numbers = times.cast(pl.Float64, strict=False)
    if times.dtype != pl.String or numbers[0] is not None:
        return (numbers * 1_000_000).round().cast(pl.Int64, strict=False)
    text = times.str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
    parsed = [text.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us") for form in ISO_FORMATS]
    for form in ISO_FORMATS[1:]:
        with_offset = text.str.to_datetime(f"{form}%#z", strict=False, time_unit="us", time_zone="UTC")
        parsed.append(with_offset.dt.epoch("us"))
    return pl.select(pl.coalesce(parsed)).to_series()


def _quote(line: str) -> str:
    return repr(line if len(line) <= QUOTED_CHARACTERS else line[:QUOTED_CHARACTERS] + "…")
