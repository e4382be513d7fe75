"""Your own data: a log and a catalogue, each a CSV or a Parquet file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from sidrec.data.codes import codes
from sidrec.data.readers import RawLog, checked
from sidrec.data.tables import collect, read_table
from sidrec.pipeline.errors import InputError

WRITTEN = ("item_index", "split")
ROWS_TOGETHER = 1 << 20  # compared at once
HASH_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)  # odd and far apart


def read_own(
    interactions_file: Path, items_file: Path, separator: str | None = None, encoding: str | None = None
) -> RawLog:
    """Your own log (user_id, item_id, timestamp, anything else) and catalogue (item_id, title, anything else), each CSV or Parquet.

    separator, encoding: of the CSV files; None for what fits their first lines, and for UTF-8. Ids of any type become strings.
    Timestamps: integers are kept as they are; floats, datetimes and ISO dates (without an offset: UTC) become seconds, or microseconds
    when some lie between two seconds, so that the order is kept. An empty title becomes the item's id. Of rows with the same user, item
    and time the first one counts. A log in Parquet is streamed, in CSV read whole. Raises InputError for anything that does not fit,
    naming the row.
    """
    log = read_table(interactions_file, ["user_id", "item_id", "timestamp"], separator, encoding)
    items = collect(items_file, read_table(items_file, ["item_id", "title"], separator, encoding))
    for file, names in ((interactions_file, log.collect_schema().names()), (items_file, items.columns)):
        written = [name for name in WRITTEN if name in names]
        if written:
            raise InputError(f"{file}: the column {written[0]!r} is one that this command writes; rename yours.")
    raw = checked(interactions_file, log, items_file, items, "row")
    is_first = first_of_equals(raw.interactions)
    repeats = int((~is_first).sum())
    log_once = raw.interactions.filter(pl.Series(is_first)) if repeats else raw.interactions
    users = raw.interactions["user_id"].unique().cast(pl.String)
    notes = (*alike_note("user_id", users), *alike_note("item_id", raw.items["item_id"]))
    return replace(raw, interactions=log_once, notes=notes, repeats=repeats)


def first_of_equals(log: pl.DataFrame) -> np.ndarray:
    """bool [rows]: whether no row before it has the same user, item and timestamp.

    Equal rows have equal hashes, and only rows whose hash occurs again are compared: without repeats that is one sort of 8 bytes a row.
    """
    keys = (codes(log["user_id"]), codes(log["item_id"]), log["timestamp"].to_numpy())
    hashes = np.zeros(len(log), dtype=np.uint64)
    for key, factor in zip(keys, HASH_FACTORS, strict=True):
        hashes += key.astype(np.uint64) * np.uint64(factor)
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    is_first = np.ones(len(log), dtype=bool)
    if not len(repeated):
        return is_first
    suspects = np.flatnonzero(np.isin(hashes, repeated))
    n_parts = 1 + len(suspects) // ROWS_TOGETHER
    for part in range(n_parts):
        rows = suspects[hashes[suspects] % np.uint64(n_parts) == part]  # equal rows are in one part
        equal = pl.DataFrame({str(place): key[rows] for place, key in enumerate(keys)})
        is_first[rows] = equal.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return is_first


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
