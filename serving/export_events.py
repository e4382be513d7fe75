"""Write the store's events as the log that `sidrec prepare --dataset own` reads.

sidrec export-events --store store.db --output log.parquet
sidrec prepare --dataset own --interactions log.parquet --items catalogue.csv --run_dir outputs/mine
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
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

    def __post_init__(self) -> None:
        if not self.output.name.lower().endswith(ENDINGS):
            raise InputError(f"--output {self.output} is neither {' nor '.join(ENDINGS)}; name a file of one of them.")


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(ExportEventsConfig, arguments)
    require_store()
    from sidrec.serving.store import Store  # with SQLAlchemy, for which --help does not wait

    with closing(Store.open(config.store, must_exist=True)) as store:
        log = events_table(store)
    if log.is_empty():
        raise InputError("--store holds no events; add some first.")
    config.output.parent.mkdir(parents=True, exist_ok=True)
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

    columns = EVENTS.c
    query = select(columns.user_id, columns.item_id, columns.timestamp, columns.value, columns.extra)
    schema = {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "value": pl.Float64,
        "extra": pl.String,
    }
    frames = [pl.DataFrame(schema=schema)]
    for rows in store.blocks(query.order_by(columns.arrival)):
        texts = [(*row[:4], None if row[4] is None else json.dumps(row[4], ensure_ascii=False)) for row in rows]
        frames.append(pl.DataFrame(texts, schema=schema, orient="row"))
    return pl.concat(frames)


if __name__ == "__main__":
    run_as_command(main)
