"""What the user sees of a prepared data set: its counts beside the published ones, and notes on what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.codes import codes, run_ends
from sidrec.pipeline.files import read_json

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
    here = (counts["users"], counts["items"], counts["interactions"])
    published = "{:,} users, {:,} items, {:,} interactions".format(*known)
    if here == known:
        return [f"These are the published counts: {published}."]
    return [
        f"Warning: the published counts are {published}, but these files gave {here[0]:,}, {here[1]:,}, {here[2]:,}; "
        "check that they are whole before comparing with published results."
    ]


def summary(folder: Path) -> list[str]:
    """The data set in `folder` in a few lines: its counts, the share of users whose test item is a matter of input order, notes."""
    info: dict[str, Any] = read_json(folder / "dataset.json")
    counts = info["counts"]
    lengths, tied = _histories(folder / "interactions.parquet")
    title = " ".join(part for part in (info["name"], info.get("category")) if part)
    density = counts["interactions"] / counts["users"] / counts["items"]
    splits = f"{counts['train']:,} train, {counts['valid']:,} valid, {counts['test']:,} test interactions"
    nothing_to_measure = [
        f"Warning: no interaction is {name}, so no model can be trained and measured on these data; give longer histories."
        for name in ("valid", "test")
        if not counts[name]
    ]
    return [
        f"{title}: {counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions "
        f"({counts['removed_interactions']:,} removed by k-core), density {density:.3%}",
        f"{info['protocol']}: {splits}; median history {np.median(lengths):g}; {tied.mean():.1%} of users have their last two "
        "at one time (then input order decides)",
        *info.get("notes", []),
        *nothing_to_measure,
        f"files: {folder}",
    ]


def _histories(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of every user, the number of interactions, and whether the last two have one timestamp (False for a single one)."""
    log = (
        pl.scan_parquet(path, glob=False)
        .select(pl.col("user_id").cast(pl.Categorical), "timestamp")
        .collect(engine="streaming")
    )
    last = run_ends(codes(log["user_id"]))
    lengths = np.diff(last, prepend=-1)
    times = log["timestamp"].to_numpy()
    return lengths, (lengths > 1) & (times[last] == times[last - 1])
