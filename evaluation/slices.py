"""Test cases in slices: by the length of the history and by how often the item that came next was taken in training.

Every slice is chosen from histories and training counts, never from ranks; it says how many cases it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import ndcg_at, recall_at
from sidrec.evaluation.statistics import bootstrap_interval
from sidrec.evaluation.table import ranks_by_repeat

QUARTERS = 4
COLD_INTERACTIONS = 5
TAIL_SHARE = 0.2
K = 10
FIGURES = ("recall@10", "ndcg@10", "gain", "low", "high")
COLUMNS: dict[str, type[pl.DataType]] = {"kind": pl.String, "slice": pl.String, "cases": pl.Int64, "model": pl.String}
COLUMNS |= dict.fromkeys(FIGURES, pl.Float64)


@dataclass(frozen=True)
class Slice:
    """kind: what cases are told apart by. label: which of them. member: bool [cases]."""

    kind: str
    label: str
    member: np.ndarray


def training_counts(dataset: Dataset) -> np.ndarray:
    """How many training interactions each item has, int64 [N]."""
    return np.bincount(np.concatenate(dataset.train_sequences), minlength=dataset.n_items)


def quantile_groups(values: np.ndarray, groups: int) -> np.ndarray:
    """The group of each value, int64 in 0…groups-1, rising with the value: of equal size but that equal values stay together.

    values: [B]. With many equal values a group may be empty.
    """
    borders = np.quantile(values, np.arange(1, groups) / groups, method="inverted_cdf")
    return np.searchsorted(borders, values, side="left")


def tail_limit(counts: np.ndarray, share: float = TAIL_SHARE) -> int:
    """The long tail is all items with at most so many training interactions: the most for which they have at most `share` of all.

    counts: int [N]. Items with one count are in it together or not at all; -1 where even the rarest have more than `share`.
    """
    values, items = np.unique(counts, return_counts=True)
    within = np.cumsum(values * items) <= share * counts.sum()
    return int(values[within][-1]) if within.any() else -1


def find_slices(cases: EvalCases, counts: np.ndarray) -> list[Slice]:
    """All slices of the cases. counts: int [N], training interactions of each item. Empty quarters are left out."""
    lengths = np.array([len(history) for history in cases.histories])
    popularity = counts[cases.targets]
    limit = tail_limit(counts)
    cold, tail = popularity <= COLD_INTERACTIONS, popularity <= limit
    return [
        *_quarters("history length", lengths),
        *_quarters("item popularity", popularity),
        Slice("cold items", f"≤ {COLD_INTERACTIONS}", cold),
        Slice("cold items", f"> {COLD_INTERACTIONS}", ~cold),
        Slice("long tail", f"≤ {limit}" if limit >= 0 else "no items", tail),
        Slice("long tail", f"> {limit}" if limit >= 0 else "all items", ~tail),
    ]


def _quarters(kind: str, values: np.ndarray) -> list[Slice]:
    group = quantile_groups(values, QUARTERS)
    members = [group == place for place in range(QUARTERS)]
    return [Slice(kind, _span(values[member]), member) for member in members if member.any()]


def _span(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low}–{high}" if low < high else f"{low}"


def slice_table(ranks: pl.DataFrame, dataset: Dataset, baseline: str | None, seed: int) -> pl.DataFrame:
    """Each model in each slice of the test cases, seen items masked: a row a slice and model.

    ranks: as ranks.parquet. Columns: kind, slice, cases, model, recall@10, ndcg@10; gain: Recall@10 less that of `baseline` on the same
    cases, with low and high, its 95 % bootstrap interval over users. Null where there are no cases; gains also for the baseline itself.
    """
    cases = dataset.cases("test")
    users = np.unique(cases.user_ids, return_inverse=True)[1]
    ranks_of_model = {
        name: ranks_by_repeat(ranks, name, "test", True) for name in ranks["model"].unique(maintain_order=True)
    }
    assert all(values.shape[1] == len(cases) for values in ranks_of_model.values())
    rows: list[dict[str, Any]] = []
    for part in find_slices(cases, training_counts(dataset)):
        n = int(part.member.sum())
        for model, values in ranks_of_model.items():
            others = None if baseline in (None, model) else ranks_of_model[baseline][:, part.member]
            row = {"kind": part.kind, "slice": part.label, "cases": n, "model": model}
            rows.append(row | _figures(values[:, part.member], others, users[part.member], seed))
    return pl.DataFrame(rows, schema=COLUMNS)


def _figures(ranks: np.ndarray, others: np.ndarray | None, users: np.ndarray, seed: int) -> dict[str, float | None]:
    """A row's figures. ranks: int [repeats, cases of the slice]; others: the baseline's on the same cases; users: [cases]."""
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    if not len(users):
        return figures
    hits = recall_at(ranks, K).mean(axis=0)
    figures |= {"recall@10": float(hits.mean()), "ndcg@10": float(ndcg_at(ranks, K).mean())}
    if others is not None:
        gains = hits - recall_at(others, K).mean(axis=0)
        low, high = bootstrap_interval(gains, seed, users=users)
        figures |= {"gain": float(gains.mean()), "low": low, "high": high}
    return figures
