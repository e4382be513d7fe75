"""How many codes each level has: what suits a catalogue, and what cannot work."""

from __future__ import annotations

import math

from sidrec.pipeline.errors import InputError

LEVEL_LETTERS = "abcdefgh"  # what the tokens of each level begin with, so there are at most 8
MOST_ITEMS_OF_TWO_LEVELS = 32_768


def default_level_sizes(n_items: int, unique: str = "assign") -> list[int]:
    """The level sizes of a catalogue whose owner names none: few levels, because every level is one more token an item.

    With an own token, one level of clusters before it.
    """
    if unique == "own_token":
        return fitting_level_sizes(n_items, n_levels=1, room=0)
    return fitting_level_sizes(n_items, n_levels=2 if n_items <= MOST_ITEMS_OF_TWO_LEVELS else 3)


def fitting_level_sizes(n_items: int, n_levels: int, room: int | None = None) -> list[int]:
    """Equal level sizes that suit a catalogue: a power of two, about 16 items per code, `room` for this many (default: every item)."""
    size = 2
    while size**n_levels < (n_items if room is None else room) or size * 2 <= min(256, n_items // 16):
        size *= 2
    return [min(size, n_items)] * n_levels


def check_level_sizes(level_sizes: list[int], n_items: int, clustered: int | None = None, unique: bool = True) -> None:
    """Raises InputError when a level has more codes than there are items, or when there are fewer paths than items.

    clustered: how many levels, from the first, the former is wrong for; default: all. unique: whether every item needs a path of its own.
    """
    fitting = fitting_level_sizes(n_items, len(level_sizes))
    remedy = f"--level_sizes {' '.join(map(str, fitting))} would fit"
    for level, size in enumerate(level_sizes[:clustered], start=1):
        if size > n_items:
            raise InputError(
                f"the catalogue has {n_items} items, fewer than the {size} codes of level {level}; {remedy}."
            )
    if unique and math.prod(level_sizes) < n_items:
        product = " x ".join(map(str, level_sizes))
        raise InputError(
            f"level_sizes give {product} = {math.prod(level_sizes)} semantic IDs, fewer than the {n_items} items; {remedy}."
        )


def check_n_levels(level_sizes: list[int], unique: str) -> None:
    """Raises InputError when there are more levels than letters for them, with the extra token where there is one."""
    extra = {"dedup_token": " and a dedup token", "own_token": " and an own token"}.get(unique, "")
    if len(level_sizes) + bool(extra) > len(LEVEL_LETTERS):
        raise InputError(
            f"{len(level_sizes)} levels{extra} are too many; a semantic ID has at most {len(LEVEL_LETTERS)}."
        )
