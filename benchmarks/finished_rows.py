"""A benchmark's table as it grows: finished rows are saved in a JSON file, so that none is computed twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json

Row = dict[str, Any]


class FinishedRows:
    """The rows of the JSON file at `path`, by name. A row counts as finished only for what it was made from."""

    def __init__(self, path: Path) -> None:
        """Raises InputError when there is a file that holds something else."""
        self.path = path
        self.rows: dict[str, Row] = {}
        if path.exists():
            try:
                self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is not a table of this benchmark; give another file or delete it.") from error

    def find(self, name: str, made_from: Row) -> Row | None:
        """The row of that name, if it was made from exactly this."""
        row = self.rows.get(name)
        return row if row is not None and row["made_from"] == _as_json(made_from) else None

    def keep(self, name: str, made_from: Row, row: Row) -> Row:
        """Write the row to the file at once; returns it as a later run will find it."""
        self.rows[name] = _as_json(row | {"made_from": made_from})
        write_json(self.path, {"rows": self.rows})
        return self.rows[name]


def _as_json(value: Row) -> Row:
    return json.loads(json.dumps(value, default=str))


def grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by their values of `fields`, groups in the order of their first rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[field] for field in fields), []).append(row)
    return groups


def mean_figures(rows: list[Row], part: str) -> dict[str, float]:
    """The mean over rows of every figure in `part`, a dictionary in each of them."""
    return {figure: float(np.mean([row[part][figure] for row in rows])) for figure in rows[0][part]}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column aligned left, the others right."""
    assert all(len(row) == len(header) for row in rows)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
