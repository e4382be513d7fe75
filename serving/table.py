"""Recommendations on the screen, as one table."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidrec.decoding.recommender import Recommendations
from sidrec.tokenizer.semantic_ids import SemanticIds

SHOWN_HISTORY = 5
WIDEST = 10_000  # columns


def show(
    items: pl.DataFrame,
    sids: SemanticIds,
    history: np.ndarray,
    lists: Recommendations,
    asked: int,
    model: str,
    console: Console | None = None,
    n_items: int | None = None,
) -> None:
    """Print the end of the history and the recommendations; no cell is cut, however narrow the screen.

    items: item_id and title of item i in row i. history: int [any length], item indices, oldest first. lists: of this one history.
    asked: how many items were asked for; where there are fewer, a sentence says why. n_items: of the catalogue, where some have been
    removed from it.
    """
    console, titles = console or Console(), items["title"]
    shown = [titles[int(item)] for item in history[-SHOWN_HISTORY:]]
    earlier = f"… {len(history) - len(shown)} more, " if len(history) > len(shown) else ""
    console.print(Text(f"history: {earlier}{' → '.join(shown)}"), soft_wrap=True)
    console.print(Text(f"next, by the {model} model:"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    for name in ("title", "item_id", "semantic ID"):
        table.add_column(name, no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    best = [int(item) for item in lists.items[0] if item >= 0]
    for rank, (item, log_prob) in enumerate(zip(best, lists.log_probs[0], strict=False), start=1):
        names = (Text(titles[item]), Text(items["item_id"][item]))
        table.add_row(str(rank), *names, sids.text(item), f"{math.exp(log_prob):.2%}")
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(table)
    if len(best) < asked:
        console.print(Text(why_short(len(best), asked, len(items) if n_items is None else n_items)), soft_wrap=True)


def why_short(shown: int, asked: int, n_items: int) -> str:
    """Why a list has fewer items than were asked for, in a sentence. n_items: of the catalogue."""
    seen = n_items - shown
    left_out = f"; those of the history ({seen:,}) are left out unless --keep_seen true" if seen else ""
    return f"{shown:,} of the {asked:,} that --k asks for: the catalogue has {n_items:,} items{left_out}."
