from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.data.split import global_time, leave_one_out, leave_one_out_ties_shuffled

Log = list[tuple[str, int]]
logs = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 6)), max_size=40)


def frame(log: Log) -> pl.DataFrame:
    """item_id is the number of the input row."""
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame([(user, str(row), time) for row, (user, time) in enumerate(log)], schema=schema, orient="row")


def expected_order(log: Log) -> list[str]:
    return [str(row) for row in sorted(range(len(log)), key=lambda row: (log[row][0], log[row][1], row))]


@given(logs)
def test_leave_one_out_equals_brute_force(log: Log) -> None:
    got = leave_one_out(frame(log))
    assert got["item_id"].to_list() == expected_order(log)
    wanted = {}
    for user in "abcd":
        rows = sorted((time, row) for row, (name, time) in enumerate(log) if name == user)
        names = ["train"] * len(rows)
        if len(rows) >= 3:
            names[-2:] = ["valid", "test"]
        wanted |= {str(row): name for (_, row), name in zip(rows, names, strict=True)}
    assert dict(zip(got["item_id"], got["split"], strict=True)) == wanted


@given(logs)
def test_global_time_equals_brute_force(log: Log) -> None:
    got = global_time(frame(log))
    assert got["item_id"].to_list() == expected_order(log)
    in_time = sorted(range(len(log)), key=lambda row: (log[row][1], row))
    n = len(log)
    wanted = {
        str(row): "train" if p < n * 8 // 10 else "valid" if p < n * 9 // 10 else "test"
        for p, row in enumerate(in_time)
    }
    assert dict(zip(got["item_id"], got["split"], strict=True)) == wanted


@given(logs)
def test_global_time_never_trains_on_what_comes_after_a_test(log: Log) -> None:
    got = global_time(frame(log))
    times = {name: got.filter(pl.col("split") == name)["timestamp"].to_list() for name in ("train", "valid", "test")}
    for earlier, later in (("train", "valid"), ("valid", "test"), ("train", "test")):
        if times[earlier] and times[later]:
            assert max(times[earlier]) <= min(times[later])


def test_ties_go_by_input_order() -> None:
    got = leave_one_out(frame([("a", 5), ("b", 1), ("a", 5), ("a", 5), ("a", 5)]))
    assert got.filter(pl.col("user_id") == "a").select("item_id", "split").rows() == [
        ("0", "train"),
        ("2", "train"),
        ("3", "valid"),
        ("4", "test"),
    ]


@pytest.mark.parametrize("protocol", [leave_one_out, global_time])
def test_ties_go_by_input_order_in_a_large_log(protocol: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Small tables sort stably by accident; large ones only when asked to."""
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 3, 50_000).tolist(), rng.integers(0, 3, 50_000).tolist()
    log = [("abc"[user], time) for user, time in zip(users, times, strict=True)]
    assert protocol(frame(log))["item_id"].to_list() == expected_order(log)


@given(logs, st.integers(0, 5))
def test_shuffled_ties_are_a_valid_leave_one_out_of_the_same_rows(log: Log, seed: int) -> None:
    got = leave_one_out_ties_shuffled(frame(log), seed)
    assert sorted(got["item_id"]) == sorted(str(row) for row in range(len(log)))
    rows = got.select("user_id", "timestamp").rows()
    assert rows == sorted(rows)
    assert got["split"].to_list() == leave_one_out(frame(log))["split"].to_list()
    times = {str(row): (user, time) for row, (user, time) in enumerate(log)}
    assert [times[item] for item in got["item_id"]] == rows


def test_every_order_of_a_tie_is_drawn_about_equally_often_and_times_are_kept() -> None:
    log = frame([("a", 1), ("a", 2), ("a", 2), ("a", 2), ("a", 3)])
    orders = [tuple(leave_one_out_ties_shuffled(log, seed)["item_id"]) for seed in range(600)]
    assert {(order[0], order[-1]) for order in orders} == {("0", "4")}
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 60


def test_shuffled_ties_are_decided_by_the_seed() -> None:
    log = frame([("a", 1)] * 30)
    first, again, other = (leave_one_out_ties_shuffled(log, seed)["item_id"].to_list() for seed in (3, 3, 4))
    assert first == again
    assert first != other
