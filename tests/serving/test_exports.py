"""`sidrec keys`, `export-events` and `export-lists`: what leaves the store is what the rest of sidrec reads."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from run_dirs import N_ITEMS, assert_one_sentence, exit_code, finished_sft_run

from sidrec.data.dataset import Dataset
from sidrec.data.own import read_own
from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.plackett_luce import draw_list
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.served_lists import ServedLists
from sidrec.serving.database import VERSION_TABLE
from sidrec.serving.export_events import events_table
from sidrec.serving.export_lists import lists_table
from sidrec.serving.extra import MICROSECONDS_PER_HOUR
from sidrec.serving.store import Event, ServedList, Store

KEYS, EVENTS, LISTS = "serving/keys.py", "serving/export_events.py", "serving/export_lists.py"
PREPARE, OFF_POLICY = "data/prepare.py", "evaluation/policy_value.py"
ODD = 'it"em, ü;\n3'  # an id that a CSV must quote


def filled(location: str, seed: int = 0) -> tuple[Store, list[Event]]:
    """40 users with 8 events each, many of one time; values and extras here and there."""
    drawn, events = np.random.default_rng(seed), []
    items = [ODD, *(f"i{number}" for number in range(11))]
    for place, user in enumerate(drawn.permutation(np.repeat(np.arange(40), 8)).tolist()):
        value = None if drawn.random() < 0.5 else float(drawn.integers(1, 6))
        extra = {"page": "ä", "n": place} if drawn.random() < 0.1 else None
        item = items[int(drawn.integers(len(items)))]
        events.append(
            Event(f"e{place}", f"u{user}", item, int(drawn.integers(1_700_000_000, 1_700_000_005)), value, extra)
        )
    store = Store.open(location)
    for start in range(0, len(events), 50):
        store.add_events(events[start : start + 50])
    return store, events


def catalogue(folder: Path) -> Path:
    file = folder / "catalogue.csv"
    items = [ODD, *(f"i{number}" for number in range(11))]
    pl.DataFrame({"item_id": items, "title": [f"title {n}" for n in range(12)]}).write_csv(file)
    return file


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_is_exported_is_prepared(location: str, tmp_path: Path, ending: str) -> None:
    """Every user's history is the store's, up to repeats at one time, which `prepare` leaves out."""
    store, events = filled(location)
    log, run_dir = tmp_path / "new" / f"log.{ending}", tmp_path / "run"
    assert exit_code(EVENTS, "--store", location, "--output", log) == 0
    arguments = ["--dataset", "own", "--interactions", log, "--items", catalogue(tmp_path), "--run_dir", run_dir]
    assert exit_code(PREPARE, *arguments, "--k_user", "1", "--k_item", "1") == 0
    dataset = Dataset.load(run_dir)
    rows = dataset.interactions.join(
        dataset.items.select("item_index", "item_id"), on="item_index", maintain_order="left"
    )
    first = {(event.user_id, event.item_id, event.timestamp): event for event in reversed(events)}
    for user in store.users():
        mine = rows.filter(pl.col("user_id").cast(pl.String) == user)
        once = {event.event_id for event in first.values()}
        ordered = sorted(
            (event for event in events if event.user_id == user and event.event_id in once), key=lambda e: e.timestamp
        )
        assert mine["item_id"].to_list() == [event.item_id for event in ordered]
        assert mine["value"].to_list() == [event.value for event in ordered]
        assert [text and json.loads(text) for text in mine["extra"]] == [event.extra for event in ordered]
        assert list(dict.fromkeys(mine["item_id"])) == list(dict.fromkeys(store.history(user)))
    store.close()


def test_events_leave_in_the_order_of_their_arrival(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when they are read in several blocks."""
    monkeypatch.setattr("sidrec.serving.store.ROWS_AT_ONCE", 7)
    store, events = filled(location)
    table = events_table(store)
    assert table["item_id"].to_list() == [event.item_id for event in events]
    assert table["timestamp"].to_list() == [event.timestamp for event in events]
    table.write_csv(tmp_path / "log.csv")
    raw = read_own(tmp_path / "log.csv", catalogue(tmp_path))
    assert len(raw.interactions) + raw.repeats == len(events)
    store.close()


# ---- lists


def hours(number: float) -> int:
    return round(number * MICROSECONDS_PER_HOUR)


def reward(
    slot: tuple[int, str], user: str, lists: list[tuple[int, ServedList]], events: list[tuple[int, Event]], kind: str
) -> float:
    """Of the slot of the list that was served at slot[0], by looking at everything."""
    earned = 0.0
    for received, event in events:
        before = [
            at
            for at, each in lists
            if each.user_id == event.user_id == user and event.item_id in each.items and at <= received
        ]
        if (
            event.user_id == user
            and event.item_id == slot[1]
            and before
            and max(before) == slot[0]
            and received - slot[0] <= hours(2)
        ):
            earned = 1.0 if kind == "event" else earned + (event.value or 0.0)
    return earned


