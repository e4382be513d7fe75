"""Write the store's lists that were drawn at random, with what they earned, as the log that `sidrec off-policy` reads.

sidrec export-lists --store store.db --output served.parquet
sidrec off-policy --log served.parquet --run_dir outputs/ml-100k --model rl
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.output_path import check_output
from sidrec.serving.extra import MICROSECONDS_PER_HOUR, STORE_HELP, check_hours, require_store

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import Select

    from sidrec.serving.store import Store

ENDINGS = (".jsonl", ".parquet")


@dataclass
class ExportListsConfig:
    """Write the lists of a store that were drawn at random, one a row, with a reward for each slot, to judge other policies by."""

    store: str = field(metadata={"help": STORE_HELP})
    output: Path = field(
        metadata={"help": "JSON Lines (.jsonl) or Parquet (.parquet); a file that is there is replaced."}
    )
    reward: str = field(
        default="event",
        metadata={
            "help": "What a slot earned. event: 1 where an event with its item followed; value: the sum of the values of those events.",
            "choices": ("event", "value"),
        },
    )
    within_hours: float = field(
        default=24.0,
        metadata={
            "help": "An event counts for the last list before it that showed its user its item, when it arrives within this time."
        },
    )

    def __post_init__(self) -> None:
        check_hours("within_hours", self.within_hours)


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(ExportListsConfig, arguments)
    require_store()
    from sidrec.serving.database import files_of  # with SQLAlchemy, for which --help does not wait
    from sidrec.serving.store import Store

    config.output.parent.mkdir(parents=True, exist_ok=True)
    check_output("--output", config.output, files_of(config.store), ENDINGS)
    with Store.in_use(config.store, must_exist=True) as store:
        n_lists, lists = store.counts().lists, lists_table(store, config.reward, config.within_hours)
    left_out = f"{n_lists - len(lists):,} of {n_lists:,} lists are left out: not drawn at random, or without a user, a history or items"
    if lists.is_empty():
        raise InputError(
            f"--store holds no list to export ({left_out}); ask the service for lists with a temperature first."
        )
    with atomic_path(config.output) as temporary:
        if config.output.name.lower().endswith(".jsonl"):
            lists.write_ndjson(temporary)
        else:
            lists.write_parquet(temporary)
    sys.stdout.write(f"{config.output}: {len(lists):,} lists of {lists['user_id'].n_unique():,} users\n")
    if n_lists > len(lists):
        sys.stdout.write(f"{left_out}\n")


def lists_table(store: Store, reward: str, within_hours: float) -> pl.DataFrame:
    """Every drawn list of a user with a history, in the order in which they were served, with the columns of
    `sidrec.evaluation.served_lists`. reward: "event" or "value"."""
    import polars as pl

    from sidrec.serving.store_frame import store_frame

    lists, slots, events = (store_frame(store, *each) for each in _queries())
    events = events.with_columns(reward=pl.lit(1.0) if reward == "event" else pl.col("value").fill_null(0.0))
    shown = slots.join(lists.select("request_id", "user_id", "time"), on="request_id").sort("time", "request_id")
    earned = events.sort("received_at").join_asof(
        shown.select("user_id", "item_id", "time", "request_id"),
        left_on="received_at",
        right_on="time",
        by=["user_id", "item_id"],
        tolerance=round(within_hours * MICROSECONDS_PER_HOUR),
        check_sortedness=False,  # both are sorted above, which Polars cannot see within groups
    )
    total = pl.col("reward").max() if reward == "event" else pl.col("reward").sum()
    rewards = earned.drop_nulls("request_id").group_by("request_id", "item_id").agg(total)
    slots = slots.join(rewards, on=["request_id", "item_id"], how="left").sort("request_id", "rank")
    by_list = slots.group_by("request_id").agg(
        items=pl.col("item_id"), propensities=pl.col("propensity"), rewards=pl.col("reward").fill_null(0.0)
    )
    whole = lists.join(by_list, on="request_id").filter(pl.col("history").list.len() > 0)
    drawn = whole.filter(pl.col("propensities").list.drop_nulls().list.len() == pl.col("items").list.len())
    return drawn.sort("time", "request_id").select(
        "user_id",
        "history",
        "exclude_seen",
        "items",
        "propensities",
        "rewards",
        "request_id",
        "policy",
        "catalogue_version",
    )


def _queries() -> list[tuple[Select[Any], dict[str, Any]]]:
    """Lists with a user, the slots of all lists, and the events: what is read, and as which types."""
    import polars as pl
    from sqlalchemy import select

    from sidrec.serving.schema import EVENTS, LIST_ITEMS, LISTS

    of_lists = {
        "request_id": pl.String,
        "user_id": pl.String,
        "time": pl.Int64,
        "history": pl.List(pl.String),
        "exclude_seen": pl.Boolean,
        "policy": pl.String,
        "catalogue_version": pl.Int64,
    }
    of_slots = {"request_id": pl.String, "rank": pl.Int64, "item_id": pl.String, "propensity": pl.Float64}
    of_events = {"user_id": pl.String, "item_id": pl.String, "received_at": pl.Int64, "value": pl.Float64}
    tables = ((LISTS, of_lists), (LIST_ITEMS, of_slots), (EVENTS, of_events))
    queries = [select(*(table.c[name] for name in schema)) for table, schema in tables]
    queries[0] = queries[0].where(LISTS.c.user_id.is_not(None))
    return list(zip(queries, (schema for _, schema in tables), strict=True))


if __name__ == "__main__":
    run_as_command(main)
