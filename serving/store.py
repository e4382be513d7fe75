"""The store: what users did, which lists they were served, which catalogues were seen, and who may ask. SQLite or PostgreSQL.

    store = Store.open("store.db")
    store.add_events([Event("e1", user_id="ann", item_id="tea-3", timestamp=1700000000)])
    store.history("ann")                                   # ["tea-3"]

Any number of threads may use one store. An operation is one transaction: when it returns, what it wrote is on the disk; when it raises,
nothing was written. A database that is away or busy for too long raises SQLAlchemy's OperationalError
or TimeoutError.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from sidrec.pipeline.errors import InputError
from sidrec.serving.api_keys import SCOPES, fits, new_key, parts_of
from sidrec.serving.database import empty_wal, open_database, reason_of, shown, taking_turn
from sidrec.serving.schema import CATALOGUES, EVENTS, KEYS, LIST_ITEMS, LISTS

MOST_CHARACTERS = 512  # of an id; an index of PostgreSQL takes no more than 2,704 bytes
LARGEST = 2**63 - 1
NO_DATABASE_HOLDS = re.compile("[\0\ud800-\udfff]")
ROWS_AT_ONCE = 50_000
INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
REMEMBERED = (
    "Models trained on these events still hold what they learnt from them, and exported files still hold the events: export again and "
    "train again without them."
)


@dataclass(frozen=True)
class Event:
    """A user did something with an item. event_id: the caller's own; the same one twice is one event. timestamp: in the unit of your
    log. value: such as stars or a price. extra: whatever else should be kept, as JSON."""

    event_id: str
    user_id: str
    item_id: str
    timestamp: int
    value: float | None = None
    extra: dict[str, Any] | None = None


@dataclass(frozen=True)
class ServedList:
    """A list as it was served. policy: name of the bundle or policy. k: items asked for. history: item ids that the list was made for,
    oldest first. exclude_seen: whether items of it could not be recommended. items: best first, each once. propensities: of a list that
    was drawn at random (`draw_list`), each item's probability given those above it; None: it was not drawn."""

    request_id: str
    user_id: str | None
    policy: str
    catalogue_version: int
    k: int
    history: list[str]
    exclude_seen: bool
    items: list[str]
    propensities: list[float] | None = None


@dataclass(frozen=True)
class Added:
    """How many events are new, and how many had been stored before, in this call or an earlier one."""

    accepted: int
    duplicates: int


@dataclass(frozen=True)
class Removed:
    """How many events and served lists were deleted. note: what deleting them does not undo."""

    events: int
    lists: int
    note: str = REMEMBERED


@dataclass(frozen=True)
class Counts:
    """Rows of the store; active keys are those that are not revoked. last_event: when the last event arrived, microseconds since 1970."""

    events: int
    lists: int
    catalogue_versions: int
    active_keys: int
    last_event: int | None


@dataclass(frozen=True)
class ApiKey:
    """What the store knows of a key. created, revoked: microseconds since 1970, UTC."""

    key_id: str
    scope: str
    created: int
    revoked: int | None


