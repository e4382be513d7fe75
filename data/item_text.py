"""Which columns of the catalogue join an item's text, and how."""

from __future__ import annotations

import polars as pl

ID_NAME = r"(?i:^|[\W_])(?i:ids?|uuid|guid|sku)$|[a-z]I[dD]$"  # brand_id, SKU, productId
ADDRESSES = r"(?i)^(?:(?:https?://|www\.)\S+\s*)+$"
IMAGES = r"(?i)^\S+\.(?:jpe?g|png|gif|webp|svg)$"
VECTORS = r"^\[[\d\s,eE+-]*\.[\d\s,.eE+-]*\]$"  # decimal numbers in brackets
MANY = 50  # numbers that are all different: of fewer items, chance
WHOLE_BELOW = 2.0**53  # below it a decimal number that is whole is written without decimals
LISTED = (pl.String, pl.Categorical, pl.Enum, pl.Boolean)


def joined_columns(items: pl.DataFrame) -> tuple[dict[str, pl.Expr], dict[str, str]]:
    """The columns beside item_id and title that join the text, each with its words (null for none), and those that do not, with why.

    Strings, categories, numbers, switches, days, and lists of the first three join; an id, an address, a picture's file, and a number that
    no two of 50 items or more share do not: they say nothing that items have in common.
    """
    joined: dict[str, pl.Expr] = {}
    left_out: dict[str, str] = {}
    for name, dtype in items.schema.items():
        if name in ("item_id", "title"):
            continue
        words = words_of(name, dtype)
        if words is None:
            left_out[name] = f"type {dtype}" if not dtype.is_nested() else "nested"
            continue
        reason = silent(name, dtype, items.select(words).to_series())
        if reason is None:
            joined[name] = words
        else:
            left_out[name] = reason
    return joined, left_out


def with_text(items: pl.DataFrame, joined: dict[str, pl.Expr]) -> pl.DataFrame:
    """The items numbered from 0, with `text`: the title, then `column: words` of the columns joined, as `joined_columns` gives them.

    items: item_id, title and any other column of the source; each is kept, one that is called `text` as `given_text`. Runs of white space
    in title and text become one space.
    """
    table = items.with_columns(title=one_line(pl.col("title")), item_index=pl.int_range(pl.len(), dtype=pl.Int64))
    parts = [pl.lit(f"{name}: ") + words for name, words in joined.items()]
    if "text" in table.columns:
        table = table.with_columns(given_text=pl.col("text"))
    title = pl.col("title").str.strip_chars_end(".")
    table = table.with_columns(text=pl.concat_str([title, *parts], separator=". ", ignore_nulls=True))
    first = ["item_id", "item_index", "title", "text"]
    return table.select(*first, pl.exclude(first))


def words_of(name: str, dtype: pl.DataType) -> pl.Expr | None:
    """A column as words on one line, null where it is empty; None for a type that has no words."""
    column = pl.col(name)
    if isinstance(dtype, pl.Array):
        column, dtype = column.arr.to_list(), pl.List(dtype.inner)
    if isinstance(dtype, pl.List):
        inner = dtype.inner
        if inner not in LISTED and not inner.is_integer():
            return None
        words = column.cast(pl.List(pl.String)).list.drop_nulls().list.join(", ")
    elif dtype.is_float():
        whole = (column == column.floor()) & (column.abs() < WHOLE_BELOW)
        text = (
            pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(column.cast(pl.String))
        )
        words = pl.when(column.is_finite()).then(text)
    elif dtype in (pl.Date, pl.Datetime):
        words = column.dt.date().cast(pl.String)
    elif dtype.is_numeric() or dtype in LISTED:
        words = column.cast(pl.String)
    else:
        return None
    words = one_line(words).str.strip_chars_end(".")
    return pl.when(words != "").then(words)


def silent(name: str, dtype: pl.DataType, words: pl.Series) -> str | None:
    """Why a column says nothing that items have in common; None where it may."""
    values = words.drop_nulls()
    if not name.strip():
        return "no name"
    if values.is_empty():
        return "empty"
    if values.str.contains(ADDRESSES).all():
        return "web addresses"
    if values.str.contains(IMAGES).all():
        return "files of pictures"
    if values.str.contains(VECTORS).all():
        return "lists of decimal numbers"
    is_different = values.n_unique() == len(values)
    has_id_name = pl.Series([name]).str.contains(ID_NAME).item()
    if is_different and has_id_name:
        return "ids"
    if is_different and dtype.is_numeric() and len(values) >= MANY:
        return "numbers, all different"
    return None


def one_line(text: pl.Expr) -> pl.Expr:
    """Text with runs of white space as one space."""
    return text.str.replace_all(r"\s+", " ").str.strip_chars()
