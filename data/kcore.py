"""k-core: drop users and items with too few interactions, again and again, until nothing changes."""

from __future__ import annotations

import numpy as np
import polars as pl

from sidrec.data.codes import codes


def k_core(interactions: pl.DataFrame, k_user: int, k_item: int) -> pl.DataFrame:
    """The largest part of the log in which every user has at least `k_user` rows and every item at least `k_item`.

    interactions: any frame with `user_id` and `item_id`; a repeated pair counts as often as it occurs. The order of the rows is
    kept. The result is unique: it does not depend on whether users or items are dropped first. Beside the frame it takes about
    ten bytes per row.
    """
    columns = [(codes(interactions["user_id"]), k_user), (codes(interactions["item_id"]), k_item)]
    counts = [np.bincount(code) for code, _ in columns]
    in_core = np.ones(len(interactions), dtype=bool)
    while True:
        dropped = np.zeros(len(interactions), dtype=bool)
        for (code, k), count in zip(columns, counts, strict=True):
            dropped |= (count < k)[code]
        dropped &= in_core
        if not dropped.any():
            return interactions if in_core.all() else interactions.filter(pl.Series(in_core))
        in_core ^= dropped
        for (code, _), count in zip(columns, counts, strict=True):
            count -= np.bincount(code[dropped], minlength=len(count))
