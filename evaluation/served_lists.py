"""A log of lists that were drawn and served: what was shown, with which probability, and what it earned.

A Parquet file, or JSON Lines (.jsonl, .jsonl.gz), one list a row:
    user_id        string or number
    history        item ids, oldest first, as they were when the list was drawn; one at least
    exclude_seen   true or false: whether the items of the history could not be drawn
    items          item ids in the order shown, each once, drawn from all other items of the catalogue
    propensities   a number a slot, above 0 and at most 1: the probability of its item given the items above it (`draw_list`)
    rewards        a number a slot, such as 1 for a click and 0 for none
Further columns are not read. Rows and lines in error messages count from 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.data.json_lines import blocks, parse
from sidrec.data.tables import collect, read_table
from sidrec.pipeline.errors import InputError

COLUMNS = ("user_id", "history", "exclude_seen", "items", "propensities", "rewards")
JSON_ENDINGS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class ServedLists:
    """R lists of at most K slots. users: [R] strings. histories: R int64 arrays of item indices. exclude_seen: bool [R]. items: int64
    [R, K], -1 where a shorter list has ended; there propensities, float64 [R, K], are 1 and rewards, float64 [R, K], 0."""

    users: np.ndarray
    histories: list[np.ndarray]
    exclude_seen: np.ndarray
    items: np.ndarray
    propensities: np.ndarray
    rewards: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def shown(self) -> np.ndarray:
        """bool [R, K]: where a list has an item."""
        return self.items >= 0

    @classmethod
    def read(cls, path: Path, item_ids: list[str]) -> ServedLists:
        """A log of lists of a catalogue whose item i has the id item_ids[i].

        Raises InputError for a file that cannot be read, is empty or lacks a column, and for a row that is not as the format says, which
        it names.
        """
        index_of = {item_id: index for index, item_id in enumerate(item_ids)}
        lists = [_List.of(where, record, index_of) for where, record in _records(path)]
        if not lists:
            raise InputError(f"{path} holds no lists; export it again.")
        return cls(
            np.array([each.user for each in lists]),
            [np.array(each.history, dtype=np.int64) for each in lists],
            np.array([each.exclude_seen for each in lists]),
            _padded([each.items for each in lists], -1).astype(np.int64),
            _padded([each.propensities for each in lists], 1.0),
            _padded([each.rewards for each in lists], 0.0),
        )


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with the words that name it."""
    if path.name.lower().endswith(".parquet"):
        table = collect(path, read_table(path, list(COLUMNS)).select(COLUMNS))
        for row, record in enumerate(table.iter_rows(named=True), 1):
            yield f"{path} row {row}", record
    elif path.name.lower().endswith(JSON_ENDINGS):
        for first, block in blocks(path):
            for number, line in enumerate(block.split(b"\n"), first):
                if line.strip():
                    yield f"{path} line {number}", parse(path, number, line)
    else:
        raise InputError(f"{path} is neither .parquet nor {' nor '.join(JSON_ENDINGS)}; convert it to one of them.")


@dataclass(frozen=True)
class _List:
    user: str
    history: list[int]
    exclude_seen: bool
    items: list[int]
    propensities: list[float]
    rewards: list[float]

    @classmethod
    def of(cls, where: str, record: Mapping[str, Any], index_of: Mapping[str, int]) -> _List:
        """One checked row. where: the words that name it."""
        missing = next((name for name in COLUMNS if record.get(name) is None), None)
        if missing is not None:
            raise InputError(f"{where} has no {missing!r}; every row needs {', '.join(COLUMNS)}.")
        if not _is_id(record["user_id"]):
            raise InputError(f"{where}: user_id is {_shown(record['user_id'])}; it must be a string or a whole number.")
        if not isinstance(record["exclude_seen"], bool):
            raise InputError(f"{where}: exclude_seen is {_shown(record['exclude_seen'])}; it must be true or false.")
        history = _items_of(where, "history", record["history"], index_of)
        items = _items_of(where, "items", record["items"], index_of)
        propensities = _numbers_of(where, "propensities", record["propensities"], len(items))
        rewards = _numbers_of(where, "rewards", record["rewards"], len(items))
        if len(set(items)) < len(items):
            raise InputError(f"{where}: items holds an item twice; a list is drawn without replacement.")
        seen = next((place for place, item in enumerate(items) if item in history), None)
        if record["exclude_seen"] and seen is not None:
            raise InputError(
                f"{where}: items holds {_shown(record['items'][seen])}, an item of the history, which exclude_seen says cannot be drawn; "
                "log exclude_seen as it was."
            )
        for slot, propensity in enumerate(propensities, 1):
            if not 0 < propensity <= 1:
                raise InputError(
                    f"{where}: the propensity of slot {slot} is {propensity}; it must be above 0 and at most 1, the probability with which "
                    "the item was drawn."
                )
        return cls(str(record["user_id"]), history, record["exclude_seen"], items, propensities, rewards)


def _items_of(where: str, name: str, value: Any, index_of: Mapping[str, int]) -> list[int]:
    if not isinstance(value, list) or not value or not all(map(_is_id, value)):
        raise InputError(f"{where}: {name} is {_shown(value)}; it must be a list of item ids, one at least.")
    unknown = next((item for item in value if str(item) not in index_of), None)
    if unknown is not None:
        raise InputError(
            f"{where}: {name} holds the item {_shown(unknown)}, which the run's catalogue lacks; name the run that served these lists, or "
            "leave the row out."
        )
    return [index_of[str(item)] for item in value]


def _numbers_of(where: str, name: str, value: Any, length: int) -> list[float]:
    if not isinstance(value, list) or not all(map(_is_number, value)):
        raise InputError(f"{where}: {name} is {_shown(value)}; it must be a list of numbers, one for each slot.")
    if len(value) != length:
        raise InputError(f"{where}: {name} has {len(value)} numbers for {length} items; log one for each slot.")
    return [float(each) for each in value]


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Finite, and a float64."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:60] + "…"


def _padded(rows: list[list[Any]], padding: float) -> np.ndarray:
    """float64 [R, K] of rows of different lengths."""
    padded = np.full((len(rows), max(map(len, rows))), padding, dtype=np.float64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
