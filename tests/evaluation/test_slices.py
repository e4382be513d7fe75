"""Slices of the test cases and their figures, against brute force."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.data.dataset import Dataset, EvalCases
from sidrec.evaluation.slices import Slice, find_slices, quantile_groups, slice_table, tail_limit, training_counts
from sidrec.evaluation.statistics import bootstrap_interval

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=20)


def dataset() -> Dataset:
    """Four users; item 0 is in training 6 times, item 1 twice, item 2 once, item 3 never."""
    histories = {"a": [0, 1, 0], "b": [0, 0, 2, 0], "c": [0], "d": [1]}
    targets = {"a": 0, "b": 3, "c": 1, "d": 0}
    rows = []
    for user, items in histories.items():
        rows += [(user, item, time, "train") for time, item in enumerate(items)] + [(user, targets[user], 99, "test")]
    log = pl.DataFrame(rows, schema=["user_id", "item_index", "timestamp", "split"], orient="row")
    return Dataset(pl.DataFrame({"item_index": range(4), "title": list("wxyz")}), log, {"name": "small"})


def ranks(**by_model: list[int]) -> pl.DataFrame:
    frames = []
    for model, values in by_model.items():
        for split, masked in (("valid", True), ("test", True), ("test", False)):
            right = split == "test" and masked
            labels = {"model": model, "split": split, "masked": masked}
            rows = zip("abcd" * (len(values) // 4), values, strict=True)
            frames.append(
                pl.DataFrame([labels | {"user_id": user, "rank": rank if right else 60} for user, rank in rows])
            )
    return pl.concat(frames)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 6))
def test_groups_are_of_equal_size_but_that_equal_values_stay_together(values: list[int], groups: int) -> None:
    group_of_value = quantile_groups(np.array(values), groups)
    assert ((group_of_value >= 0) & (group_of_value < groups)).all()
    for value, group in zip(values, group_of_value, strict=True):
        # value is in group g when exactly g of the borders, the ceil(n·i/groups)-th smallest values, are below it
        ordered = sorted(values)
        borders = [ordered[-(-len(values) * i // groups) - 1] for i in range(1, groups)]
        assert group == sum(border < value for border in borders)


def test_distinct_values_make_equal_groups() -> None:
    values = np.random.default_rng(0).permutation(100)
    assert np.bincount(quantile_groups(values, 4)).tolist() == [25] * 4
    assert (quantile_groups(values, 4) == values // 25).all()


@given(COUNTS, st.sampled_from([0.2, 0.5]))
def test_the_tail_is_the_largest_set_of_rarest_items_within_the_share(counts: list[int], share: float) -> None:
    limit = tail_limit(np.array(counts), share)
    fitting = [t for t in range(-1, 13) if sum(c for c in counts if c <= t) <= share * sum(counts)]
    assert {c for c in counts if c <= limit} == {c for c in counts if c <= max(fitting)}


def test_training_counts_leave_out_valid_and_test() -> None:
    assert training_counts(dataset()).tolist() == [6, 2, 1, 0]


def test_slices_are_named_and_partition_the_cases() -> None:
    cases = EvalCases([str(i) for i in range(8)], [np.zeros(n, int) for n in (1, 2, 3, 4, 5, 6, 7, 8)], np.arange(8))
    counts = np.array([0, 5, 6, 7, 20, 30, 40, 50])
    by_kind: dict[str, list[Slice]] = {}
    for part in find_slices(cases, counts):
        by_kind.setdefault(part.kind, []).append(part)
    labels = {kind: [part.label for part in parts] for kind, parts in by_kind.items()}
    assert labels == {
        "history length": ["1–2", "3–4", "5–6", "7–8"],
        "item popularity": ["0–5", "6–7", "20–30", "40–50"],
        "cold items": ["≤ 5", "> 5"],
        "long tail": ["≤ 7", "> 7"],  # 18 of 158 interactions; with the next, 38, they would have more than a fifth
    }
    for parts in by_kind.values():
        assert (np.sum([part.member for part in parts], axis=0) == 1).all()
    assert by_kind["cold items"][0].member.tolist() == [True, True] + [False] * 6


def test_figures_of_every_slice_by_hand() -> None:
    table = slice_table(ranks(sft=[0, 20, 9, 1], popularity=[0, 3, 10, 70]), dataset(), "popularity", seed=0)
    rows = {(row["kind"], row["slice"], row["model"]): row for row in table.iter_rows(named=True)}
    assert {key[1]: row["cases"] for key, row in rows.items() if key[0] == "history length" and key[2] == "sft"} == {
        "1": 2,
        "3": 1,
        "4": 1,
    }  # quarters of 1, 1, 3, 4: the first two are one
    short = rows["history length", "1", "sft"]
    assert short["recall@10"] == 1.0
    assert short["ndcg@10"] == pytest.approx((1 / np.log2(11) + 1 / np.log2(3)) / 2)
    assert short["gain"] == 1.0
    assert rows["history length", "4", "sft"]["gain"] == -1.0
    cold = rows["cold items", "≤ 5", "sft"]  # items 3 and 1
    assert (cold["cases"], cold["recall@10"], cold["gain"]) == (2, 0.5, 0.0)
    assert [cold["low"], cold["high"]] == list(bootstrap_interval(np.array([-1.0, 1.0]), seed=0))
    assert (cold["low"], cold["high"]) == (-1.0, 1.0)
    assert all(row["gain"] is None for key, row in rows.items() if key[2] == "popularity")
    for model in ("sft", "popularity"):
        total = sum(row["cases"] for key, row in rows.items() if key[0] == "item popularity" and key[2] == model)
        assert total == 4


def test_without_a_baseline_there_are_no_gains_and_without_cases_no_figures() -> None:
    small = dataset()
    common = small.interactions.with_columns(item_index=pl.lit(0))
    table = slice_table(ranks(sft=[0, 0, 0, 0]), Dataset(small.items, common, small.info), None, seed=0)
    assert table["gain"].null_count() == len(table)
    cold = table.row(by_predicate=(pl.col("kind") == "cold items") & (pl.col("slice") == "≤ 5"), named=True)
    assert (cold["cases"], cold["recall@10"]) == (0, None)
    tail = table.filter(pl.col("kind") == "long tail")["cases"].to_list()
    assert tail == [0, 4], "only items never taken are in the tail, and none of them is a target"


def test_several_trainings_are_a_mean_and_users_are_drawn_with_all_their_cases() -> None:
    small = dataset()
    again = small.interactions.filter((pl.col("user_id") == "b") & (pl.col("split") == "test"))
    log = pl.concat([small.interactions, again, again]).sort("user_id", "timestamp", maintain_order=True)
    users = list("abbbcd")
    ranks = {
        ("sft", 0): [0, 0, 0, 0, 50, 50],
        ("sft", 1): [50, 0, 0, 0, 0, 50],
        ("markov", 0): [50, 50, 50, 50, 0, 0],
    }
    rows = [
        {"model": model, "repeat": repeat, "split": "test", "masked": True, "user_id": user, "rank": rank}
        for (model, repeat), values in ranks.items()
        for user, rank in zip(users, values, strict=True)
    ]
    table = slice_table(pl.DataFrame(rows), Dataset(small.items, log, small.info), "markov", seed=0)
    cold = table.row(
        by_predicate=(pl.col("kind") == "cold items") & (pl.col("slice") == "≤ 5") & (pl.col("model") == "sft"),
        named=True,
    )
    assert cold["cases"] == 4  # item 3 three times, by b, and item 1 by c
    assert cold["recall@10"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    gains = np.array([1.0, 1.0, 1.0, -0.5])
    assert cold["gain"] == pytest.approx(gains.mean())
    expected = bootstrap_interval(gains, 0, users=np.array([0, 0, 0, 1]))
    assert (cold["low"], cold["high"]) == expected != bootstrap_interval(gains, 0)
