"""Whose history is asked about: users of a log, or item ids and titles that somebody types.

What is asked is a frame: user_id; history, item indices, oldest first, null for none; why_empty, what is said where there is none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.dataset import Dataset
from sidrec.data.filters import why_left_out
from sidrec.data.readers import read_log
from sidrec.pipeline.errors import InputError

LISTED_CANDIDATES = 10
ASKED: dict[str, Any] = {"user_id": pl.String, "history": pl.List(pl.Int64), "why_empty": pl.String}


def histories_by_user(log: pl.DataFrame) -> pl.DataFrame:
    """user_id and history of every user, in the log's order. log: user_id and item_index, of each user in order of time."""
    grouped = log.group_by("user_id", maintain_order=True).agg(history=pl.col("item_index").cast(pl.Int64))
    return grouped.with_columns(pl.col("user_id").cast(pl.String))


def histories_of_log(path: Path, items: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """`histories_by_user` of a file with user_id, item_id and timestamp, and how many rows are left out as no item of `items` is theirs.

    A user with such rows only has an empty history. Raises InputError where the file does not fit.
    """
    places = items.select("item_id", item_index=pl.int_range(pl.len(), dtype=pl.Int64))
    log = read_log(path).with_columns(pl.col("item_id").cast(pl.String)).sort("timestamp", maintain_order=True)
    log = log.join(places, on="item_id", how="left", maintain_order="left")
    by_user = histories_by_user(log).with_columns(pl.col("history").list.drop_nulls())
    return by_user, log["item_index"].null_count()


def asked_of_histories(histories: Sequence[np.ndarray], users: Sequence[str | None]) -> pl.DataFrame:
    """What is asked about histories that are known themselves."""
    columns = {"user_id": users, "history": [history.tolist() for history in histories]}
    return pl.DataFrame(columns | {"why_empty": [None] * len(histories)}, schema=ASKED)


def items_of_ids(index_of: dict[str, int], names: Sequence[str], dataset: Dataset | None = None) -> np.ndarray:
    """int64: the items of these ids; a word that is no id may be several, separated by commas. index_of: by item_id. dataset: as of
    `history_of_items`. Raises InputError for an unknown id."""
    ids = [part for name in names for part in ([name] if name in index_of else name.split(",")) if part.strip()]
    history = []
    for name in ids:
        index = index_of.get(name, index_of.get(name.strip()))
        if index is None:
            if dataset is not None:
                _refuse_left_out_id(dataset, name.strip())
            near = difflib.get_close_matches(name, index_of, n=3, cutoff=0.6) or list(index_of)[:3]
            raise InputError(f"{name!r} is no item_id of the catalogue; item ids are such as {', '.join(near)}.")
        history.append(index)
    return np.array(history, dtype=np.int64)


def history_of_items(
    items: pl.DataFrame, queries: list[str], dataset: Dataset | None = None, ids: bool = True
) -> np.ndarray:
    """The items that are asked for by id or title, in that order, int64. items: item_id and title of item i in row i.

    What is an item's id is that item; anything else is a title, see `find_title`. dataset: where it is at hand, the one that the items are
    of: an item that a filter has left out of it is named as such. ids: whether an id is one, and not only a title. Raises InputError for a
    query that is no one item.
    """
    index_of = {name: index for index, name in enumerate(items["item_id"])} if ids else {}
    titles = items["title"].to_list()
    history = []
    for query in queries:
        index = index_of.get(query.strip())
        if index is None and dataset is not None:
            refuse_left_out(dataset, query)
        history.append(find_title(titles, query) if index is None else index)
    return np.array(history, dtype=np.int64)


def _refuse_left_out_id(dataset: Dataset, name: str) -> None:
    """Raise InputError where a filter has left out the item of this id."""
    reason = why_left_out(dataset.left_out, dataset.info, "item", name)
    if reason is not None:
        raise InputError(f"the item {name} {reason}.")


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
        raise InputError(f"{query!r}: the item {name} ({title}) {reason}.")


def find_title(titles: list[str], query: str) -> int:
    """Item index of the one title that is `query`, is it but for a year in brackets, or holds it; letter case does not count.

    Raises InputError that lists the candidates when there are several, and the closest titles when there is none.
    """
    wanted = query.casefold().strip()
    if not wanted:
        raise InputError("an empty title was given; give an item_id, or at least a part of a title.")
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
            raise InputError(f"{query!r} fits {len(matches)} items: {listed}{more}. Type more of the title.")
    close = difflib.get_close_matches(wanted, without_year, n=3, cutoff=0.5)
    near = "; ".join(titles[without_year.index(title)] for title in close)
    hint = f"perhaps you mean: {near}" if near else f"and none is near; titles are such as {titles[0]!r}"
    raise InputError(f"{query!r} is no item_id and in no title; {hint}.")
