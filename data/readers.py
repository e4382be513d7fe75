"""What every reader gives, a `RawLog`, and the checks that all of them share.

The readers: `sidrec.data.movielens`, `sidrec.data.amazon`, `sidrec.data.minionerec`, `sidrec.data.own`, and
`sidrec.data.synthetic` for the demo. Every rating or review
counts as an interaction, whatever its stars. Rows in error messages count from 1 and leave a header out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sidrec.data.tables import collect, is_csv, read_table, require_file
from sidrec.data.timestamps import as_integers
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_text

ROW = " row"  # a name that no source gives a column


@dataclass(frozen=True)
class RawLog:
    """What was read, before any filter.

    interactions: user_id, item_id (categoricals, 4 bytes each), timestamp (int64), in input order, then any other column of the source
    (`split` where the publisher made one). items: item_id (strings, unique), title (never empty), then any other column of the
    source. notes: sentences about what was found, for the summary. repeats: rows that were left out since an earlier one says the same.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    notes: tuple[str, ...] = ()
    repeats: int = 0


def checked(
    log_path: Path, log: pl.LazyFrame, items_path: Path, items: pl.DataFrame, unit: str, notes: tuple[str, ...] = ()
) -> RawLog:
    """A RawLog of these two tables: every id and time present, item ids unique, every item known, an empty title is the id.

    Rows of the catalogue that repeat an earlier one in all columns are left out, and a note counts them. unit: what a row is called, "row"
    or "line". Raises InputError naming the first one that does not fit.
    """
    items = _with_text_ids(items_path, items, unit)
    interactions = _coded(log_path, log, unit)
    rows, items = len(items), _each_once(items_path, items, unit)
    if rows > len(items):
        equal = f"{unit}s that repeat an earlier one in all columns are left out"
        notes = (*notes, f"{items_path}: {rows - len(items):,} {equal}.")
    _refuse_unknown_items(log_path, interactions, items_path, items, unit)
    interactions = interactions.with_columns(as_integers(log_path, interactions["timestamp"], unit))
    title = pl.col("title").cast(pl.String)
    blank = title.is_null() | (title.str.strip_chars() == "")
    items = items.with_columns(title=pl.when(blank).then("item_id").otherwise(title))
    return RawLog(interactions, items.select("item_id", "title", pl.exclude("item_id", "title")), notes)


def read_log(path: Path) -> pl.DataFrame:
    """A log alone, CSV or Parquet: user_id and item_id (categoricals), timestamp (int64), in input order, each row once.

    Raises InputError for a file or a row that does not fit.
    """
    return log_rows(path).unique(["user_id", "item_id", "timestamp"], keep="first", maintain_order=True)


def log_rows(
    path: Path,
    others: Collection[str] = (),
    separator: str | None = None,
    encoding: str | None = None,
    words: Collection[str] = (),
) -> pl.DataFrame:
    """`read_log` with every row. others: further columns that are read where the file has them. separator, encoding, words: as of
    `read_table`."""
    names = ["user_id", "item_id", "timestamp"]
    table = read_table(path, names, separator, encoding, words)
    further = [name for name in table.collect_schema() if name in others and name not in names]
    log = _coded(path, table.select(*names, *further), "row")
    return log.with_columns(as_integers(path, log["timestamp"], "row"))


def read_user_ids(path: Path) -> list[str]:
    """The column user_id of a CSV or Parquet file, or, in a file of another kind, one id a line; each once, in input order.

    Raises InputError for a file without ids.
    """
    if (is_csv(path) and not path.name.lower().endswith(".txt")) or path.suffix.lower() == ".parquet":
        table = read_table(path, ["user_id"], separator=None)
        ids = collect(path, table.select(text_ids(path, "user_id", table.collect_schema()["user_id"])))["user_id"]
        refuse_blank(path, ids, "row")
        return ids.unique(maintain_order=True).to_list()
    require_file(path)
    text = read_text(path).lstrip("\ufeff")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(
            f"{path} line {line} holds a zero byte, so it is no list of ids in UTF-8; write one user_id a line."
        )
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} has only empty lines; write one user_id a line.")
    return list(dict.fromkeys(lines))


