"""A sound data set passes; one planted leak of each kind is named with its user and row."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.split import global_time, leave_one_out, leave_one_out_ties_shuffled
from sidrec.evaluation.leaks import check_leaks
from sidrec.pipeline.errors import InputError

FILE = Path("interactions.parquet")
PROTOCOLS = {
    "leave_one_out": leave_one_out,
    "leave_one_out_ties_shuffled": leave_one_out_ties_shuffled,
    "global_time": global_time,
}


class Planted(Dataset):
    """A data set that hands out other training sequences or cases than its log holds."""

    def plant(self, **parts: object) -> "Planted":
        self.__dict__.update(parts)
        return self


def dataset(protocol: str, users: int = 12) -> Dataset:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 9, users)
    log = pl.DataFrame(
        {
            "user_id": np.repeat([f"u{user:02}" for user in range(users)], lengths),
            "item_index": rng.integers(0, 20, lengths.sum()),
            "timestamp": rng.integers(0, 30, lengths.sum()),
        }
    )
    items = pl.DataFrame({"item_index": range(20), "title": "t"})
    return Dataset(items, PROTOCOLS[protocol](log), {"name": "small", "protocol": protocol})


def with_split(data: Dataset, row: int, split: str) -> Dataset:
    column = data.interactions["split"].to_list()
    column[row] = split
    return Dataset(data.items, data.interactions.with_columns(split=pl.Series(column)), data.info)


def message(data: Dataset) -> str:
    with pytest.raises(InputError) as caught:
        check_leaks(data, FILE)
    return str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_sound_data_set_passes(protocol: str) -> None:
    data = dataset(protocol)
    assert len(data.cases("test")) > 3
    check_leaks(data, FILE)


@pytest.mark.parametrize("protocol", ["leave_one_out", "leave_one_out_ties_shuffled"])
@pytest.mark.parametrize(
    ("split", "leaked"), [("test", "train"), ("valid", "test"), ("train", "valid"), ("train", "test")]
)
def test_a_wrongly_split_row_is_named(protocol: str, split: str, leaked: str) -> None:
    data = dataset(protocol)
    row = data.interactions["split"].to_list().index(split)
    user = data.interactions["user_id"][row]
    told = message(with_split(data, row, leaked))
    assert f"(user {user}, " in told
    assert "a valid interaction after" in told or "a train interaction after" in told or "a second" in told


def test_a_train_row_later_than_the_border_is_named() -> None:
    data = dataset("global_time")
    row = data.interactions["timestamp"].arg_max()
    assert data.interactions["split"][row] == "test"
    user = data.interactions["user_id"][row]
    assert f"row {row} (user {user}, train): a train interaction later" in message(with_split(data, row, "train"))
    assert f"row {row} (user {user}, valid): a valid interaction later" in message(with_split(data, row, "valid"))


def test_rows_out_of_time_order_are_named() -> None:
    data = dataset("leave_one_out")
    times = data.interactions["timestamp"].to_list()
    row = next(
        i for i in range(1, len(times)) if data.interactions["user_id"][i] == data.interactions["user_id"][i - 1]
    )
    times[row] = times[row - 1] - 1
    late = Dataset(data.items, data.interactions.with_columns(timestamp=pl.Series(times)), data.info)
    assert f"row {row} (user " in message(late)


def test_a_future_item_in_a_training_sequence_is_named() -> None:
    data = dataset("leave_one_out")
    sequences = list(data.train_sequences)
    test = data.interactions.with_row_index().filter(pl.col("split") == "test").row(0, named=True)
    with_train = data.interactions.filter(pl.col("split") == "train")["user_id"].unique(maintain_order=True).to_list()
    place = with_train.index(test["user_id"])
    sequences[place] = np.append(sequences[place], test["item_index"])
    planted = Planted(data.items, data.interactions, data.info).plant(train_sequences=sequences)
    assert f"(user {test['user_id']}): the training sequence" in message(planted)
    planted = Planted(data.items, data.interactions, data.info).plant(
        train_sequences=[*data.train_sequences, sequences[0]]
    )
    assert "sequences" in message(planted)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_target_in_its_own_history_is_named(protocol: str, split: str) -> None:
    data = dataset(protocol)
    sound = {name: data.cases(name) for name in ("valid", "test")}
    histories = list(sound[split].histories)
    histories[2] = np.append(histories[2], sound[split].targets[2])
    leaky = sound | {split: EvalCases(sound[split].user_ids, histories, sound[split].targets)}
    planted = Planted(data.items, data.interactions, data.info).plant(cases=leaky.__getitem__)
    assert f"(user {sound[split].user_ids[2]}): the history of this {split} case" in message(planted)


def test_an_item_taken_twice_is_no_leak() -> None:
    log = pl.DataFrame({"user_id": ["a"] * 4, "item_index": [3] * 4, "timestamp": [1, 1, 1, 1]})
    check_leaks(Dataset(pl.DataFrame(), leave_one_out(log), {"protocol": "leave_one_out"}), FILE)