def microseconds() -> int:
    """Since 1970, UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class Store:
    """See the head of this module. clock: microseconds since 1970, at which events and lists arrive."""

    engine: Engine
    clock: Callable[[], int] = microseconds

    @classmethod
    def open(cls, location: str, *, must_exist: bool = False) -> Store:
        """The store in a SQLite file (a path, or sqlite:///store.db) or in PostgreSQL (postgresql://user@host/name), brought to the newest
        version. must_exist: whether a missing one is refused, not made.

        Raises InputError for a database that cannot be opened, and for one that is newer than this sidrec.
        """
        return cls(open_database(location, must_exist))

    @classmethod
    @contextmanager
    def in_use(cls, location: str, *, must_exist: bool = False) -> Iterator[Store]:
        """`open`, for a block, at whose end it is closed. Raises InputError, too, where the database fails in it: damaged, full, away."""
        store = cls.open(location, must_exist=must_exist)
        try:
            yield store
        except SQLAlchemyError as error:
            raise InputError(
                f"--store {shown(store.engine.url)} fails ({reason_of(error)}); check the disk or the server, or put back a copy."
            ) from error
        finally:
            store.close()

    def close(self) -> None:
        """Close the connections that no thread uses."""
        self.engine.dispose()

    # ---- events

    def add_events(self, events: Sequence[Event]) -> Added:
        """Store events, all or none. One whose event_id is there already is a duplicate: the stored one stays as it is.

        Raises InputError, naming the event, for an id that is empty, too long or no text, and for a number or an extra that no database
        holds.
        """
        if not events:
            return Added(0, 0)
        now = self.clock()
        rows = [_row_of(event, now) for event in events]
        with taking_turn(self.engine) as connection:
            accepted = self._insert_new(connection, EVENTS, "event_id", rows)
        return Added(accepted, len(rows) - accepted)

    def history(self, user: str, limit: int | None = None) -> list[str]:
        """Item ids of the user's last `limit` events, None: of all; oldest first, those of one timestamp in the order of arrival."""
        check_id("history", "user_id", user)
        columns = EVENTS.c
        newest = select(columns.item_id).where(columns.user_id == user)
        newest = newest.order_by(columns.timestamp.desc(), columns.arrival.desc()).limit(limit)
        return self._column(newest)[::-1]

    def users(self) -> list[str]:
        """Every user with an event, sorted."""
        return sorted(self._column(select(EVENTS.c.user_id).distinct()))

    # ---- served lists

    def log_list(self, served: ServedList) -> bool:
        """Store a list and when it was served; False where one with its request_id is there already, which stays as it is.

        Raises InputError for ids as `add_events` does, for an item that is in it twice, and for propensities that are none.
        """
        return self.log_lists([served]) == 1

    def log_lists(self, lists: Sequence[ServedList]) -> int:
        """`log_list` for many in one transaction, all or none; how many are new."""
        now = self.clock()
        rows = {served.request_id: _rows_of(served, now) for served in reversed(lists)}
        if not rows:
            return 0
        with taking_turn(self.engine) as connection:
            stored = connection.scalars(select(LISTS.c.request_id).where(LISTS.c.request_id.in_(rows)))
            for request_id in stored.all():
                del rows[request_id]
            if rows:
                connection.execute(insert(LISTS), [row for row, _ in rows.values()])
            items = [item for _, of_list in rows.values() for item in of_list]
            if items:
                connection.execute(insert(LIST_ITEMS), items)
        return len(rows)

    def see_catalogue(self, number: int, note: str = "") -> bool:
        """Store that a version of the catalogue was seen now; False where it was before."""
        row = {"number": number, "time": self.clock(), "note": note}
        with taking_turn(self.engine) as connection:
            return self._insert_new(connection, CATALOGUES, "number", [row]) == 1

    # ---- deletion and health

    def delete_user(self, user: str) -> Removed:
        """Delete every row of a user: events, and the lists they were served.

        Of SQLite's files none holds a byte of them afterwards; where an export is reading, once it has ended and the store is closed, or
        something else deleted.
        """
        check_id("deletion", "user_id", user)
        return self._remove(EVENTS.c.user_id == user, LISTS.c.user_id == user)

    def expire(self, older_than: timedelta) -> Removed:
        """Delete the events that arrived, and the lists that were served, longer ago than this."""
        limit = self.clock() - older_than // timedelta(microseconds=1)
        return self._remove(EVENTS.c.received_at < limit, LISTS.c.time < limit)

    def _remove(self, of_events: Any, of_lists: Any) -> Removed:
        with taking_turn(self.engine) as connection:
            events = connection.execute(delete(EVENTS).where(of_events)).rowcount
            lists = connection.execute(delete(LISTS).where(of_lists)).rowcount  # its items go with a list
        if self.engine.dialect.name == "sqlite":
            empty_wal(self.engine)
        return Removed(events, lists)

    def check(self) -> None:
        """Raise SQLAlchemy's OperationalError or TimeoutError where the database is away."""
        with self.engine.connect() as connection:
            connection.execute(select(1))

    def counts(self) -> Counts:
        """For a look at it. Counting reads an index from end to end: a second for tens of millions of rows."""
        numbers = {"events": EVENTS, "lists": LISTS, "catalogue_versions": CATALOGUES}
        queries: dict[str, Select[Any]] = {
            name: select(func.count()).select_from(table) for name, table in numbers.items()
        }
        queries["active_keys"] = select(func.count()).select_from(KEYS).where(KEYS.c.revoked.is_(None))
        queries["last_event"] = select(func.max(EVENTS.c.received_at))
        with self.engine.connect() as connection:
            return Counts(**{name: connection.scalar(query) for name, query in queries.items()})

    # ---- API keys

    def create_key(self, scope: str) -> str:
        """A new key, which is not to be had again: the store holds a salted hash. Raises InputError for an unknown scope."""
        if scope not in SCOPES:
            raise InputError(f"scope is {scope!r}; it must be one of {', '.join(SCOPES)}.")
        key, key_id, salt, hashed = new_key()
        row = {"key_id": key_id, "salt": salt, "hash": hashed, "scope": scope, "created": self.clock()}
        with taking_turn(self.engine) as connection:
            connection.execute(insert(KEYS), row)
        return key

    def scope_of(self, key: str) -> str | None:
        """read, write or admin; None for a key that is unknown or revoked."""
        key_id, secret = parts_of(key)
        with self.engine.connect() as connection:
            row = connection.execute(select(KEYS).where(KEYS.c.key_id == key_id)).one_or_none()
        is_right = fits(secret, "" if row is None else row.salt, "" if row is None else row.hash)
        return row.scope if is_right and row is not None and row.revoked is None else None

    def revoke_key(self, key_id: str) -> bool:
        """Make a key useless from now on; False where no active key has this id."""
        statement = update(KEYS).where(KEYS.c.key_id == key_id, KEYS.c.revoked.is_(None)).values(revoked=self.clock())
        with taking_turn(self.engine) as connection:
            return connection.execute(statement).rowcount == 1

    def api_keys(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        columns = select(KEYS.c.key_id, KEYS.c.scope, KEYS.c.created, KEYS.c.revoked)
        with self.engine.connect() as connection:
            return [ApiKey(*row) for row in connection.execute(columns.order_by(KEYS.c.created, KEYS.c.key_id))]

    # ---- reading much

    def blocks(self, statement: Select[Any]) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a query as they are at this moment, ROWS_AT_ONCE at a time, read from the database as they are asked for."""
        with self.engine.connect().execution_options(stream_results=True, yield_per=ROWS_AT_ONCE) as connection:
            for rows in connection.execute(statement).partitions():
                yield [tuple(row) for row in rows]

    def _insert_new(self, connection: Connection, table: Table, key: str, rows: list[dict[str, Any]]) -> int:
        """Insert rows, in their order, but for those whose key is there; how many were inserted."""
        statement = INSERT[self.engine.dialect.name](table).on_conflict_do_nothing(index_elements=[key])
        return connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount

    def _column(self, statement: Select[tuple[str]]) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(statement))


def _row_of(event: Event, received_at: int) -> dict[str, Any]:
    where = f"event {event.event_id!r}"
    for name in ("event_id", "user_id", "item_id"):
        check_id(where, name, getattr(event, name))
    if isinstance(event.timestamp, bool) or not isinstance(event.timestamp, int) or abs(event.timestamp) > LARGEST:
        raise InputError(f"{where}: timestamp is {event.timestamp!r}; it must be a whole number below 2 to the 63.")
    if event.value is not None and not math.isfinite(event.value):
        raise InputError(f"{where}: value is {event.value!r}; it must be a finite number, or left out.")
    try:
        json.dumps(event.extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: extra is no JSON ({error}); give an object of texts and finite numbers.") from error
    return vars(event) | {"received_at": received_at}


def _rows_of(served: ServedList, now: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of the list, and those of its items."""
    where = f"list {served.request_id!r}"
    check_id(where, "request_id", served.request_id)
    if served.user_id is not None:
        check_id(where, "user_id", served.user_id)
    for item in (*served.history, *served.items):
        check_id(where, "an item", item)
    if len(set(served.items)) < len(served.items):
        raise InputError(f"{where} holds an item twice; serve each once.")
    propensities: Sequence[float | None] = served.propensities or [None] * len(served.items)
    if len(propensities) != len(served.items):
        raise InputError(f"{where} has {len(propensities)} propensities for {len(served.items)} items; log one each.")
    if any(each is not None and not 0 < each <= 1 for each in propensities):
        raise InputError(
            f"{where} has a propensity that is not above 0 and at most 1; log the probability of the draw."
        )
    row = vars(served) | {"time": now}
    items, _ = row.pop("items"), row.pop("propensities")
    ranked = enumerate(zip(items, propensities, strict=True), 1)
    return row, [
        {"request_id": served.request_id, "rank": rank, "item_id": item, "propensity": propensity}
        for rank, (item, propensity) in ranked
    ]


def check_id(where: str, name: str, text: Any) -> None:
    """Raise InputError for what neither database holds, or `sidrec prepare` refuses."""
    if not isinstance(text, str) or not text.strip() or len(text) > MOST_CHARACTERS:
        raise InputError(
            f"{where}: {name} is {str(text)[:60]!r}; it must be a text of 1 to {MOST_CHARACTERS} characters."
        )
    if NO_DATABASE_HOLDS.search(text):
        raise InputError(f"{where}: {name} is {text[:60]!r}, with a character that no database holds; leave it out.")
