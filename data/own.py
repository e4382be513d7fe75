"""Your own data: a log and a catalogue, each a CSV or a Parquet file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from sidrec.data.codes import codes
from sidrec.data.readers import RawLog, checked
from sidrec.data.repeats import first_of_equals
from sidrec.data.tables import collect, read_table, texts_among_numbers
from sidrec.pipeline.errors import InputError

OF_LOG, OF_ITEMS = ["user_id", "item_id", "timestamp"], ["item_id", "title"]
WRITTEN = ("item_index", "split")


def read_own(
    interactions_file: Path, items_file: Path, separator: str | None = None, encoding: str | None = None
) -> RawLog:
    """Your own log (user_id, item_id, timestamp, anything else) and catalogue (item_id, title, anything else), each CSV or Parquet.

    separator, encoding: of the CSV files; None for what fits their first lines, and for UTF-8. Ids of any type become strings.
    Timestamps: integers are kept as they are; floats, datetimes and ISO dates (without an offset: UTC) become seconds, or microseconds
    when some lie between two seconds, so that the order is kept. An empty title becomes the item's id. Of rows with the same user, item
    and time the first one counts. A column of a CSV that is one of texts for few cells is told. A log in Parquet is streamed, in CSV read
    whole. Raises InputError for anything that does not fit, naming the row.
    """
    log = read_table(interactions_file, OF_LOG, separator, encoding)
    items = collect(items_file, read_table(items_file, OF_ITEMS, separator, encoding))
    for file, names in ((interactions_file, log.collect_schema().names()), (items_file, items.columns)):
        written = [name for name in WRITTEN if name in names]
        if written:
            raise InputError(f"{file}: the column {written[0]!r} is one that this command writes; rename yours.")
    raw = checked(interactions_file, log, items_file, items, "row")
    ids = (codes(raw.interactions[name]) for name in ("user_id", "item_id"))
    is_first = first_of_equals((*ids, raw.interactions["timestamp"].to_numpy()))
    repeats = int((~is_first).sum())
    log_once = raw.interactions.filter(pl.Series(is_first)) if repeats else raw.interactions
    users = raw.interactions["user_id"].unique().cast(pl.String)
    texts = (
        *texts_among_numbers(interactions_file, log, OF_LOG),
        *texts_among_numbers(items_file, items.lazy(), OF_ITEMS),
    )
    notes = (*raw.notes, *texts, *alike_note("user_id", users), *alike_note("item_id", raw.items["item_id"]))
    return replace(raw, interactions=log_once, notes=notes, repeats=repeats)


def alike_note(name: str, ids: pl.Series) -> list[str]:
    """A warning when ids, each once, differ from others only in white space or letter case: most often that is one user or item."""
    folded = ids.str.replace_all(r"\s+", " ").str.strip_chars().str.to_lowercase()
    repeated = folded.is_duplicated()
    if not repeated.any():
        return []
    pair = ids.filter(folded == folded.filter(repeated).min()).sort()
    return [
        f"Warning: {repeated.sum():,} {name}s differ from another one only in white space or letter case, such as {pair[0]!r} and "
        f"{pair[1]!r}; they count as different."
    ]
