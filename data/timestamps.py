"""Times of any type as integers that keep their order, and the unit that they are in."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from sidrec.pipeline.errors import InputError

ISO_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f")
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}  # ticks of each in a second
SECONDS_PER_DAY = 86_400
EARLIEST, LATEST = 315_532_800, 4_102_444_800  # 1980 and 2100, in seconds: no number lies between them in two units
NAMED_ROWS = 3


def as_integers(path: Path, times: pl.Series, unit: str) -> pl.Series:
    """int64 times: integers are kept as they are; floats, datetimes and ISO dates (without an offset: UTC) become seconds, or
    microseconds when some lie between two seconds.

    unit: what a row of `path` is called, "row" or "line". Raises InputError naming the first row that does not parse, and for numbers
    in two units.
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
        _refuse_two_units(path, whole, unit)
        return whole.rename("timestamp")
    if times.dtype.is_numeric() or times.dtype == pl.String:
        numbers = times.cast(pl.Float64, strict=False)
        _refuse_two_units(path, numbers, unit)
        whole = numbers.cast(pl.Int64, strict=False)
        if not whole.has_nulls() and (numbers == numbers.floor()).all():  # nanoseconds as decimal numbers, too
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


def unit_of(time: float) -> str | None:
    """The unit, a key of UNITS, in which a time since 1970 lies between 1980 and 2100; None where there is none, as for a position."""
    return next((name for name, ticks in UNITS.items() if EARLIEST <= time / ticks < LATEST), None)


def as_day(time: int, unit: str) -> str:
    """`2023-11-14` for a time since 1970 in this unit; before the year 1 and after 9999, which have no such form, the number itself."""
    try:
        return datetime.fromtimestamp(time // UNITS[unit], UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{time:,}"


def _refuse_two_units(path: Path, numbers: pl.Series, unit: str) -> None:
    """numbers: times as they are in the file. Raises InputError when some lie between 1980 and 2100 in one unit, some in another."""
    lies_in = {name: (numbers >= EARLIEST * ticks) & (numbers < LATEST * ticks) for name, ticks in UNITS.items()}
    first, second, *_ = sorted(lies_in, key=lambda name: -lies_in[name].sum())
    if not lies_in[second].any():
        return
    many, few = lies_in[first].arg_true(), lies_in[second].arg_true()
    named = ", ".join(f"{row + 1:,}" for row in few[:NAMED_ROWS])
    more = f" and {len(few) - NAMED_ROWS:,} more" if len(few) > NAMED_ROWS else ""
    raise InputError(
        f"{path} has times in {first} ({unit} {many[0] + 1:,}: {numbers[int(many[0])]!r}) and in {second} "
        f"({unit}{'s' if len(few) > 1 else ''} {named}{more}: {numbers[int(few[0])]!r}); write every one in {first}."
    )


def _microseconds(times: pl.Series) -> pl.Series:
    """Times as microseconds since 1970, null where they do not parse; the first value decides between numbers and ISO dates."""
    if times.dtype.is_temporal():
        return times.dt.epoch("us")
    numbers = times.cast(pl.Float64, strict=False)
    if times.dtype != pl.String or numbers[0] is not None:
        return (numbers * 1_000_000).round().cast(pl.Int64, strict=False)
    text = times.str.replace(r"(?: ?UTC|Z)$", "+00:00").str.replace("T", " ", literal=True)
    parsed = [text.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us") for form in ISO_FORMATS]
    for form in ISO_FORMATS[1:]:
        with_offset = text.str.to_datetime(f"{form}%#z", strict=False, time_unit="us", time_zone="UTC")
        parsed.append(with_offset.dt.epoch("us"))
    return pl.select(pl.coalesce(parsed)).to_series()
