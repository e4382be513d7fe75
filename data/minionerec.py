"""MiniOneRec's prepared folders (arXiv 2510.24431): train/, valid/ and test/ with CSVs, info/ and index/.

A row of a CSV is one next-item sample: a user, the last ten items at most, and the item taken next, in time order over all users and
without a time. The log is rebuilt from them.
"""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path
from typing import Any

import polars as pl

from sidrec.data.dialect import quote
from sidrec.data.readers import RawLog, checked
from sidrec.data.split import NAMES
from sidrec.data.tables import require_file
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_text

COLUMNS = ("user_id", "history_item_id", "item_id")
TEXTS = ("brand", "categories", "description")


def find_minionerec(category: str, folder: Path) -> tuple[Path, ...]:
    """The CSVs of a category in the order train, valid, test, then its catalogue; train may be missing, as in the public copies.

    The catalogue is index/CATEGORY.item.json, or else info/CATEGORY*.txt, which has titles only. Raises InputError naming what is
    missing.
    """
    samples = [path for name in NAMES for path in sorted((folder / name).glob(f"{category}*.csv"))[:1]]
    present = {path.parent.name for path in samples}
    for name in ("valid", "test"):
        if name not in present:
            raise InputError(f"{folder} holds no {name}/{category}*.csv; check the folder and --category {category}.")
    catalogues = [folder / "index" / f"{category}.item.json", *sorted((folder / "info").glob(f"{category}*.txt"))]
    catalogue = next((path for path in catalogues if path.is_file()), None)
    if catalogue is None:
        raise InputError(
            f"{folder} holds neither index/{category}.item.json nor info/{category}*.txt; check the folder."
        )
    return (*samples, catalogue)


def read_minionerec(files: tuple[Path, ...]) -> RawLog:
    """The log and catalogue of `find_minionerec`'s files: title, brand, categories, description, and the publisher's `split`.

    The timestamp is the number of the sample that the item is the answer to, counted over all files: it keeps the order, and is no
    time. Raises InputError for a file that is not of this kind, naming the row.
    """
    *samples, catalogue = files
    items = _items_of_json(catalogue) if catalogue.suffix == ".json" else _items_of_info(catalogue)
    rows = [(path, number, row) for path in samples for number, row in enumerate(_rows(path), 1)]
    log = _rebuilt(rows, set(items["item_id"]))
    notes: tuple[str, ...] = ()
    if samples[0].parent.name != "train":
        notes = (
            f"{samples[0].parent.parent.name}/ has no file in train/, so the log holds only what valid and test tell: "
            "the users in them and at most the ten items before their first sample.",
        )
    return checked(samples[-1], log.lazy(), catalogue, items, "interaction", notes)


def _rows(path: Path) -> list[dict[str, str]]:
    require_file(path)
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            rows, names = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as csv ({error}); download it again.") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; check that this is one of MiniOneRec's files.")
    return rows


def _rebuilt(samples: list[tuple[Path, int, dict[str, str]]], known: set[str]) -> pl.DataFrame:
    """user_id, item_id, timestamp, split: each user's histories laid over one another, then the answers."""
    histories: dict[str, list[str]] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("user_id", "item_id", "timestamp", "split")}
    for time, (path, number, row) in enumerate(samples):
        user, split = row["user_id"], path.parent.name
        history, answer = _history(path, number, row["history_item_id"]), row["item_id"]
        unknown = next((item for item in (*history, answer) if item not in known), None)
        if unknown is not None:
            raise InputError(
                f"{path} row {number}: item {unknown!r} is not in the catalogue; check that both are of one run."
            )
        before = histories.setdefault(user, [])
        new = history[_overlap(before, history) :]  # all of it at a user's first row, else what missing rows would tell
        for item, name in [*((item, NAMES[0]) for item in new), (answer, split)]:
            before.append(item)
            for column, value in zip(columns.values(), (user, item, time, name), strict=True):
                column.append(value)
    return pl.DataFrame(columns, schema_overrides={"split": pl.Enum(NAMES)})


def _history(path: Path, number: int, text: str | None) -> list[str]:
    try:
        items = json.loads(text or "")
    except (json.JSONDecodeError, RecursionError):
        items = None
    if not isinstance(items, list):
        raise InputError(f"{path} row {number}: history_item_id is {quote(str(text))}, not a list such as [3, 14].")
    return [str(item) for item in items]


def _overlap(before: list[str], history: list[str]) -> int:
    """The largest n for which the first n items of `history` are the last n of `before`."""
    most = min(len(before), len(history))
    return next(n for n in range(most, -1, -1) if before[len(before) - n :] == history[:n])


def _items_of_json(path: Path) -> pl.DataFrame:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); download it again.") from error
    if not isinstance(content, dict) or not all(isinstance(item, dict) for item in content.values()):
        raise InputError(f"{path} does not map item numbers to objects; check that this is MiniOneRec's item.json.")
    rows = [(item_id, *(_text(item.get(name)) for name in ("title", *TEXTS))) for item_id, item in content.items()]
    return pl.DataFrame(rows, schema=dict.fromkeys(("item_id", "title", *TEXTS), pl.String), orient="row")


def _items_of_info(path: Path) -> pl.DataFrame:
    """Lines of `semantic ID, title, item number`, separated by tabs."""
    rows = [line.split("\t") for line in read_text(path).rstrip("\n").split("\n")]
    odd = next((number for number, fields in enumerate(rows, 1) if len(fields) != 3), None)
    if odd is not None:
        raise InputError(
            f"{path} line {odd} has not the 3 fields semantic ID, title and item number; download it again."
        )
    return pl.DataFrame({"item_id": [row[2] for row in rows], "title": [row[1] for row in rows]})


def _text(value: object) -> str | None:
    """A field's text; a list is often written as Python's text for it ("['one', 'two']")."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # all that `literal_eval` raises
            return str(value)
    if isinstance(value, list):
        return " ".join(str(part) for part in value) or None
    return str(value) if value else None
