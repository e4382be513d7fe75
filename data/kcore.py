"""k-core: drop users and items with too few interactions, again and again, until nothing changes."""

from __future__ import annotations

import polars as pl


def k_core(interactions: pl.DataFrame, k_user: int, k_item: int) -> pl.DataFrame:
    """The largest part of the log in which every user has at least `k_user` rows and every item at least `k_item`.

    interactions: any frame with `user_id` and `item_id`; a repeated pair counts as often as it occurs. The order of the rows is
    kept. The result is unique: it does not depend on whether users or items are dropped first.
    """
    while True:
        kept = interactions.filter(pl.len().over("user_id") >= k_user, pl.len().over("item_id") >= k_item)
        if len(kept) == len(interactions):
            return interactions
        interactions = kept
