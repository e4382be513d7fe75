"""What the user sees of a prepared data set: its counts beside the published ones, and notes on what was found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.codes import codes, run_ends
from sidrec.data.timestamps import EARLIEST, SECONDS_PER_DAY, UNITS, as_day
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
    """The data set in `folder` in a few lines: counts, what was left out by which rule, times, medians, what the text is made of, notes."""
    info: dict[str, Any] = read_json(folder / "dataset.json")
    counts = info["counts"]
    times, lengths, tied = _histories(folder / "interactions.parquet")
    title = " ".join(part for part in (info["name"], info.get("category")) if part)
    pairs = counts["interactions"] - info.get("again", 0)  # a user and an item that they took, once or again and again
    density = pairs / counts["users"] / counts["items"]
    splits = f"{counts['train']:,} train, {counts['valid']:,} valid, {counts['test']:,} test interactions"
    nothing_to_measure = [
        f"Warning: no interaction is {name}, so no model can be trained and measured on these data; give longer histories."
        for name in ("valid", "test")
        if not counts[name]
    ]
    if counts["items"] == 1:
        nothing_to_measure.append(
            "Warning: there is one item only, so there is nothing to choose from; give more items."
        )
    has_facts = "read" in info  # an earlier version wrote none
    return [
        f"{title}: {counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions "
        f"({counts['removed_interactions']:,} removed by k-core), density {density:.3%}",
        f"{info['protocol']}: {splits}; median history {np.median(lengths):g}; {tied.mean():.1%} of users have their last two "
        "at one time (then input order decides)",
        *([reading_line(info), f"{times_line(info, times)}{again(info)}; {text_line(info)}"] if has_facts else []),
        *(odd_times(times, info["times"]["unit"]) if has_facts else []),
        *info.get("notes", []),
        *nothing_to_measure,
        f"files: {folder}",
    ]


def reading_line(info: dict[str, Any]) -> str:
    """What was read, and what each rule left out of it."""
    read, removed = info["read"], info["left_out"]
    k = info["k_core"]
    names = {
        "repeats": "rows that repeat an earlier user, item and time",
        "dates": "outside the dates",
        "k_core": f"k-core (k_user {k['k_user']}, k_item {k['k_item']})",
        "not_taken": "items that nobody took",
    }
    parts = []
    for rule, name in names.items():
        numbers = {
            what: removed[rule][what] for what in ("interactions", "users", "items") if what in removed.get(rule, {})
        }
        if len(numbers) == 1:
            parts.append(f"{sum(numbers.values()):,} {name}")
        elif numbers:
            parts.append(f"{name}: " + ", ".join(f"{number:,} {what}" for what, number in numbers.items()))
    return (
        f"read: {read['interactions']:,} interactions, {read['users']:,} users, {read['items']:,} items, {read['catalogue']:,} in the "
        f"catalogue; left out: {'; '.join(parts) or 'nothing'}"
    )


def times_line(info: dict[str, Any], times: np.ndarray) -> str:
    """The first and the last time, and the median item beside the median history of the line before. times: int64 [interactions]."""
    first, last, unit = (info["times"][name] for name in ("first", "last", "unit"))
    if unit is None:
        told = f"{first:,} to {last:,}, an order and no dates"
    else:
        told = f"{as_day(first, unit)} to {as_day(last, unit)}, in {unit}"
        told += ", whole days" if not (times % (SECONDS_PER_DAY * UNITS[unit])).any() else ""
    return f"times: {told}; median interactions of an item {info['medians']['interactions_of_item']:g}"


def again(info: dict[str, Any]) -> str:
    """How often a user takes an item again, where that happens."""
    if not info["again"]:
        return ""
    share = info["again"] / info["counts"]["interactions"]
    return f"; {info['again']:,} interactions ({share:.1%}) take an item that the user took before: with seen items masked, none is hit"


def text_line(info: dict[str, Any]) -> str:
    """The columns that an item's text is made of, those left out and why, and how many items have none."""
    text = info["text"]
    left_out = (
        "; not " + ", ".join(f"{name.strip() or repr(name)} ({why})" for name, why in text["left_out"].items())
        if text["left_out"]
        else ""
    )
    untitled = f"; without a title, and their id in its place: {text['untitled']:,}" if text["untitled"] else ""
    empty = f", {text['without_text']:,} of them no other text either" if text["without_text"] else ""
    return f"item text: {', '.join(text['columns'])}{left_out}{untitled}{empty}"


def odd_times(times: np.ndarray, unit: str | None) -> list[str]:
    """Warnings of times that lie in the future or before 1980 where most are dates. times: int64 [interactions], in this unit."""
    if unit is None:
        return []
    now, earliest = int(time.time()) * UNITS[unit], EARLIEST * UNITS[unit]
    warnings = []
    for odd, where, why in (
        (times > now, "in the future", "check the clock or the unit of their source"),
        (times < earliest, "before 1980", "a missing time is often written as 0"),
    ):
        if odd.any():
            day = as_day(int(times[odd].max() if where == "in the future" else times[odd].min()), unit)
            warnings.append(f"Warning: interactions {where}: {odd.sum():,}, as far as {day}; {why}.")
    return warnings


def _histories(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The times, and of every user, the number of interactions, and whether the last two have one time (False for a single one)."""
    log = (
        pl.scan_parquet(path, glob=False)
        .select(pl.col("user_id").cast(pl.Categorical), "timestamp")
        .collect(engine="streaming")
    )
    last = run_ends(codes(log["user_id"]))
    lengths = np.diff(last, prepend=-1)
    times = log["timestamp"].to_numpy()
    return times, lengths, (lengths > 1) & (times[last] == times[last - 1])
