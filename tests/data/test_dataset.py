from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.data.dataset import Dataset
from sidrec.data.split import global_time, leave_one_out
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage

N_ITEMS = 7
SPLITS = {"leave_one_out": leave_one_out, "global_time": global_time}
logs = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, N_ITEMS - 1), st.integers(0, 9)), max_size=40)


def dataset(log: list[tuple[str, int, int]], protocol: str) -> Dataset:
    schema = {"user_id": pl.String, "item_index": pl.Int64, "timestamp": pl.Int64}
    interactions = SPLITS[protocol](pl.DataFrame(log, schema=schema, orient="row"))
    names = [f"item {i}" for i in range(N_ITEMS)]
    items = pl.DataFrame({"item_id": names, "item_index": range(N_ITEMS), "title": names, "text": names})
    return Dataset(items, interactions, {"name": "test"})


@pytest.mark.parametrize("protocol", SPLITS)
@given(log=logs)
def test_cases_equal_brute_force(protocol: str, log: list[tuple[str, int, int]]) -> None:
    data = dataset(log, protocol)
    roles = {}
    if protocol == "global_time":
        order = sorted(range(len(log)), key=lambda row: (log[row][2], row))
        for place, row in enumerate(order):
            roles[row] = "train" if place < 8 * len(log) // 10 else "valid" if place < 9 * len(log) // 10 else "test"
    wanted: dict[str, list] = {"valid": [], "test": []}
    trained = []
    for user in sorted({name for name, _, _ in log}):
        rows = sorted((row for row in range(len(log)) if log[row][0] == user), key=lambda row: (log[row][2], row))
        if protocol == "leave_one_out":
            roles |= dict.fromkeys(rows, "train")
            roles |= {rows[-1]: "test", rows[-2]: "valid"} if len(rows) >= 3 else {}
        trained.append([log[row][1] for row in rows if roles[row] == "train"])
        for place, row in enumerate(rows):
            if roles[row] != "train" and place > 0:
                wanted[roles[row]].append((user, [log[before][1] for before in rows[:place]], log[row][1]))
    for split in ("valid", "test"):
        cases = data.cases(split)
        got = zip(cases.user_ids, [h.tolist() for h in cases.histories], cases.targets.tolist(), strict=True)
        assert list(got) == wanted[split]
        assert len(cases) == len(wanted[split])
    assert [sequence.tolist() for sequence in data.train_sequences] == [items for items in trained if items]


