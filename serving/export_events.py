"""Write the store's events as the log that `sidrec prepare --dataset own` reads.

sidrec export-events --store store.db --output log.parquet
sidrec prepare --dataset own --interactions log.parquet --items catalogue.csv --run_dir outputs/mine
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.output_path import check_output
from sidrec.serving.extra import STORE_HELP, require_store

if TYPE_CHECKING:
    import polars as pl

    from sidrec.serving.store import Store

ENDINGS = (".csv", ".parquet")


@dataclass
class ExportEventsConfig:
    """Write the events of a store in the order of their arrival, one a row, as a log that can be prepared."""

    store: str = field(metadata={"help": STORE_HELP})
    output: Path = field(metadata={"help": "CSV (.csv) or Parquet (.parquet) file; one that is there is replaced."})


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(ExportEventsConfig, arguments)
    require_store()
    from sidrec.serving.database import files_of  # with SQLAlchemy, for which --help does not wait
    from sidrec.serving.store import Store

    config.output.parent.mkdir(parents=True, exist_ok=True)
    check_output("--output", config.output, files_of(config.store), ENDINGS)
    with Store.in_use(config.store, must_exist=True) as store:
        log = events_table(store)
    if log.is_empty():
        raise InputError("--store holds no events; add some first.")
    with atomic_path(config.output) as temporary:
        if config.output.name.lower().endswith(".csv"):
            log.write_csv(temporary)
        else:
            log.write_parquet(temporary)
    sys.stdout.write(f"{config.output}: {len(log):,} events of {log['user_id'].n_unique():,} users\n")


def events_table(store: Store) -> pl.DataFrame:
    """user_id, item_id, timestamp, value (float or null), extra (JSON text or null) of every event, in the order of arrival, which is
    that of equal timestamps."""
    import polars as pl
    from sqlalchemy import select

    from sidrec.serving.schema import EVENTS
    from sidrec.serving.store_frame import store_frame

    columns = EVENTS.c
    query = select(columns.user_id, columns.item_id, columns.timestamp, columns.value, columns.extra)
    schema = {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "value": pl.Float64,
        "extra": pl.String,
    }
    return store_frame(store, query.order_by(columns.arrival), schema, json_column="extra")


if __name__ == "__main__":
    run_as_command(main)
