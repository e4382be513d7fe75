"""Small logs with a column of values."""

from __future__ import annotations

import numpy as np
import polars as pl

from sidrec.data.dataset import Dataset

N, USERS = 30, 60


def valued_dataset(change: dict[str, float] | None = None, gaps: bool = False) -> Dataset:
    """Items of some quality, users of some taste. change: user -> what is added to all of its values. gaps: some events have none."""
    rng = np.random.default_rng(0)
    quality, taste, nature = rng.normal(size=N), rng.normal(scale=0.5, size=(USERS, 2)), rng.normal(size=(N, 2))
    rows = []
    for user in range(USERS):
        items = rng.permutation(N)[: rng.integers(6, 20)]
        noise = rng.normal(scale=0.2, size=len(items))
        values = 3 + quality[items] + nature[items] @ taste[user] + noise + (change or {}).get(f"u{user}", 0.0)
        missing = rng.random(len(items)) < 0.2 * gaps
        splits = ["train"] * (len(items) - 2) + ["valid", "test"]
        for t, (item, value, split) in enumerate(zip(items, values, splits, strict=True)):
            rows.append((f"u{user}", int(item), t, split, None if missing[t] else float(value)))
    log = pl.DataFrame(rows, schema=["user_id", "item_index", "timestamp", "split", "rating"], orient="row")
    items = pl.DataFrame({"item_id": [str(i) for i in range(N)], "item_index": range(N), "title": "t", "text": "t"})
    return Dataset(items, log, {"name": "small", "protocol": "leave_one_out"})
