"""The category of every item, where the catalogue has a column of them."""

from __future__ import annotations

import polars as pl

GENERAL_FIRST = ("genre", "genres")  # "Comedy, Romance": alike in rank, the first is the leading one
SPECIFIC_LAST = (
    "category",
    "categories",
    "main_category",
)  # "Beauty > Nails > Nail Polish": the last is the most specific


def categories_of(items: pl.DataFrame) -> list[str] | None:
    """One category an item ("" where it has none), from the first of `genre(s)`, `category`, `categories`, `main_category` that is there.

    A value is a list, or text whose parts are separated by ">", "|" or ", ". Of genres the first part counts, of categories the last.
    None when there is no such column, or fewer than two different categories in it.
    """
    for name in (*GENERAL_FIRST, *SPECIFIC_LAST):
        if name in items.columns:
            chosen = [_one(value, 0 if name in GENERAL_FIRST else -1) for value in items[name].to_list()]
            return chosen if len(set(chosen) - {""}) > 1 else None
    return None


def _one(value: object, place: int) -> str:
    if isinstance(value, list):
        parts = [str(part).strip() for part in value if part is not None]
    else:
        text = "" if value is None else str(value)
        separator = next((sign for sign in (">", "|", ", ") if sign in text), None)
        parts = [part.strip() for part in (text.split(separator) if separator else [text])]
    parts = [part for part in parts if part]
    return parts[place] if parts else ""
