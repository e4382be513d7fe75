"""The store over SQLite and PostgreSQL: every acknowledged event once, in the data's order, until it is deleted."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError, TimeoutError

from sidrec.pipeline.errors import InputError
from sidrec.serving.database import FIRST_STATEMENTS, VERSION_TABLE, open_database, taking_turn, url_of
from sidrec.serving.schema import EVENTS, METADATA
from sidrec.serving.store import MOST_CHARACTERS, REMEMBERED, Added, Counts, Event, Removed, ServedList, Store

DAY = timedelta(days=1)
NUMBERS = itertools.count()
WRITER = """
import itertools, sys
from sidrec.serving.store import Event, Store
store = Store.open(sys.argv[1])
for number in itertools.count():
    events = [Event(f"{number}-{place}", "ann", f"i{number}", number) for place in range(3)]
    assert store.add_events(events).accepted == 3
    print(number, flush=True)
"""


@pytest.fixture
def store(location: str) -> Iterator[Store]:
    opened = Store.open(location)
    yield opened
    opened.close()


def event(event_id: str, user: str = "ann", item: str = "i1", timestamp: int = 1) -> Event:
    return Event(event_id, user, item, timestamp)


def served(request_id: str, user: str | None = "ann", items: tuple[str, ...] = ("i1", "i2")) -> ServedList:
    share = [0.5] * len(items)
    return ServedList(request_id, user, "rl", 3, 10, ["i9"], exclude_seen=True, items=list(items), propensities=share)


# ---- what is stored


def test_an_event_comes_back_as_it_was(store: Store) -> None:
    given = Event("e", "ann ö", "i'1", -(2**62), 0.1, {"page": ["ä", 1.5, None], "nul": "\0"})
    store.add_events([given, event("plain")])
    with store.engine.connect() as connection:
        rows = connection.execute(EVENTS.select().order_by(EVENTS.c.arrival)).mappings().all()
    assert {name: rows[0][name] for name in vars(given)} == vars(given)
    assert (rows[1]["value"], rows[1]["extra"]) == (None, None)


def test_the_same_event_twice_is_one(store: Store) -> None:
    assert store.add_events([event("a"), event("b"), event("a", item="other")]) == Added(2, 1)
    assert store.add_events([event("b", item="other"), event("c")]) == Added(1, 1)
    assert store.add_events([]) == Added(0, 0)
    assert store.history("ann") == ["i1", "i1", "i1"]


def test_events_are_stored_together_or_not_at_all(store: Store) -> None:
    with pytest.raises(InputError, match="'bad': user_id is ''"):
        store.add_events([event("good"), event("bad", user="")])
    assert store.counts().events == 0


def test_eight_threads_with_the_same_events_store_each_once(store: Store) -> None:
    """In different orders, which must not make two of them wait for each other."""
    ids, drawn = [f"e{number}" for number in range(300)], np.random.default_rng(0)
    orders = [drawn.permutation(ids)[:200] for _ in range(8)]
    begin = threading.Barrier(8)

    def add(order: np.ndarray) -> int:
        begin.wait()
        batches = (order[start : start + 20] for start in range(0, len(order), 20))
        return sum(store.add_events([event(str(name)) for name in batch]).accepted for batch in batches)

    with ThreadPoolExecutor(8) as threads:
        accepted = sum(threads.map(add, orders))
    with store.engine.connect() as connection:
        stored = list(connection.scalars(EVENTS.select().with_only_columns(EVENTS.c.event_id)))
    assert sorted(stored) == sorted(set(np.concatenate(orders).tolist()))
    assert accepted == len(stored)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    log=st.lists(st.tuples(st.sampled_from("ab"), st.integers(-2, 2), st.integers(1, 9)), min_size=1, max_size=30),
    limit=st.integers(1, 12),
)
def test_a_history_is_a_sort_by_time_then_arrival(store: Store, log: list[tuple[str, int, int]], limit: int) -> None:
    """Batches of any size, so that arrival within and across batches counts."""
    prefix, events = f"x{next(NUMBERS)}", []
    for place, (user, timestamp, _) in enumerate(log):
        events.append(event(f"{prefix}-{place:02}"[::-1], f"{prefix}{user}", f"i{place}", timestamp))
    start = 0
    while start < len(events):
        size = log[start][2]
        store.add_events(events[start : start + size])
        start += size
    for user in "ab":
        rows = [(timestamp, place) for place, (name, timestamp, _) in enumerate(log) if name == user]
        expected = [f"i{place}" for _, place in sorted(rows)]
        assert store.history(f"{prefix}{user}") == expected
        assert store.history(f"{prefix}{user}", limit) == expected[-limit:]
        assert (f"{prefix}{user}" in store.users()) == bool(rows)


def test_a_history_is_read_from_the_index(store: Store) -> None:
    """Newest first, without a sort."""
    store.add_events([event(f"e{number}", f"u{number % 50}", timestamp=number) for number in range(2000)])
    query = "SELECT item_id FROM events WHERE user_id = 'u1' ORDER BY timestamp DESC, arrival DESC LIMIT 5"  # of Store.history
    with store.engine.begin() as connection:
        if store.engine.dialect.name == "sqlite":
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")]
        else:
            connection.exec_driver_sql("ANALYZE events")
            plan = [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {query}")]
    assert any("events_of_user" in line for line in plan), plan
    assert not any("sort" in line.lower() or "TEMP B-TREE" in line for line in plan), plan


def test_lists_and_catalogues_are_stored_once(store: Store) -> None:
    assert store.log_list(served("r"))
    assert not store.log_list(served("r", items=("i3",)))
    assert store.log_list(served("anonymous", user=None, items=()))
    assert store.see_catalogue(3, "first")
    assert not store.see_catalogue(3)
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT rank, item_id, propensity FROM served_items ORDER BY rank").all()
        assert connection.exec_driver_sql("SELECT note FROM catalogue_versions").scalars().all() == ["first"]
    assert rows == [(1, "i1", 0.5), (2, "i2", 0.5)]
    assert store.counts() == Counts(0, 2, 1, 0, None)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: event("e", user="\0"), "no database holds"),
        (lambda: event("e", item="\ud800"), "no database holds"),
        (lambda: event("x" * (MOST_CHARACTERS + 1)), "1 to 512"),
        (lambda: event("e", user=" "), "1 to 512"),
        (lambda: event("e", timestamp=2**63), "below 2 to the 63"),
        (lambda: Event("e", "u", "i", 1, float("nan")), "finite"),
        (lambda: Event("e", "u", "i", 1, None, {"x": float("inf")}), "no JSON"),
        (lambda: Event("e", "u", "i", 1, None, {"x": {1}}), "no JSON"),
        (lambda: served("r", items=("i", "i")), "twice"),
        (lambda: served(""), "request_id"),
        (lambda: ServedList("r", "u", "p", 1, 2, [], False, ["a", "b"], [0.5]), "1 propensities for 2"),
        (lambda: ServedList("r", "u", "p", 1, 2, [], False, ["a", "b"], [0.5, 0.0]), "above 0"),
    ],
)
def test_what_no_database_holds_is_refused_in_a_sentence(
    tmp_path: Path, wrong: Callable[[], Event | ServedList], says: str
) -> None:
    store, row = Store.open(str(tmp_path / "store.db")), wrong()
    with pytest.raises(InputError, match=says):
        store.add_events([row]) if isinstance(row, Event) else store.log_list(row)
    store.close()


def test_the_longest_ids_fit_the_indexes(store: Store) -> None:
    longest = "".join(map(chr, np.random.default_rng(0).integers(0x10000, 0x2FFFF, MOST_CHARACTERS)))  # 4 bytes each
    assert store.add_events([event(longest, longest, longest)]) == Added(1, 0)
    assert store.history(longest) == [longest]
    assert store.log_list(served(longest, longest, (longest,)))


# ---- deletion


def texts_of(store: Store) -> str:
    """Every row of every table."""
    with store.engine.connect() as connection:
        return "\n".join(str(row) for table in METADATA.sorted_tables for row in connection.execute(table.select()))


def test_a_deleted_user_is_in_no_table_and_in_no_file(store: Store, location: str) -> None:
    for user in ("gone-forever", "ann"):
        store.add_events([event(f"{user}-{n}", user, f"item-{user}") for n in range(50)])
        store.log_list(served(f"list-{user}", user, (f"served-{user}",)))
    assert store.delete_user("gone-forever") == Removed(50, 1, REMEMBERED)
    assert "retrain" not in REMEMBERED
    assert "train again" in REMEMBERED
    assert "gone-forever" not in texts_of(store)
    assert texts_of(store).count("served-ann") == 1
    assert store.users() == ["ann"]
    assert store.delete_user("gone-forever") == Removed(0, 0)
    if store.engine.dialect.name == "sqlite":
        files = list(Path(url_of(location).database or "").parent.iterdir())
        assert not [file for file in files if b"gone-forever" in file.read_bytes()]
        assert [file for file in files if b"served-ann" in file.read_bytes()]


def test_who_reads_for_long_stops_no_deletion_and_no_writer(store: Store) -> None:
    store.add_events([event(f"e{number}") for number in range(5)])
    rows = store.blocks(EVENTS.select())
    with store.engine.connect() as reader:
        assert reader.exec_driver_sql("SELECT count(*) FROM events").scalar() == 5
        assert len(next(rows)) == 5
        assert store.delete_user("ann").events == 5
        assert store.add_events([event("later")]) == Added(1, 0)
        if store.engine.dialect.name == "sqlite":
            assert reader.exec_driver_sql("SELECT count(*) FROM events").scalar() == 5, "as it was when it began"
    assert list(rows) == []
    with store.engine.connect() as connection:
        if store.engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
    assert store.history("ann") == ["i1"]


def test_what_is_older_expires(store: Store) -> None:
    day = DAY // timedelta(microseconds=1)
    for number in range(4):
        at = Store(store.engine, clock=lambda number=number: number * day)  # type: ignore[misc]
        at.add_events([event(f"e{number}", item=f"i{number}")])
        at.log_list(served(f"r{number}"))
    removed = Store(store.engine, clock=lambda: 4 * day).expire(older_than=2 * DAY)
    assert (removed.events, removed.lists) == (2, 2)
    assert store.history("ann") == ["i2", "i3"]
    assert store.counts() == Counts(2, 2, 0, 0, 3 * day)
    store.add_events([event("later", item="i4")])
    assert store.history("ann") == ["i2", "i3", "i4"]


# ---- kill -9


def test_every_acknowledged_event_survives_a_kill(location: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, location], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        acknowledged = [int(writer.stdout.readline()) for _ in range(40)]
    finally:
        os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout.read().splitlines() if line]
    assert writer.wait() == -signal.SIGKILL
    store = Store.open(location, must_exist=True)
    with store.engine.connect() as connection:
        stored = set(connection.scalars(EVENTS.select().with_only_columns(EVENTS.c.event_id)))
    assert {f"{number}-{place}" for number in acknowledged for place in range(3)} <= stored
    assert len(stored) % 3 == 0, "a part of a transaction is there"
    assert len(stored) <= 3 * (len(acknowledged) + 1)
    store.close()


def test_sqlite_waits_for_the_disk(tmp_path: Path) -> None:
    """A kill does not show this one: a power cut would."""
    engine = open_database(str(tmp_path / "store.db"), must_exist=False)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
    engine.dispose()


# ---- versions


def test_the_migrations_make_the_tables_of_the_code(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_many_may_open_a_new_store_at_once(location: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: Store.open(location), range(8)))
    command = [sys.executable, "-c", "import sys; from sidrec.serving.store import Store; Store.open(sys.argv[1])"]
    assert subprocess.run([*command, location], check=False).returncode == 0
    assert [store.add_events([event(f"e{number}")]).accepted for number, store in enumerate(stores)] == [1] * 8
    for store in stores:
        store.close()


def test_a_newer_store_is_refused(store: Store, location: str) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '99'")
    with pytest.raises(InputError, match="has version 99, and this sidrec knows versions up to 1; install the newer"):
        Store.open(location)


def test_a_database_of_another_program_is_refused(location: str) -> None:
    engine = create_engine(url_of(location))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE events (theirs TEXT)")
    engine.dispose()
    with pytest.raises(InputError, match="holds no store"):
        Store.open(location, must_exist=True)
    with pytest.raises(InputError, match=r"events.* already exists|another program's tables \(events\)"):
        Store.open(location)
    with create_engine(url_of(location)).connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM events").all() == []


@pytest.mark.parametrize("must_exist", [True, False])
def test_a_sqlite_file_of_another_program_stays_as_it_is(tmp_path: Path, must_exist: bool) -> None:
    """Byte by byte, also where no table has a name of ours: not even its way of writing is changed."""
    file = tmp_path / "places.sqlite"
    with closing(sqlite3.connect(file)) as theirs:
        theirs.execute("CREATE TABLE moz_places (url TEXT)")
        theirs.commit()
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"another program's tables \(moz_places\); name another file"):
        Store.open(str(file), must_exist=must_exist)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_store_that_fails_while_it_is_used_is_said_and_closed(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    Store.open(str(file)).close()
    with (
        pytest.raises(InputError, match=r"store.db fails \(no such table: nonsense\); check the disk"),
        Store.in_use(str(file)) as store,
    ):
        store.blocks(text("SELECT * FROM nonsense")).__next__()  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [file], "nothing is open that would keep a -wal file"


def test_a_store_that_cannot_be_opened_is_named_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 100, encoding="utf-8")
    for wrong, says in {
        str(tmp_path / "text.db"): "not a database",
        str(tmp_path / "no folder" / "store.db"): "unable to open",
        "sqlite://": "lost with the process",
        "": "lost with the process",
        ":memory:": "lost with the process",
        "sqlite:///:memory:": "lost with the process",
        f"sqlite:///{tmp_path}/new.db?mode=memory&uri=true": "more than the path of a file",
        "sqlite://host/store.db": "more than the path of a file",
        str(tmp_path): "is a folder",
        "/dev/null": "no such file",
        "postgresql://localhost:1/name?nonsense=1": "cannot be opened",
        "postgresql://localhost:1,localhost:2,localhost:3/name?host=a&port=1": "no URL",
        "mysql://host/name": "neither sqlite:// nor postgresql://",
        "postgresql://ann:secret@localhost:1/name": "cannot be opened",
        "postgresql://host:port/name": "no URL",
    }.items():
        with pytest.raises(InputError, match=says) as raised:
            Store.open(wrong)
        assert "secret" not in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="no such file"):
        Store.open(str(tmp_path / "absent.db"), must_exist=True)
    assert not (tmp_path / "absent.db").exists()


def test_a_writer_waits_for_another(tmp_path: Path) -> None:
    """Of another program, such as a backup."""
    file = tmp_path / "store.db"
    store, other = Store.open(str(file)), sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, other.execute, ["COMMIT"])
    timer.start()
    assert store.add_events([event("a")]) == Added(1, 0)
    timer.join()
    other.close()
    store.close()


def test_who_waits_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidrec.serving.database.BUSY_SECONDS", 0.05)
    store = Store.open(str(tmp_path / "store.db"))
    with taking_turn(store.engine), ThreadPoolExecutor(1) as threads, pytest.raises(TimeoutError):
        threads.submit(store.add_events, [event("a")]).result()
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperationalError, match="locked"):
        store.add_events([event("a")])
    other.close()
    assert store.add_events([event("a")]) == Added(1, 0)
    store.close()


def test_both_databases_have_their_first_statements() -> None:
    assert set(FIRST_STATEMENTS) == {"sqlite", "postgresql"}


# ---- keys


def test_a_key_has_its_scope_until_it_is_revoked(store: Store) -> None:
    keys = {scope: store.create_key(scope) for scope in ("read", "write", "admin")}
    assert {scope: store.scope_of(key) for scope, key in keys.items()} == {scope: scope for scope in keys}
    assert [key.scope for key in store.api_keys()] == ["read", "write", "admin"]
    (revoked,) = [key.key_id for key in store.api_keys() if key.scope == "write"]
    assert store.revoke_key(revoked)
    assert not store.revoke_key(revoked)
    assert not store.revoke_key("absent")
    assert [store.scope_of(key) for key in keys.values()] == ["read", None, "admin"]
    assert store.counts().active_keys == 2
    read, admin = keys["read"], keys["admin"]
    for wrong in (
        "",
        "sidrec_",
        read[:-1],
        read + "x",
        read[:15] + admin[15:],
        read.upper(),
        read + "\0",
        "ü" + read,
        "\ud800",
    ):
        assert store.scope_of(wrong) is None
    with pytest.raises(InputError, match="read, write, admin"):
        store.create_key("root")


def test_a_key_is_nowhere_in_the_store(store: Store) -> None:
    keys = [store.create_key("read") for _ in range(20)]
    rows = texts_of(store)
    assert not [key for key in keys if key.split("_", 2)[2] in rows]
    assert len(set(keys)) == 20
    assert all(len(key.split("_", 2)[2]) >= 43 for key in keys), "fewer than 256 bits"
    with store.engine.connect() as connection:
        salts = connection.exec_driver_sql("SELECT salt FROM api_keys").scalars().all()
    assert len(set(salts)) == 20


def test_json_of_both_databases_reads_alike(store: Store) -> None:
    extra = {"a": [1, 2.5, "ü"], "b": {"c": None}}
    store.add_events([Event("e", "u", "i", 1, None, extra)])
    with store.engine.connect() as connection:
        (stored,) = connection.scalars(EVENTS.select().with_only_columns(EVENTS.c.extra))
    assert json.dumps(stored) == json.dumps(extra)


@pytest.mark.parametrize("statement", ["SELECT 1", "CREATE VIEW sidrec_version AS SELECT 1 AS version_num"])
def test_a_file_without_tables_is_no_store_and_stays_as_it_is(tmp_path: Path, statement: str) -> None:
    file = tmp_path / "store.db"
    file.touch()
    with closing(sqlite3.connect(file)) as opened:
        opened.execute(statement)
        opened.commit()
    before = file.read_bytes()
    with pytest.raises(InputError, match="holds no store of sidrec"):
        Store.open(str(file), must_exist=True)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]
