"""Which users and items of the source the data do not hold, and by which rule they were left out.

dates      no interaction lies within --from_date and --to_date
k_core     too few interactions, with --k_user and --k_item
not_taken  an item of the catalogue that nobody in the log has taken
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

LEFT_OUT = {"kind": pl.String, "id": pl.String, "title": pl.String, "rule": pl.String, "interactions": pl.Int64}
KINDS = ("user", "item")


class Filters:
    """Follows a log through its filters by counts alone, and never holds the log.

    read: rows of the file, users and items in them, and items of the catalogue. counts: by rule, what it left out: interactions, users,
    items.
    """

    def __init__(self, log: pl.DataFrame, items: pl.DataFrame, repeats: int) -> None:
        """log: as read, without its `repeats` rows that say what an earlier one says. items: the catalogue."""
        self._titles = items.select("item_id", "title")
        self._counted = {kind: _counted(log, kind) for kind in KINDS}
        self._gone: list[pl.DataFrame] = []
        self.read = {"interactions": len(log) + repeats, "users": len(self._counted["user"])}
        self.read |= {"items": len(self._counted["item"]), "catalogue": len(items)}
        self.counts: dict[str, dict[str, int]] = {"repeats": {"interactions": repeats}} if repeats else {}
        in_log = self._counted["item"]["id"].cast(pl.String)
        nobodys = items["item_id"].filter(~items["item_id"].is_in(in_log.implode()))
        if len(nobodys):
            self.counts["not_taken"] = {"items": len(nobodys)}
            self._note("item", "not_taken", pl.DataFrame({"id": nobodys, "interactions": 0}))

    def passed(self, rule: str, log: pl.DataFrame) -> None:
        """Note what this rule left out of the log; log: what is left."""
        removed = int(self._counted["user"]["interactions"].sum()) - len(log)
        self.counts[rule] = {"interactions": removed}
        for kind in KINDS:
            before, after = self._counted[kind], _counted(log, kind)
            gone = before.filter(~before["id"].is_in(after["id"].implode()))
            self.counts[rule][f"{kind}s"] = len(gone)
            self._note(kind, rule, gone.with_columns(pl.col("id").cast(pl.String)))
            self._counted[kind] = after

    def keep_items(self) -> list[str]:
        """Take items, unlike users and interactions, back from what was left out; a sentence that says how many."""
        n_items = sum(counted.pop("items", 0) for counted in self.counts.values())
        self.counts = {rule: counted for rule, counted in self.counts.items() if counted}
        self._gone = [frame for frame in self._gone if "item" not in frame["kind"]]
        return [
            f"Items without an interaction that stay in the catalogue: {n_items:,}; nothing is known of them but their text."
        ]

    def medians(self) -> dict[str, float]:
        """Of what is left: the median number of interactions of a user, and of an item."""
        return {f"interactions_of_{kind}": float(np.median(self._counted[kind]["interactions"])) for kind in KINDS}

    def left_out(self) -> pl.DataFrame:
        """kind ("user", "item"), id, title (of items), rule, and the interactions when the rule was applied; users first, by id."""
        table = pl.concat(
            [pl.DataFrame(schema=LEFT_OUT), *(frame.cast({"interactions": pl.Int64}) for frame in self._gone)]
        )
        return table.sort(pl.col("kind") != "user", "id")

    def _note(self, kind: str, rule: str, gone: pl.DataFrame) -> None:
        """gone: id (strings) and interactions."""
        titles = self._titles if kind == "item" else self._titles.clear()  # a user has none
        titled = gone.join(titles, left_on="id", right_on="item_id", how="left")
        self._gone.append(
            titled.select(pl.lit(kind).alias("kind"), "id", "title", pl.lit(rule).alias("rule"), "interactions")
        )


def _counted(log: pl.DataFrame, kind: str) -> pl.DataFrame:
    """id (categorical, each once) and interactions."""
    return log.select(id=f"{kind}_id").group_by("id").agg(interactions=pl.len())


def why_left_out(left_out: pl.DataFrame, info: dict[str, Any], kind: str, name: str) -> str | None:
    """Half a sentence on the user or item that the source has and the data have not: `was left out …`; None where there is none.

    left_out, info: of the data set. kind: "user" or "item". name: its id.
    """
    rows = left_out.filter((pl.col("kind") == kind) & (pl.col("id") == name))
    if rows.is_empty():
        return None
    rule, n = rows["rule"][0], rows["interactions"][0]
    interactions = f"{n:,} interaction{'' if n == 1 else 's'}"
    if rule == "not_taken":
        return "was left out, as nobody in the log has taken it; nothing is known of it but its text"
    if rule == "dates":
        window = f"from {info.get('from_date') or 'the beginning'} to {info.get('to_date') or 'the end'}"
        return f"was left out by the dates ({interactions}, none {window}); prepare the data with others to keep it"
    k = info["k_core"]
    return (
        f"was left out by the k-core ({interactions}; k_user {k['k_user']}, k_item {k['k_item']}); prepare the data with a lower "
        f"--k_user or --k_item to keep it"
    )