@pytest.mark.parametrize("protocol", SPLITS)
@given(users=st.lists(st.sampled_from("abc"), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_no_history_holds_anything_later_than_its_target(protocol: str, users: list[str], seed: int) -> None:
    """Every interaction takes an item of its own, whose number is its place in time."""
    places = np.random.default_rng(seed).permutation(len(users))
    cases_of = dataset(
        [(user, int(place), int(place)) for user, place in zip(users, places, strict=True)], protocol
    ).cases
    for split in ("valid", "test"):
        cases = cases_of(split)
        for history, target in zip(cases.histories, cases.targets, strict=True):
            assert len(history) > 0
            assert history.max() < target


def test_take_keeps_cases_together() -> None:
    cases = dataset(
        [("a", 0, 0), ("a", 1, 1), ("a", 2, 2), ("b", 3, 0), ("b", 4, 1), ("b", 5, 2)], "leave_one_out"
    ).cases("test")
    chosen = cases.take(np.array([1, 0]))
    assert chosen.user_ids == ["b", "a"]
    assert [history.tolist() for history in chosen.histories] == [[3, 4], [0, 1]]
    assert chosen.targets.tolist() == [5, 2]


def test_save_and_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `sidrec prepare"):
        Dataset.load(tmp_path)
    data = dataset([("a", 0, 0), ("a", 1, 1), ("a", 2, 2)], "leave_one_out")
    with Stage(tmp_path, "data", {}).building(resumable=True) as folder:
        with pytest.raises(InputError, match="not finished"):
            Dataset.load(tmp_path)
        data.save(folder)
    loaded = Dataset.load(tmp_path)
    assert loaded.items.equals(data.items)
    assert loaded.interactions.equals(data.interactions)
    assert loaded.info == data.info
    assert loaded.titles[3] == "item 3"
    assert loaded.n_items == N_ITEMS


def valued(values: object, dtype: pl.DataType | None = None) -> Dataset:
    """One user's four interactions, and the values of a column `price`."""
    data = dataset([("a", 0, 0), ("a", 1, 1), ("a", 2, 2), ("a", 3, 3)], "leave_one_out")
    log = data.interactions.with_columns(pl.Series("price", values, dtype=dtype))
    return Dataset(data.items.with_columns(weight=1.0), log, data.info, folder=Path("run/data"))


@pytest.mark.parametrize("protocol", SPLITS)
@given(log=logs)
def test_a_cases_values_stand_beside_its_items(protocol: str, log: list[tuple[str, int, int]]) -> None:
    """Where every item has its number as value, values and items are the same."""
    data = dataset(log, protocol)
    data = Dataset(data.items, data.interactions.with_columns(rating=pl.col("item_index") / 2), data.info)
    if not log:
        return
    for split in ("valid", "test"):
        plain, cases = data.cases(split), data.cases(split, "rating")
        assert plain.values is plain.history_values is None
        assert cases.user_ids == plain.user_ids
        assert cases.targets.tolist() == plain.targets.tolist()
        assert cases.values.tolist() == (cases.targets / 2).tolist()
        histories = zip(cases.histories, cases.history_values, plain.histories, strict=True)
        assert all(h.tolist() == (2 * v).tolist() == p.tolist() for h, v, p in histories)
        if len(cases):
            assert cases.take(np.array([len(cases) - 1])).values.tolist() == [cases.targets[-1] / 2]
            assert cases.take(np.array([0])).history_values[0].tolist() == cases.history_values[0].tolist()
    sequences = zip(data.train_sequences, data.train_values("rating"), strict=True)
    assert all(sequence.tolist() == (2 * values).tolist() for sequence, values in sequences)
    assert len(data.train_users) == len(data.train_sequences)


def test_values_that_are_missing_or_switches() -> None:
    values = valued([2, None, 0, 7]).values("price")
    assert values.dtype == np.float64
    assert values[[0, 2, 3]].tolist() == [2.0, 0.0, 7.0]
    assert np.isnan(values[1])
    assert valued([True, False, True, True]).values("price").tolist() == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("rating", [1, 2, 3, 4], r"no column 'rating' with values of the interactions \(it has price\)"),
        ("timestamp", [1, 2, 3, 4], r"no column 'timestamp' with values of the interactions \(it has price\)"),
        ("weight", [1, 2, 3, 4], r"no column 'weight' .*run/data/items\.parquet has one, but a value is of an inter"),
        (
            "price",
            ["1", "2.5", "n/a", "4"],
            r"column 'price' holds text in 1 of 4 rows, the first 'n/a' in row 2 \(user a\), where",
        ),
        (
            "price",
            ["1", "2", None, "4"],
            r"column 'price' holds text in 3 of 4 rows, the first '1' in row 0 \(user a\), where",
        ),
        ("price", [[1], [2], [3], [4]], r"column 'price' has type List\(Int64\), where numbers are needed"),
        ("price", [None] * 4, "column 'price' is empty in every row"),
        ("price", [float("nan")] * 4, "column 'price' is empty in every row"),
        ("price", [1.0, 2.0, float("-inf"), 3.0], r"column 'price' is -inf in row 2 \(user a\)"),
    ],
)
def test_a_column_without_values_is_one_sentence(column: str, values: list, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        valued(values).cases("test", column)
    assert str(error.value).startswith("run/data/interactions.parquet")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
