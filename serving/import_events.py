"""Bring an old log into a store, so that a service knows what its users did before.

sidrec import-events log.csv --store store.db
sidrec import-events ratings.csv --store postgresql://user@host/name --value_column rating --separator ";"
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidrec.data.settings import read_dialect
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import first_named, parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.serving.extra import STORE_HELP, require_store

if TYPE_CHECKING:
    import polars as pl

    from sidrec.serving.store import Store

EVENTS_TOGETHER = 5_000  # in one transaction, for which a service's writers wait
VALUE, EXTRA, EVENT_ID = "value", "extra", "event_id"  # columns that are read where a log has them


@dataclass
class ImportEventsConfig:
    """Store the rows of a log as events. Those that the store has already stay as they are, so the same log again adds nothing."""

    log: Path = field(
        metadata={
            "help": "CSV (.csv, .tsv, .txt, also .gz) or Parquet with user_id, item_id and timestamp, as `sidrec prepare` reads it."
        }
    )
    store: str = field(metadata={"help": f"{STORE_HELP} A missing file is made."})
    value_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of numbers with the events' values, such as rating. Left out: value, where there is one."
        },
    )
    separator: str | None = field(
        default=None,
        metadata={
            "help": "What separates the columns of a CSV: one character, or the word tab. None: comma, semicolon, tab or |, as the first "
            "line says."
        },
    )
    encoding: str | None = field(default=None, metadata={"help": "Encoding of a CSV, such as latin-1. None: UTF-8."})

    def __post_init__(self) -> None:
        self.separator = read_dialect(self.separator, self.encoding)


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse_config(ImportEventsConfig, first_named("log", sys.argv[1:] if arguments is None else arguments))
    require_store()
    from sidrec.serving.store import Event, Store  # with SQLAlchemy and Polars, for which --help does not wait

    screen, events, added = Screen("import-events"), events_of(config), 0
    with Store.in_use(config.store) as store:
        refuse_another_unit_than(store, config.log, events)
        with screen.bar("import-events", len(events), "events") as bar:
            for part in events.iter_slices(EVENTS_TOGETHER):
                rows = part.iter_rows(named=True)
                new = [Event(**row | {EXTRA: None if row[EXTRA] is None else json.loads(row[EXTRA])}) for row in rows]
                added += store.add_events(new).accepted
                bar.advance(len(part))
    known = len(events) - added
    screen.summary(
        "import-events", [f"{config.log}: {len(events):,} rows read, {added:,} events added, {known:,} known already"]
    )


def events_of(config: ImportEventsConfig) -> pl.DataFrame:
    """event_id, user_id, item_id, timestamp, value (float or null) and extra (JSON text or null) of every row, checked, in input order.

    An event's id is that of the column event_id; without one it is made of user, item and time, by which `sidrec prepare` knows a row
    again. Raises InputError for what does not fit, as `log_rows` does.
    """
    import polars as pl

    from sidrec.data.readers import log_rows, refuse_blank

    path, value = config.log, config.value_column or VALUE
    log = log_rows(path, (value, EXTRA, EVENT_ID), config.separator, config.encoding, words=(EXTRA, EVENT_ID))
    if config.value_column is not None and value not in log.columns:
        raise InputError(f"{path} has no column {value!r}; name another --value_column.")
    if EVENT_ID not in log.columns:
        rows = log.select("user_id", "item_id", "timestamp").iter_rows()
        log = log.with_columns(pl.Series(EVENT_ID, [event_id(*row) for row in rows]))
    if EXTRA not in log.columns:
        log = log.with_columns(pl.lit(None, dtype=pl.String).alias(EXTRA))
    refuse_blank(path, log[EVENT_ID], "row")
    ids = pl.col(EVENT_ID, "user_id", "item_id").cast(pl.String)
    events = log.select(ids, "timestamp", values_of(path, log, value), pl.col(EXTRA).cast(pl.String))
    _refuse_what_no_store_holds(path, events)
    return events


def event_id(user: str, item: str, timestamp: int) -> str:
    """The same for the same row, in whatever file it stands."""
    row = json.dumps([user, item, timestamp], ensure_ascii=False)
    return f"log-{hashlib.sha256(row.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def values_of(path: Path, log: pl.DataFrame, column: str) -> pl.Series:
    """float64 [rows], null where there is none. Raises InputError for the first cell that is no finite number."""
    import polars as pl

    if column not in log.columns:
        return pl.Series(VALUE, [None] * len(log), dtype=pl.Float64)
    cells = log[column]
    values = cells.cast(pl.Float64, strict=False).fill_nan(None)
    odd = (values.is_null() & cells.is_not_null() & (cells.cast(pl.String) != "NaN")) | values.is_infinite().fill_null(
        False
    )
    if odd.any():
        row = int(odd.arg_true()[0])
        raise InputError(
            f"{path} row {row + 1}: column {column!r} holds {cells[row]!r}, which is no finite number ({odd.sum():,} such cells); correct "
            "or empty them."
        )
    return values.rename(VALUE)


def _refuse_what_no_store_holds(path: Path, log: pl.DataFrame) -> None:
    """Raise InputError, before anything is stored, for an id or an extra that `Store.add_events` would refuse."""
    from sidrec.serving.store import check_id

    for name in ("user_id", "item_id", EVENT_ID):
        for text in log[name].unique():
            check_id(str(path), name, text)
    for row, text in enumerate(log[EXTRA]):
        if text is not None and not _is_object(text):
            raise InputError(f"{path} row {row + 1}: extra is {text[:60]!r}, no JSON object; correct or empty it.")


def _is_object(text: str) -> bool:
    try:
        held: Any = json.loads(text, parse_constant=lambda _: math.nan)
        json.dumps(held, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return isinstance(held, dict)


def refuse_another_unit_than(store: Store, path: Path, events: pl.DataFrame) -> None:
    """Raise InputError where the log's times are in another unit than those of the event that the store got last."""
    import polars as pl
    from sqlalchemy import select

    from sidrec.data.new_events import refuse_another_unit
    from sidrec.serving.schema import EVENTS

    newest = select(EVENTS.c.timestamp).order_by(EVENTS.c.arrival.desc()).limit(1)
    for rows in store.blocks(newest):
        refuse_another_unit(path, events["timestamp"], pl.Series([time for (time,) in rows]), "store")


if __name__ == "__main__":
    run_as_command(main)
