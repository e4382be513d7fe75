"""Recommendations on the screen, as one table a history."""

from __future__ import annotations

import math

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

SHOWN_HISTORY = 5
WIDEST = 10_000  # columns


def show(rows: pl.DataFrame, history: list[str], model: str, console: Console | None = None) -> None:
    """Print the end of a history and what is recommended after it; no cell is cut, however narrow the screen.

    rows: of `sidrec.serving.answer`, of one history. history: the titles of its items, oldest first. model: its name.
    """
    console, user, reason = console or Console(), rows["user_id"][0], rows["reason"][0]
    if user is not None:
        console.print(Text(f"user: {user}"), soft_wrap=True)
    earlier = f"… {len(history) - SHOWN_HISTORY} more, " if len(history) > SHOWN_HISTORY else ""
    console.print(Text(f"history: {earlier}{' → '.join(history[-SHOWN_HISTORY:]) or 'none'}"), soft_wrap=True)
    console.print(Text(f"next, by the {model} model:" if history else "next, by popularity:"))
    show_items(rows.drop_nulls("item_id"), console)
    if reason is not None:
        console.print(Text(f"{reason}."), soft_wrap=True)


def show_items(items: pl.DataFrame, console: Console) -> None:
    """items: rank, title, item_id, sid and score (log probability, or null)."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    for name in ("title", "item_id", "semantic ID"):
        table.add_column(name, no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    for row in items.iter_rows(named=True):
        names = (Text(row["title"]), Text(row["item_id"]), row["sid"])
        table.add_row(str(row["rank"]), *names, "" if row["score"] is None else f"{math.exp(row['score']):.2%}")
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(table)