@pytest.mark.parametrize("kind", ["event", "value"])
def test_a_slot_earns_what_follows_the_last_list_that_showed_it(location: str, kind: str) -> None:
    drawn, now, lists, events = np.random.default_rng(1), 0, [], []
    engine = Store.open(location).engine
    for number in range(120):
        now += hours(float(drawn.choice([0.0, 0.3, 1.0]))) + 1
        store, user = Store(engine, clock=lambda now=now: now), f"u{drawn.integers(3)}"  # type: ignore[misc]
        if number % 3 == 0:
            items = [f"i{item}" for item in drawn.permutation(6)[: drawn.integers(1, 5)]]
            shares = drawn.uniform(0.1, 1, len(items)).tolist()
            served = ServedList(f"r{number}", user, "rl", 1, 4, ["i9", "i8"], bool(drawn.integers(2)), items, shares)
            lists.append((now, served))
            store.log_list(served)
        else:
            value = None if drawn.random() < 0.3 else float(drawn.integers(1, 5))
            event = Event(f"e{number}", user, f"i{drawn.integers(6)}", number, value)
            events.append((now, event))
            store.add_events([event])
    table = lists_table(Store(engine), kind, within_hours=2)
    assert table["request_id"].to_list() == [each.request_id for _, each in lists]
    for row, (at, each) in zip(table.iter_rows(named=True), lists, strict=True):
        logged = (each.user_id, each.history, each.exclude_seen, each.items, each.propensities)
        assert tuple(row[name] for name in ("user_id", "history", "exclude_seen", "items", "propensities")) == logged
        assert row["rewards"] == [reward((at, item), str(each.user_id), lists, events, kind) for item in each.items]
    assert 0 < sum(map(sum, table["rewards"])) < sum(map(len, table["rewards"]))
    engine.dispose()


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_drawn_lists_are_judged(
    location: str,
    ending: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Drawn by the model itself, so that its value is what they earned."""
    run_dir, log, out = finished_sft_run(tmp_path_factory), tmp_path / f"served.{ending}", tmp_path / "figures.json"
    recommender, names = Recommender.load(run_dir, "sft"), [f"i{item}" for item in range(N_ITEMS)]
    histories = [np.array([user % N_ITEMS, (user * 7 + 1) % N_ITEMS]) for user in range(30)]
    trie = recommender.trie
    scores = recommender.leaf_log_probs(histories).masked_fill(~Eligibility(trie, 30, histories).leaves(), -torch.inf)
    leaves, propensities = draw_list(scores, 3, torch.Generator().manual_seed(0))
    drawn = trie.item_of_leaf[:][leaves].tolist()
    store = Store.open(location)
    for user, history in enumerate(histories):
        items, shares = [names[item] for item in drawn[user]], propensities[user].tolist()
        named = [names[item] for item in history]
        store.log_list(ServedList(f"r{user}", f"u{user}", "sft", 1, 3, named, True, items, shares))
        store.add_events([Event(f"e{user}", f"u{user}", items[user % 3], user)])
    store.log_list(ServedList("not drawn", "u1", "sft", 1, 1, ["i1"], True, ["i2"]))
    store.log_list(ServedList("nobody's", None, "sft", 1, 1, ["i1"], True, ["i2"], [0.5]))
    store.log_list(ServedList("no history", "u1", "sft", 1, 1, [], True, ["i2"], [0.5]))
    store.close()
    assert exit_code(LISTS, "--store", location, "--output", log) == 0
    said = capsys.readouterr().out
    assert "30 lists of 30 users" in said
    assert "3 of 33 lists are left out" in said
    read = ServedLists.read(log, names)
    assert read.items.tolist() == drawn
    assert np.array_equal(read.propensities, propensities.numpy())
    assert np.array_equal(read.rewards.argmax(1), np.arange(30) % 3)
    assert exit_code(OFF_POLICY, "--log", log, "--run_dir", run_dir, "--model", "sft", "--write", out) == 0
    told = json.loads(out.read_text(encoding="utf-8"))["estimates"]
    assert told["logged"]["value"] == 1
    assert told["ips"]["value"] == pytest.approx(1, abs=1e-3)


# ---- what is printed, and mistakes


def test_a_key_is_made_listed_and_revoked(location: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(KEYS, "--store", location, "--create", "write") == 0
    key, note, *_ = capsys.readouterr().out.splitlines()
    assert "shown once" in note
    store, key_id = Store.open(location), key.split("_")[1]
    assert store.scope_of(key) == "write"
    assert exit_code(KEYS, "--store", location, "--list") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{key_id}  write  made 20")
    assert key not in printed
    assert exit_code(KEYS, "--store", location, "--revoke", key_id) == 0
    assert store.scope_of(key) is None
    assert exit_code(KEYS, "--store", location, "--list", "true") == 0
    assert ", revoked 20" in capsys.readouterr().out
    assert exit_code(KEYS, "--store", location, "--revoke", key_id) == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert "no active key" in said
    store.close()


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        (EVENTS, ["--store", "STORE", "--output", "log.txt"], "must end in .csv or .parquet"),
        (EVENTS, ["--store", "absent.db", "--output", "log.csv"], "no such file"),
        (EVENTS, ["--store", "STORE", "--output", "log.csv"], "holds no events"),
        (EVENTS, ["--output", "log.csv"], "--store is missing"),
        (LISTS, ["--store", "STORE", "--output", "log.csv"], "must end in .jsonl or .parquet"),
        (LISTS, ["--store", "STORE", "--output", "log.jsonl"], "no list to export (0 of 0"),
        (LISTS, ["--store", "STORE", "--output", "log.jsonl", "--within_hours", "0"], "above 0"),
        (LISTS, ["--store", "STORE", "--output", "log.jsonl", "--within_hours", "1e300"], "at most 1,000,000"),
        (EVENTS, ["--store", "held.csv", "--output", "held.csv"], "is held.csv, which this command reads"),
        (EVENTS, ["--store", "STORE", "--output", "folder.csv"], "is a folder"),
        (EVENTS, ["--store", "STORE", "--output", "null.csv"], "is a device"),
        (KEYS, ["--store", "STORE"], "give one of"),
        (KEYS, ["--store", "STORE", "--list", "--create", "read"], "give one of"),
        (KEYS, ["--store", "STORE", "--create", "root"], "read or write or admin"),
        (KEYS, ["--store", "absent.db", "--list"], "no such file"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    script: str,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("STORE", "held.csv"):
        Store.open(name).close()
    Path("folder.csv").mkdir()
    Path("null.csv").symlink_to("/dev/null")
    before = sorted(tmp_path.iterdir())
    assert exit_code(script, *arguments) == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert says in said
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "of", "says"),
    [
        ("UPDATE events SET timestamp = 'soon'", "events", "holds 'soon' as timestamp"),
        ("UPDATE events SET value = x'00'", "events lists", "as value"),
        ("UPDATE events SET extra = '[1'", "events", "holds a row that cannot be read"),
        ("UPDATE events SET user_id = x'ff'", "events lists", "as user_id"),
        ("UPDATE served_lists SET history = '{}'", "lists", "as history"),
        ("UPDATE served_lists SET history = '[1]'", "lists", "as history"),
        ("UPDATE served_lists SET history = 'x'", "lists", "holds a row that cannot be read"),
        ("UPDATE served_items SET propensity = 'much'", "lists", "holds 'much' as propensity"),
        ("UPDATE api_keys SET created = 'once'", "keys", "the time 'once', which is none"),
        ("UPDATE api_keys SET created = 9223372036854775807", "keys", "which is none"),
        ("DROP TABLE events", "events lists keys", "has lost events.arrival: something else changed its tables"),
        ("ALTER TABLE api_keys RENAME COLUMN scope TO theirs", "events keys", "has lost api_keys.scope"),
        (f"UPDATE {VERSION_TABLE} SET version_num = ''", "events keys", "has version , and this sidrec knows"),
        (f"INSERT INTO {VERSION_TABLE} VALUES ('0')", "events lists keys", "more than one head"),
    ],
)
def test_what_something_else_wrote_into_a_store_is_named(
    change: str, of: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "store.db"
    store, _ = filled(str(file))
    store.log_list(ServedList("r", "u1", "sft", 1, 1, ["i1"], True, ["i2"], [0.5]))
    store.create_key("read")
    store.close()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(change)
        connection.commit()
    commands = {
        "events": (EVENTS, "--output", tmp_path / "log.csv"),
        "lists": (LISTS, "--output", tmp_path / "log.jsonl"),
        "keys": (KEYS, "--list"),
    }
    for name in of.split():
        script, *flags = commands[name]
        assert exit_code(str(script), "--store", file, *flags) == 2
        said = capsys.readouterr().err
        assert_one_sentence(said)
        assert says in said
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    absent: Callable[[str], Any] = lambda name: None  # noqa: E731
    monkeypatch.setattr("sidrec.serving.extra.find_spec", absent)
    assert exit_code(KEYS, "--store", "store.db", "--list") == 2
    assert 'pip install "sidrec[serve]"' in capsys.readouterr().err
    monkeypatch.setattr("sidrec.serving.database.find_spec", absent)
    with pytest.raises(Exception, match=r"sidrec\[postgres\]"):
        Store.open("postgresql://ann@host/name")
