"""Recommendations on the screen, as one table."""

from __future__ import annotations

import math

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidrec.tokenizer.semantic_ids import SemanticIds

SHOWN_HISTORY = 5
WIDEST = 10_000  # columns


def show(
    titles: list[str],
    sids: SemanticIds,
    history: np.ndarray,
    items: np.ndarray,
    log_probs: np.ndarray,
    model: str,
    console: Console | None = None,
) -> None:
    """Print the end of the history and the recommendations; no cell is cut, however narrow the screen.

    titles: of item i at index i. history: int [any length], item indices, oldest first. items: int [k], best first, -1 where there are
    fewer; log_probs: float [k].
    """
    console = console or Console()
    shown = [titles[item] for item in history[-SHOWN_HISTORY:]]
    earlier = f"… {len(history) - len(shown)} more, " if len(history) > len(shown) else ""
    console.print(Text(f"history: {earlier}{' → '.join(shown)}"), soft_wrap=True)
    console.print(Text(f"next, by the {model} model:"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    for name in ("title", "semantic ID"):
        table.add_column(name, no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    for rank, (item, log_prob) in enumerate(zip(items[items >= 0], log_probs, strict=False), start=1):
        table.add_row(str(rank), Text(titles[item]), sids.text(int(item)), f"{math.exp(log_prob):.2%}")
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(table)
