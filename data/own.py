"""Your own data: a log and a catalogue, each a CSV or a Parquet file."""

from __future__ import annotations

from pathlib import Path

from sidrec.data.readers import RawLog, checked
from sidrec.data.tables import collect, read_table
from sidrec.pipeline.errors import InputError

WRITTEN = ("item_index", "split")


def read_own(interactions_file: Path, items_file: Path) -> RawLog:
    """Your own log (user_id, item_id, timestamp, anything else) and catalogue (item_id, title, anything else), each CSV or Parquet.

    Ids of any type become strings. Timestamps: integers are kept as they are; floats, datetimes and ISO dates (without an offset:
    UTC) become seconds, or microseconds when some lie between two seconds, so that the order is kept. An empty title becomes the
    item's id. A log in Parquet is streamed, in CSV read whole. Raises InputError for anything that does not fit, naming the row.
    """
    log = read_table(interactions_file, ["user_id", "item_id", "timestamp"])
    items = collect(items_file, read_table(items_file, ["item_id", "title"]))
    for file, names in ((interactions_file, log.collect_schema().names()), (items_file, items.columns)):
        written = [name for name in WRITTEN if name in names]
        if written:
            raise InputError(f"{file}: the column {written[0]!r} is one that this command writes; rename yours.")
    return checked(interactions_file, log, items_file, items, "row")
