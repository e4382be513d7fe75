"""Joining new events to a run's data, against a join by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_dirs import N_ITEMS, small_dataset

from sidrec.data.dataset import Dataset
from sidrec.data.new_events import JOINED, UNTRAINED, join_events, joined_in_words, replayed_sequences
from sidrec.pipeline.errors import InputError

LATEST = 20  # after every time of the small data set
Row = tuple[str, str, int]


def drawn_events(seed: int = 0) -> list[Row]:
    """Old users, new ones, unknown items, repeats of each other and of the run's log, in no order of time."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{rng.integers(40, 75)}", f"i{rng.integers(N_ITEMS + 6)}", int(rng.integers(LATEST, LATEST + 9)))
        for _ in range(150)
    ]
    old = small_dataset().interactions.head(5)
    repeats = [(user, f"i{item}", time) for user, item, time in old.select("user_id", "item_index", "timestamp").rows()]
    return [*rows, *repeats, *rows[:7]]


def write_log(file: Path, rows: list[Row]) -> Path:
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(file)
    return file


def joined_by_hand(old: Dataset, rows: list[Row]) -> tuple[list[tuple[str, int, int, str, bool]], int, int]:
    """The log as (user, item, time, split, untrained), the number of unknown events, and that of repeats."""
    index_of = {name: index for index, name in enumerate(old.items["item_id"])}
    before = old.interactions.select("user_id", "item_index", "timestamp", "split").rows()
    log = [(user, item, time, "train", split != "train") for user, item, time, split in before]
    seen = {(user, item, time) for user, item, time, _ in before}
    new, unknown, repeats = [], 0, 0
    for user, name, time in rows:
        if name not in index_of:
            unknown += 1
        elif (user, index_of[name], time) in seen:
            repeats += 1
        else:
            seen.add((user, index_of[name], time))
            new.append((user, index_of[name], time))
    in_time = sorted(range(len(new)), key=lambda place: new[place][2])
    for position, place in enumerate(in_time):
        tenth = position >= 9 * len(new) // 10, position >= 8 * len(new) // 10
        new[place] = (*new[place], "test" if tenth[0] else "valid" if tenth[1] else "train", True)
    return sorted([*log, *new], key=lambda row: (row[0], row[2])), unknown, repeats


def test_the_join_is_the_one_by_hand(tmp_path: Path) -> None:
    old, rows = small_dataset(), drawn_events()
    joined = join_events(old, write_log(tmp_path / "new.csv", rows))
    by_hand, unknown, repeats = joined_by_hand(old, rows)
    assert joined.interactions.rows() == by_hand
    told = joined.info[JOINED]
    assert (told["unknown_events"], told["repeats"], told["rows"]) == (unknown, repeats, len(rows))
    assert unknown > 0
    assert repeats > 7
    assert joined.items.equals(old.items)
    assert joined.info["counts"]["interactions"] == len(by_hand)
    users = {row[0] for row in by_hand}
    assert told["new_users"] == len(users) - 60


def test_a_second_join_forgets_what_the_first_marked(tmp_path: Path) -> None:
    first = join_events(small_dataset(), write_log(tmp_path / "new.csv", drawn_events()))
    rows = [(user, item, time + 100) for user, item, time in drawn_events(seed=1)[:150]]
    second = join_events(first, write_log(tmp_path / "newer.csv", rows))
    by_hand, _, _ = joined_by_hand(replace(first, interactions=first.interactions.drop(UNTRAINED)), rows)
    assert second.interactions.rows() == by_hand


def test_unknown_items_are_named_with_the_remedy(tmp_path: Path) -> None:
    file = write_log(tmp_path / "new.csv", drawn_events())
    joined = join_events(small_dataset(), file)
    told = joined.info[JOINED]
    assert told["unknown_items"] == len({item for _, item, _ in drawn_events() if int(item[1:]) >= N_ITEMS})
    (sentence,) = (line for line in joined_in_words(joined.info, file) if "catalogue lacks" in line)
    assert f"{told['unknown_events']} events are left out" in sentence
    assert f"{told['unknown_items']} items ({told['unknown_first'][0]}, " in sentence
    assert "`sidrec add-items`" in sentence


