from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from sidrec.data.kcore import k_core

Pairs = list[tuple[int, int]]


def frame(pairs: Pairs) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame([(f"u{u}", f"i{i}", row) for row, (u, i) in enumerate(pairs)], schema=schema, orient="row")


def one_at_a_time(pairs: Pairs, k_user: int, k_item: int) -> list[int]:
    """Row numbers left after removing one offending row at a time until none offends."""
    left = list(range(len(pairs)))
    while True:
        users, items = Counter(pairs[row][0] for row in left), Counter(pairs[row][1] for row in left)
        offending = [row for row in left if users[pairs[row][0]] < k_user or items[pairs[row][1]] < k_item]
        if not offending:
            return left
        left.remove(offending[-1])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_equals_brute_force_and_keeps_row_order(pairs: Pairs, k_user: int, k_item: int) -> None:
    assert k_core(frame(pairs), k_user, k_item)["timestamp"].to_list() == one_at_a_time(pairs, k_user, k_item)


def test_a_chain_falls_down_to_nothing() -> None:
    chain = [(n, n + step) for n in range(20) for step in (0, 1)]  # every user has 2, the two end items have 1
    assert k_core(frame(chain), 2, 2).is_empty()
    assert len(k_core(frame(chain), 2, 1)) == 40


def test_repeated_pairs_count_as_often_as_they_occur() -> None:
    assert len(k_core(frame([(0, 0)] * 3), 3, 3)) == 3


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_equals_counting_by_windows_on_larger_logs(seed: int, k_user: int, k_item: int, categorical: bool) -> None:
    """Against the definition in Polars' own words, with popular and rare ids, as strings and as categoricals."""
    rng = np.random.default_rng(seed)
    users, items = (300 * rng.random(2000) ** 2).astype(int), (200 * rng.random(2000) ** 3).astype(int)
    log = frame(list(zip(users.tolist(), items.tolist(), strict=True)))
    wanted = log
    while True:
        next_round = wanted.filter(pl.len().over("user_id") >= k_user, pl.len().over("item_id") >= k_item)
        if len(next_round) == len(wanted):
            break
        wanted = next_round
    given_log = log.with_columns(pl.col("user_id", "item_id").cast(pl.Categorical)) if categorical else log
    core = k_core(given_log, k_user, k_item)
    assert core["timestamp"].to_list() == wanted["timestamp"].to_list()
    assert core["user_id"].cast(pl.String).to_list() == wanted["user_id"].to_list()