def _coded(path: Path, log: pl.LazyFrame, unit: str) -> pl.DataFrame:
    """The log with categorical ids, read batch by batch: no more than a batch of the ids is ever held as strings."""
    schema = log.collect_schema()
    ids = [text_ids(path, name, schema[name]).cast(pl.Categorical) for name in ("user_id", "item_id")]
    others = [name for name in schema if name not in ("user_id", "item_id", "timestamp")]
    table = collect(path, log.select(*ids, "timestamp", *others)).rechunk()
    for name in ("user_id", "item_id"):
        refuse_blank(path, table[name], unit)
    return table


def _with_text_ids(path: Path, items: pl.DataFrame, unit: str) -> pl.DataFrame:
    if items.schema["title"].is_nested() or items.schema["title"] == pl.Binary:
        raise InputError(f"{path}: column 'title' has type {items.schema['title']}; titles must be strings.")
    items = items.with_columns(text_ids(path, "item_id", items.schema["item_id"]))
    refuse_blank(path, items["item_id"], unit)
    return items


def text_ids(path: Path, name: str, dtype: pl.DataType) -> pl.Expr:
    """Ids as strings; of decimal numbers, whole ones without the decimals that a program gives a column with gaps."""
    if dtype.is_nested() or dtype in (pl.Boolean, pl.Binary, pl.Object):
        raise InputError(f"{path}: column {name!r} has type {dtype}; ids must be numbers or strings.")
    text = pl.col(name).cast(pl.String)
    return text.str.replace(r"\.0$", "").replace("NaN", None) if dtype.is_float() else text


def refuse_blank(path: Path, ids: pl.Series, unit: str) -> None:
    """Raise InputError, naming the first, where an id is empty."""
    if not _is_blank(ids.unique()).any():
        return
    row = int(_is_blank(ids).arg_true()[0])
    raise InputError(f"{path} {unit} {row + 1} has an empty {ids.name}; fill it in or remove the {unit}.")


def _is_blank(ids: pl.Series) -> pl.Series:
    return ids.is_null() | (ids.cast(pl.String).str.strip_chars() == "").fill_null(True)


def _each_once(path: Path, items: pl.DataFrame, unit: str) -> pl.DataFrame:
    """The items without the rows that equal an earlier one; raises InputError for two that share an id and differ."""
    repeated = items.with_row_index(ROW).filter(pl.col("item_id").is_duplicated())
    if repeated.is_empty():
        return items
    different = repeated.unique(items.columns, keep="first", maintain_order=True)
    clash = different.filter(pl.col("item_id").is_duplicated())
    if not clash.is_empty():
        name = clash["item_id"][0]
        first, second = clash.filter(pl.col("item_id") == name)[ROW][:2]
        raise InputError(
            f"{path}: item_id {name!r} is in {unit}s {first + 1} and {second + 1}, which differ; keep one of them."
        )
    later = repeated[ROW].filter(~repeated[ROW].is_in(different[ROW].implode()))
    return items.with_row_index(ROW).filter(~pl.col(ROW).is_in(later.implode())).drop(ROW)


def _refuse_unknown_items(log_path: Path, log: pl.DataFrame, items_path: Path, items: pl.DataFrame, unit: str) -> None:
    in_log = log["item_id"].unique().cast(pl.String)
    unknown_ids = in_log.filter(~in_log.is_in(items["item_id"].implode()))
    if unknown_ids.is_empty():
        return
    unknown = log["item_id"].cast(pl.String).is_in(unknown_ids.implode()).arg_true()
    row = int(unknown[0])
    user, item = log["user_id"][row], log["item_id"][row]
    near = items["item_id"].filter(_alike(items["item_id"]) == _alike(pl.Series([item]))[0])
    if len(near):
        cure = f"it has {near[0]!r}, so write the ids in one way"
    elif len(unknown) == len(log):
        cure = (
            f"nor is any other one of the log, so write the ids in one way ({items_path} has {items['item_id'][0]!r})"
        )
    else:
        cure = f"add the item or remove the {unit}"
    raise InputError(
        f"{log_path} {unit} {row + 1}: user {user!r} took item {item!r}, which is not in {items_path} "
        f"({len(unknown)} such {unit}{'s' if len(unknown) > 1 else ''}); {cure}."
    )


def _alike(ids: pl.Series) -> pl.Series:
    """Ids without what programs change in them: white space around them, letter case, zeros before and `.0` behind a number."""
    return ids.str.strip_chars().str.to_lowercase().str.replace(r"^0+(\d)", "$1").str.replace(r"^(\d+)\.0$", "$1")
