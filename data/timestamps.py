"""Times of any type as integers that keep their order."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sidrec.pipeline.errors import InputError

ISO_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f")


def as_integers(path: Path, times: pl.Series, unit: str) -> pl.Series:
    """int64 times: integers are kept as they are; floats, datetimes and ISO dates (without an offset: UTC) become seconds, or
    microseconds when some lie between two seconds.

    unit: what a row of `path` is called, "row" or "line". Raises InputError naming the first row that does not parse.
    """
    if times.dtype.base_type() in (pl.Categorical, pl.Enum):
        times = times.cast(pl.String)
    if not (times.dtype.is_numeric() or times.dtype.base_type() in (pl.String, pl.Date, pl.Datetime)):
        raise InputError(f"{path}: the column 'timestamp' has type {times.dtype}; it must hold numbers or dates.")
    if times.dtype == pl.String:
        times = times.str.strip_chars()
        empty = times.is_null() | (times == "")
    elif times.dtype.is_float():
        empty = times.is_null() | times.is_nan()
    else:
        empty = times.is_null()
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
