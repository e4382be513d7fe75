"""Which items may be recommended, by their columns: conditions as data, as a service takes them, and SQL expressions for the command line.

A condition is {"column": "stock", "op": ">", "value": 0}; an item passes when it passes all of them. An empty cell passes no condition, and
no SQL expression that compares it; nor does one that is no number (NaN).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from sidrec.pipeline.errors import InputError

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPS = (*COMPARISONS, "in", "contains")
UNORDERED = ("=", "!=", "in")  # all that switches have
KEYS = {"column", "op", "value"}
GREATEST_INTEGER = 2**63
GROUPED = re.compile(r"""'[^']*'|"[^"]*"|\([^()]*\)""")  # in which SQL has commas
DECIMAL_COMMA = re.compile(r"\d,\d")


def allowed_by(items: pl.DataFrame, conditions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """bool [N]: the items that pass every condition. items: one row an item.

    ops: `=`, `!=`, `<`, `<=`, `>`, `>=`; `in`, a list of values; `contains`, a part of a text, or an entry of a column of lists. Dates and
    times are ISO texts. Raises InputError, naming the column, for a condition that does not fit the column's type.
    """
    allowed = np.ones(len(items), dtype=bool)
    for condition in conditions:
        if not isinstance(condition, Mapping) or set(condition) != KEYS:
            raise InputError(f"the condition {condition!r} must have exactly the keys column, op and value.")
        passes = items.select(_expression(items, **condition)).to_series()
        allowed &= passes.fill_null(False).to_numpy()
    return allowed


def allowed_by_sql(items: pl.DataFrame, where: str) -> np.ndarray:
    """bool [N]: the items of which a SQL expression of the columns is true, such as `category = 'shoes' and stock > 0`.

    Raises InputError, naming the columns, for what is no expression, names a column that there is not, is not true or false, or does not
    give one answer an item.
    """
    columns = ", ".join(items.columns)
    if DECIMAL_COMMA.search(GROUPED.sub("", where)):
        raise InputError(f"--where {where!r} has a number with a comma; write a decimal point, as in 12.5.")
    try:
        expression = pl.sql_expr(where)
        unknown = [name for name in expression.meta.root_names() if name not in items.columns]
        if unknown:
            raise InputError(
                f"--where {where!r}: there is no column {unknown[0]!r}; texts stand in single quotes, and the items' columns are {columns}."
            )
        verdict = items.lazy().with_columns(cs.float().fill_nan(None)).select(expression).collect().to_series()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        raise InputError(f"--where {where!r}: {reason}; the items' columns are {columns}.") from error
    if verdict.dtype != pl.Boolean:
        raise InputError(
            f"--where {where!r} is of type {verdict.dtype}, not true or false; compare a column with a value, such as title = 'Tea'; "
            f"the items' columns are {columns}."
        )
    of_columns = expression.meta.root_names() and ".explode()" not in str(expression)
    if not of_columns or len(verdict) != len(items):
        raise InputError(
            f"--where {where!r} is not one answer an item; compare columns with values; the items' columns are {columns}."
        )
    passes: np.ndarray = verdict.fill_null(False).to_numpy()
    return passes


def _expression(items: pl.DataFrame, column: Any, op: Any, value: Any) -> pl.Expr:
    """Of one condition."""
    if column not in items.columns:
        raise InputError(f"the items have no column {column!r}; they have {', '.join(items.columns)}.")
    if op not in OPS:
        raise InputError(f"column {column!r}: {op!r} is no op; there are {' '.join(OPS)}.")
    dtype, cells = items.schema[column], pl.col(column)
    if dtype.is_float():
        cells = cells.fill_nan(None)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        dtype, cells = pl.String(), cells.cast(pl.String)
    if op == "contains":
        if isinstance(dtype, pl.List | pl.Array):
            lists = cells.cast(pl.List(dtype.inner))
            return lists.list.contains(_as_type(column, dtype.inner, value))
        if dtype != pl.String:
            raise InputError(f"column {column!r} has type {dtype}; `contains` is of texts and lists.")
        return cells.str.contains(_as_type(column, dtype, value), literal=True)
    if dtype == pl.Boolean and op not in UNORDERED:
        raise InputError(f"column {column!r} is true or false and has no order; its ops are {' '.join(UNORDERED)}.")
    if op == "in":
        if not isinstance(value, list | tuple):
            raise InputError(f"column {column!r}: `in` takes a list of values, not {value!r}.")
        passes = [cells == pl.lit(_as_type(column, dtype, each)) for each in value]
        return pl.any_horizontal(passes) if passes else pl.col(column).is_null() & False
    expression: pl.Expr = COMPARISONS[op](cells, pl.lit(_as_type(column, dtype, value)))
    return expression


def _as_type(column: str, dtype: Any, value: Any) -> Any:
    """`value` as what is compared with a column of this type; raises InputError where it is of another."""
    if dtype == pl.Boolean:
        fits, wanted = isinstance(value, bool), "true or false"
    elif dtype.is_numeric():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits, wanted = is_number and math.isfinite(value) and abs(value) < GREATEST_INTEGER, "a number"
    elif dtype == pl.String:
        fits, wanted = isinstance(value, str), "a text"
    elif dtype.base_type() in (pl.Date, pl.Datetime):
        return _as_time(column, dtype, value)
    else:
        raise InputError(f"column {column!r} has type {dtype}, which no condition compares; name another column.")
    if not fits:
        raise InputError(f"column {column!r} has type {dtype}, so its value must be {wanted}, not {value!r}.")
    return value


def _as_time(column: str, dtype: Any, value: Any) -> date | datetime:
    try:
        if dtype == pl.Date:
            return date.fromisoformat(value)
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise InputError(
            f"column {column!r} has type {dtype}, so its value must be an ISO date, not {value!r}."
        ) from None
    if (time.tzinfo is None) != (dtype.time_zone is None):
        needed = "without an offset" if dtype.time_zone is None else "with an offset, such as 2024-05-01T09:30:00+00:00"
        raise InputError(f"column {column!r} has type {dtype}, so its value must be a time {needed}, not {value!r}.")
    return time