def test_nothing_new_leaves_the_data_as_they_are(tmp_path: Path) -> None:
    old = small_dataset()
    rows = old.interactions.select("user_id", pl.format("i{}", "item_index"), "timestamp").rows()
    joined = join_events(old, write_log(tmp_path / "old.csv", rows))
    assert joined.interactions.equals(old.interactions)
    assert joined.info[JOINED]["events"] == 0


def test_other_columns_are_those_of_the_run(tmp_path: Path) -> None:
    old = small_dataset()
    old = replace(old, interactions=old.interactions.with_columns(stars=pl.lit(3.0), page=pl.lit("home")))
    rows = drawn_events()
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.with_columns(stars=pl.lit(5), colour=pl.lit("red")).write_parquet(tmp_path / "new.parquet")
    joined = join_events(old, tmp_path / "new.parquet")
    assert joined.interactions.columns == [*old.interactions.columns, UNTRAINED]
    new = joined.interactions.filter(pl.col("timestamp") >= LATEST)
    assert new["stars"].to_list() == [5.0] * len(new)
    assert new["page"].null_count() == len(new)
    frame.with_columns(stars=pl.lit("many")).write_parquet(tmp_path / "odd.parquet")
    with pytest.raises(
        InputError, match=r"odd\.parquet: column 'stars' holds 'many', and the run's is of type Float64"
    ):
        join_events(old, tmp_path / "odd.parquet")


def test_times_of_another_unit_and_too_few_events_are_refused(tmp_path: Path) -> None:
    later = [(user, item, 1_700_000_000 + time) for user, item, time in drawn_events()]
    with pytest.raises(InputError, match="has times in seconds, and the run's are in an order and no dates"):
        join_events(small_dataset(), write_log(tmp_path / "dates.csv", later))
    with pytest.raises(InputError, match="has 2 new events, too few to train on some"):
        join_events(small_dataset(), write_log(tmp_path / "few.csv", [("u1", "i1", 90), ("u1", "i2", 91)]))


def test_an_old_log_that_is_given_again_is_refused(tmp_path: Path) -> None:
    """Events of users whom the k-core left out are new to the run and older than its newest."""
    log = small_dataset().interactions.with_columns(pl.col("timestamp") + 1_700_000_000)
    old, last = replace(small_dataset(), interactions=log), int(log["timestamp"].to_numpy().max())
    rows = [(f"rare{user}", f"i{user + step}", last - 9 + step) for user in range(20) for step in range(9)]
    with pytest.raises(
        InputError, match=rf"newest event is of 2023-11-14 \({last}\): the 180 events that the run lacks"
    ):
        join_events(old, write_log(tmp_path / "old.csv", rows))
    joined = join_events(old, write_log(tmp_path / "newer.csv", [*rows, ("u1", "i1", last), ("u2", "i2", last)]))
    assert joined.info[JOINED]["events"] == 182


@pytest.mark.parametrize("replay", [0.0, 0.5, 1.0, 100.0])
def test_users_with_untrained_events_are_replayed_whole_and_others_drawn(tmp_path: Path, replay: float) -> None:
    old = small_dataset()
    old = replace(old, interactions=old.interactions.with_columns(split=pl.lit("train")))  # nothing is held out
    rows = [row for row in drawn_events() if int(row[0][1:]) < 50 or int(row[0][1:]) >= 60]
    joined = join_events(old, write_log(tmp_path / "new.csv", rows))
    train = joined.interactions.filter(pl.col("split") == "train")
    updated = set(train.filter(UNTRAINED)["user_id"])
    whole = dict(zip(joined.train_users, map(tuple, joined.train_sequences), strict=True))
    chosen = [tuple(sequence) for sequence in replayed_sequences(joined, replay, seed=3)]
    n_others = min(len(whole) - len(updated), round(replay * len(updated)))
    assert len(chosen) == len(updated) + n_others
    assert {whole[user] for user in updated} <= set(chosen)
    in_order = [sequence for sequence in whole.values() if sequence in set(chosen)]
    assert list(dict.fromkeys(chosen)) == list(dict.fromkeys(in_order))
    assert chosen == [tuple(sequence) for sequence in replayed_sequences(joined, replay, seed=3)]


def test_replay_is_of_joined_data() -> None:
    with pytest.raises(InputError, match="replay is of data that `sidrec update` has joined events to"):
        replayed_sequences(small_dataset(), 1.0, seed=0)
