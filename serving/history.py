"""Whose history is asked about: a user of the data, or item ids and titles that somebody types."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import numpy as np
import polars as pl

from sidrec.data.dataset import Dataset
from sidrec.data.filters import why_left_out
from sidrec.pipeline.errors import InputError

LISTED_CANDIDATES = 10


def history_of_user(dataset: Dataset, user: str, folder: Path) -> np.ndarray:
    """All items of a user of the data, oldest first, int64. folder: of the data, for the message. Raises InputError for an unknown user."""
    rows = dataset.interactions.filter(pl.col("user_id") == user)
    if not len(rows):
        reason = why_left_out(dataset.left_out, dataset.info, "user", user)
        if reason is not None:
            raise InputError(f"--user {user}: this user {reason}.")
        known = ", ".join(dataset.interactions["user_id"].unique(maintain_order=True).head(3).to_list())
        raise InputError(f"--user {user}: no such user_id in {folder}; the first ones are {known}.")
    return rows["item_index"].to_numpy().astype(np.int64)


def history_of_items(items: pl.DataFrame, queries: list[str], dataset: Dataset | None = None) -> np.ndarray:
    """The items that are asked for by id or title, in that order, int64. items: item_id and title of item i in row i.

    What is an item's id is that item; anything else is a title, see `find_title`. dataset: where it is at hand, the one that the items are
    of: an item that a filter has left out of it is named as such. Raises InputError for a query that is no one item.
    """
    index_of, titles = {name: index for index, name in enumerate(items["item_id"])}, items["title"].to_list()
    history = []
    for query in queries:
        index = index_of.get(query.strip())
        if index is None and dataset is not None:
            refuse_left_out(dataset, query)
        history.append(find_title(titles, query) if index is None else index)
    return np.array(history, dtype=np.int64)


def refuse_left_out(dataset: Dataset, query: str) -> None:
    """Raise InputError where no title in the data holds `query`, and it is the id or title of an item, or is in the title of one, which a
    filter has left out."""
    wanted = query.casefold().strip()
    if not wanted or any(wanted in title.casefold() for title in dataset.titles):
        return
    items = dataset.left_out.filter(pl.col("kind") == "item")
    folded = [title.casefold() for title in items["title"]]
    rows = [row for row, name in enumerate(items["id"]) if name == query.strip()]
    rows += [row for row, title in enumerate(folded) if title == wanted]
    rows += [row for row, title in enumerate(folded) if wanted in title]
    if rows:
        name, title = items["id"][rows[0]], items["title"][rows[0]]
        reason = why_left_out(items, dataset.info, "item", name)
        raise InputError(f"--history {query!r}: the item {name} ({title}) {reason}.")


def find_title(titles: list[str], query: str) -> int:
    """Item index of the one title that is `query`, is it but for a year in brackets, or holds it; letter case does not count.

    Raises InputError that lists the candidates when there are several, and the closest titles when there is none.
    """
    wanted = query.casefold().strip()
    if not wanted:
        raise InputError("--history holds an empty title; give an item_id, or at least a part of a title.")
    folded = [title.casefold() for title in titles]
    without_year = [re.sub(r"\s*\(\d{4}\)$", "", title) for title in folded]
    for matches in (
        [i for i, title in enumerate(folded) if title == wanted],
        [i for i, title in enumerate(without_year) if title == wanted],
        [i for i, title in enumerate(folded) if wanted in title],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = "; ".join(titles[i] for i in matches[:LISTED_CANDIDATES])
            more = f"; and {len(matches) - LISTED_CANDIDATES} more" if len(matches) > LISTED_CANDIDATES else ""
            raise InputError(f"--history {query!r} fits {len(matches)} items: {listed}{more}. Type more of the title.")
    close = difflib.get_close_matches(wanted, without_year, n=3, cutoff=0.5)
    near = "; ".join(titles[without_year.index(title)] for title in close)
    hint = f"perhaps you mean: {near}" if near else f"and none is near; titles are such as {titles[0]!r}"
    raise InputError(f"--history {query!r} is no item_id and in no title; {hint}.")
