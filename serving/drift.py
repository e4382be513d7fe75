"""How far a store's events have moved from what a model was trained on, and whether training it further pays.

sidrec drift --store store.db --run_dir outputs/mine
sidrec drift --store store.db --bundle outputs/mine/bundle --days 7 --output drift.json
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.output_path import check_output
from sidrec.pipeline.screen import Screen
from sidrec.serving.extra import MICROSECONDS_PER_HOUR, STORE_HELP, check_hours, require_store

if TYPE_CHECKING:
    import polars as pl

    from sidrec.data.dataset import Dataset
    from sidrec.serving.bundle import Bundle
    from sidrec.serving.store import Store

HOURS_PER_DAY = 24


@dataclass
class DriftConfig:
    """Put a store's events and served lists beside what a model was trained on."""

    store: str = field(metadata={"help": STORE_HELP})
    run_dir: Path | None = field(
        default=None, metadata={"help": "Run directory of the model that is served, or of which a bundle was made."}
    )
    bundle: Path | None = field(
        default=None,
        metadata={
            "help": "In place of --run_dir: the bundle. It has no log, so it knows neither users nor which events are new."
        },
    )
    days: float | None = field(
        default=None,
        metadata={
            "help": "Only events that arrived, and lists that were served, in the last so many days before the newest event."
        },
    )
    within_hours: float = field(
        default=24.0,
        metadata={
            "help": "What a user takes within this time after a list counts as what they took of it, or beside it."
        },
    )
    output: Path | None = field(default=None, metadata={"help": "JSON file to write the figures to."})
    seed: int = field(
        default=0, metadata={"help": "Seed of the intervals and of the divergence that chance alone would give."}
    )

    def __post_init__(self) -> None:
        if (self.run_dir is None) == (self.bundle is None):
            raise InputError("name one of --run_dir and --bundle, whose training the events are put beside.")
        check_hours("within_hours", self.within_hours)
        if self.days is not None:
            check_hours("days", self.days, HOURS_PER_DAY)


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(DriftConfig, arguments)
    require_store()
    from sidrec.serving.database import files_of
    from sidrec.serving.drift_figures import in_words  # polars and torch, for which --help does not wait
    from sidrec.serving.store import Store

    if config.output is not None:
        inputs = files_of(config.store) if config.bundle is None else [*files_of(config.store), config.bundle]
        check_output("--output", config.output, inputs)
    with Store.in_use(config.store, must_exist=True) as store:
        bundle, dataset = trained_on(config)
        figures = drift_of(store, bundle, dataset, config.days, config.within_hours, config.seed)
    if figures is None:
        raise InputError("--store holds no event that the run lacks; wait for some, or widen --days.")
    Screen("drift").summary("drift", in_words(figures))
    if config.output is not None:
        write_json(config.output, figures)
        sys.stdout.write(f"{config.output}\n")


def drift_of(
    store: Store, bundle: Bundle, dataset: Dataset | None, days: float | None, within_hours: float, seed: int
) -> dict[str, Any] | None:
    """The figures of a store beside what a bundle was trained on, or a run directory's `dataset`; None where the store has no event that is
    new to the latter. days, within_hours, seed: as of DriftConfig."""
    from sidrec.serving.drift_figures import list_figures, reasons_to_train, shift_figures

    events, lists = tables_of(store, days)
    new = events if dataset is None else without_known(events, dataset)
    if new.is_empty():
        return None
    figures = shift_figures(new, bundle, dataset, seed)
    figures |= list_figures(events, lists, within_hours * MICROSECONDS_PER_HOUR, seed)
    reasons = reasons_to_train(figures)
    return figures | {"retrain": bool(reasons), "reasons": reasons}


def trained_on(config: DriftConfig) -> tuple[Bundle, Dataset | None]:
    from sidrec.data.dataset import Dataset
    from sidrec.serving.bundle import Bundle, last_trained

    if config.run_dir is None:
        assert config.bundle is not None
        return Bundle.load(config.bundle), None
    dataset = Dataset.load(config.run_dir)
    return Bundle.of_run(config.run_dir, last_trained(config.run_dir), dataset), dataset


def tables_of(store: Store, days: float | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events (user_id, item_id, timestamp, received_at) in the order of arrival, and lists (user_id, time, k, history, items), oldest
    first; of the last `days` before the newest event."""
    import polars as pl
    from sqlalchemy import func, select

    from sidrec.serving.schema import EVENTS, LIST_ITEMS, LISTS
    from sidrec.serving.store_frame import store_frame

    ((newest,),) = next(store.blocks(select(func.max(EVENTS.c.received_at))))
    first = 0
    if days is not None and isinstance(newest, int):
        first = newest - round(HOURS_PER_DAY * days * MICROSECONDS_PER_HOUR)
    of_events = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "received_at": pl.Int64}
    of_lists: dict[str, Any] = {
        "request_id": pl.String,
        "user_id": pl.String,
        "time": pl.Int64,
        "k": pl.Int64,
        "history": pl.List(pl.String),
    }
    of_items = {"request_id": pl.String, "rank": pl.Int64, "item_id": pl.String}
    events, lists, items = (
        store_frame(store, query, schema)
        for schema, query in (
            (
                of_events,
                select(*(EVENTS.c[name] for name in of_events))
                .where(EVENTS.c.received_at >= first)
                .order_by(EVENTS.c.arrival),
            ),
            (of_lists, select(*(LISTS.c[name] for name in of_lists)).where(LISTS.c.time >= first)),
            (of_items, select(*(LIST_ITEMS.c[name] for name in of_items)).join(LISTS).where(LISTS.c.time >= first)),
        )
    )
    shown = items.sort("request_id", "rank").group_by("request_id", maintain_order=True).agg(items="item_id")
    lists = lists.join(shown, on="request_id", how="left").sort("time", "request_id").drop("request_id")
    return events, lists.with_columns(pl.col("items").fill_null([]))


def without_known(events: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """The events that the run's log has not."""
    import polars as pl

    log = dataset.interactions.join(dataset.items.select("item_index", "item_id"), on="item_index")
    known = log.select(pl.col("user_id", "item_id").cast(pl.String), pl.col("timestamp").cast(pl.Int64))
    return events.join(known, on=["user_id", "item_id", "timestamp"], how="anti", maintain_order="left")


if __name__ == "__main__":
    run_as_command(main)
