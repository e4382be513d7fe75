"""A store of the service, filled, and what something else may do to its SQLite file: odd cells, lost tables, another version."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from sidrec.serving.store import Event, ServedList, Store

N_USERS, N_ITEMS, EVENTS_EACH, LATER = 20, 48, 4, 1_600_000_000
VERSION_TABLE, TABLES = (
    "sidrec_version",
    ("events", "served_lists", "served_items", "catalogue_versions", "api_keys"),
)
ODD_CELLS = (
    *("NULL", "''", "'x'", "'[1'", "'{}'", "'[1, 2]'", "'[null]'", "x'00ff'", "-1", "0", "1.5", "9e999", "-9e999"),
    *("9223372036854775807", "-9223372036854775808", "'NaN'", "char(0)", "'\u2028'", "zeroblob(100000)", "'true'"),
)
OTHER_PROGRAMS = (
    "CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url TEXT)",
    "CREATE TABLE events (theirs TEXT)",
    "CREATE TABLE alembic_version (version_num TEXT)",
    "CREATE VIEW sidrec_version AS SELECT 1 AS version_num",
)


def write_store(file: Path) -> None:
    """Events, drawn lists and keys of a few users, the same each time but for the keys."""
    rng = np.random.default_rng(0)
    store = Store.open(str(file))
    events, lists = [], []
    for user in range(N_USERS):
        items = [f"i{item}" for item in rng.permutation(N_ITEMS)[: 2 * EVENTS_EACH]]
        shown, history = items[:EVENTS_EACH], items[EVENTS_EACH:]
        lists.append(ServedList(f"l{user}", f"u{user}", "sft", 1, len(shown), history, True, shown, [0.1] * len(shown)))
        events += [
            Event(f"e{user}-{place}", f"u{user}", item, LATER + 10 * place, 1.5, {"page": "ä"})
            for place, item in enumerate(shown)
        ]
    store.log_lists(lists)
    store.add_events(events)
    store.see_catalogue(1)
    store.revoke_key(store.create_key("read").split("_")[1])
    store.create_key("admin")
    store.close()


def damage_store(rng: np.random.Generator, file: Path) -> str:
    """Change the file, and say how."""
    damage = DAMAGES[rng.integers(len(DAMAGES))]
    return damage(rng, file)


def _changed(file: Path, *statements: str) -> str:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        said = []
        for statement in statements:
            try:
                connection.execute(statement)
                said.append(statement)
            except sqlite3.Error as error:  # a cell that must not be null stays as it was
                said.append(f"{statement} ({error})")
        return "; ".join(said)


def odd_cell(rng: np.random.Generator, file: Path) -> str:
    table = str(rng.choice(TABLES))
    with closing(sqlite3.connect(file)) as connection:
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    name, value, row = str(rng.choice(names)), ODD_CELLS[rng.integers(len(ODD_CELLS))], int(rng.integers(rows))
    where = f"WHERE rowid = (SELECT rowid FROM {table} LIMIT 1 OFFSET {row})"
    return _changed(file, f"UPDATE {table} SET {name} = {value} {where}")


def lost_table(rng: np.random.Generator, file: Path) -> str:
    return _changed(file, f"DROP TABLE {rng.choice([*TABLES, VERSION_TABLE])}")


def lost_column(rng: np.random.Generator, file: Path) -> str:
    table = str(rng.choice(TABLES))
    with closing(sqlite3.connect(file)) as connection:
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    return _changed(file, f"ALTER TABLE {table} RENAME COLUMN {rng.choice(names)} TO theirs")


def other_version(rng: np.random.Generator, file: Path) -> str:
    value = str(rng.choice(["'2'", "'99'", "'0'", "''", "'x'", "NULL", "1.5", "x'01'"]))
    return _changed(file, f"UPDATE {VERSION_TABLE} SET version_num = {value}")


def versions_many_or_none(rng: np.random.Generator, file: Path) -> str:
    if rng.random() < 0.5:
        return _changed(file, f"DELETE FROM {VERSION_TABLE}")
    return _changed(file, f"INSERT INTO {VERSION_TABLE} VALUES ('2')")


def emptied_tables(rng: np.random.Generator, file: Path) -> str:
    return _changed(file, f"DELETE FROM {rng.choice(TABLES)}")


def other_program(rng: np.random.Generator, file: Path) -> str:
    file.unlink()
    return _changed(file, OTHER_PROGRAMS[rng.integers(len(OTHER_PROGRAMS))])


def overwritten_page(rng: np.random.Generator, file: Path) -> str:
    """Bytes in the middle of the file, behind its header, are others."""
    content = bytearray(file.read_bytes())
    start = int(rng.integers(100, len(content)))
    content[start : start + 400] = rng.bytes(len(content[start : start + 400]))
    file.write_bytes(content)
    return f"400 random bytes from {start} on"


def cut_short(rng: np.random.Generator, file: Path) -> str:
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(1, len(content))])
    return f"cut to {file.stat().st_size} of {len(content)} bytes"


def no_database(rng: np.random.Generator, file: Path) -> str:
    kind = rng.integers(4)
    file.unlink()
    if kind == 0:
        file.mkdir()
        return "a folder in its place"
    if kind == 1:
        file.write_text("event_id,user_id\na,b\n" * 50, encoding="utf-8")
        return "a CSV in its place"
    if kind == 2:
        file.touch()
        return "empty"
    return "lost"


DAMAGES: tuple[Callable[[np.random.Generator, Path], str], ...] = (
    *(odd_cell,) * 6,
    *(lost_table, lost_column, other_version, versions_many_or_none, emptied_tables, other_program),
    *(overwritten_page, cut_short, no_database),
)
ODD_STORES = (  # {} is the run directory
    *(
        "",
        ":memory:",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///{}/x.db?mode=memory&uri=true",
        "sqlite://host/x.db",
    ),
    *("sqlite:///{}/x.db?nonsense=1", "sqlite+aiosqlite:///{}/x.db", "mysql://host/name", "://", "http://localhost:1/"),
    *("postgresql://localhost:1/name", "postgresql://nobody.invalid/name", "postgresql://host:port/name", "x://", "{}"),
    *("postgresql://localhost:1/name?nonsense=1", "postgresql://a:secret@localhost:1,localhost:2/name?host=a&port=1"),
    *("postgresql:///name?host=/nowhere", "/nowhere/store.db", "/", "{}/data/items.parquet", "postgresql://[::1/name"),
    *(
        "postgresql://localhost:1/name?connect_timeout=soon",
        "postgresql://localhost:99999/name",
        "/dev/null",
        "{}/lost.db",
    ),
)
