"""What the user sees of a prepared data set: its counts beside the published ones, and notes on what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from sidrec.data.codes import codes, run_ends

# users, items, interactions as their publishers (MovieLens) and the papers that use them (Amazon 2014, 5-core) give them
KNOWN_COUNTS: dict[tuple[str, str | None], tuple[int, int, int]] = {
    ("ml-100k", None): (943, 1_682, 100_000),
    ("ml-1m", None): (6_040, 3_706, 1_000_209),
    ("ml-latest-small", None): (610, 9_724, 100_836),
    ("ml-20m", None): (138_493, 26_744, 20_000_263),
    ("ml-32m", None): (200_948, 84_432, 32_000_204),
    ("amazon-2014", "Beauty"): (22_363, 12_101, 198_502),
    ("amazon-2014", "Sports_and_Outdoors"): (35_598, 18_357, 296_337),
    ("amazon-2014", "Toys_and_Games"): (19_412, 11_924, 167_597),
}


def known_counts_note(dataset: str, category: str | None, counts: dict[str, int], is_whole: bool) -> list[str]:
    """A sentence on how the counts compare with the published ones; none where these are not known, or settings differ."""
    known = KNOWN_COUNTS.get((dataset, category))
    if known is None or not is_whole:
        return []
    found = (counts["users"], counts["items"], counts["interactions"])
    published = "{:,} users, {:,} items, {:,} interactions".format(*known)
    if found == known:
        return [f"These are the published counts: {published}."]
    return [
        f"Warning: the published counts are {published}, but these files gave {found[0]:,}, {found[1]:,}, {found[2]:,}; "
        "check that they are whole before comparing with published results."
    ]


def show_summary(folder: Path) -> None:
    """Print the counts of the data set in `folder`, the share of users whose test item is a matter of input order, and notes."""
    info: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    counts = info["counts"]
    lengths, tied = _histories(folder / "interactions.parquet")
    title = " ".join(part for part in (info["name"], info.get("category")) if part)
    table = Table("what", "value", title=f"{title}, {info['protocol']}", min_width=40)
    rows = {
        "users": f"{counts['users']:,}",
        "items": f"{counts['items']:,}",
        "interactions": f"{counts['interactions']:,} ({counts['removed_interactions']:,} removed by k-core)",
        "density": f"{counts['interactions'] / counts['users'] / counts['items']:.3%}",
        "median history": f"{np.median(lengths):g} interactions a user",
        "train / valid / test": f"{counts['train']:,} / {counts['valid']:,} / {counts['test']:,}",
        "last two at one time": f"{tied.mean():.1%} of users (then input order decides)",
        "files": f"{folder}/",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    for note in info.get("notes", []):
        console.print(note, soft_wrap=True, highlight=False, markup=False)


def _histories(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of every user, the number of interactions, and whether the last two have one timestamp (False for a single one)."""
    log = pl.scan_parquet(path).select(pl.col("user_id").cast(pl.Categorical), "timestamp").collect(engine="streaming")
    last = run_ends(codes(log["user_id"]))
    lengths = np.diff(last, prepend=-1)
    times = log["timestamp"].to_numpy()
    return lengths, (lengths > 1) & (times[last] == times[last - 1])
