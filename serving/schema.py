"""The tables of the store. `serving/migrations` makes them; a test says that both are the same.

Times of the server (received_at, time, created, revoked) are whole microseconds since 1970, UTC. `timestamp` is the event's own, in the
unit of your log.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, Table, Text
from sqlalchemy import UniqueConstraint as Unique

METADATA = MetaData()
NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts rows up in a column of this type only
Json = JSON(none_as_null=True)

EVENTS = Table(
    "events",
    METADATA,
    Column("arrival", NUMBER, primary_key=True),  # rises from one stored event to the next, whoever stored it
    Column("event_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("timestamp", BigInteger, nullable=False),
    Column("value", Float(53)),
    Column("extra", Json),
    Column("received_at", BigInteger, nullable=False),
    Unique("event_id", name="events_once"),
    sqlite_autoincrement=True,  # a deleted number is not given again
)
Index("events_of_user", EVENTS.c.user_id, EVENTS.c.timestamp.desc(), EVENTS.c.arrival.desc())  # newest first
Index("events_received", EVENTS.c.received_at)

LISTS = Table(
    "served_lists",
    METADATA,
    Column("request_id", Text, primary_key=True),
    Column("user_id", Text),
    Column("time", BigInteger, nullable=False),
    Column("policy", Text, nullable=False),  # name of the bundle or policy that made the list
    Column("catalogue_version", BigInteger, nullable=False),
    Column("k", Integer, nullable=False),  # items that were asked for
    Column("history", Json, nullable=False),  # item ids that the list was made for, oldest first
    Column("exclude_seen", Boolean, nullable=False),
)
Index("lists_of_user", LISTS.c.user_id, LISTS.c.time.desc())
Index("lists_served", LISTS.c.time)

LIST_ITEMS = Table(
    "served_items",
    METADATA,
    Column("request_id", Text, ForeignKey(LISTS.c.request_id, ondelete="CASCADE"), primary_key=True),
    Column("rank", Integer, primary_key=True),  # from 1
    Column("item_id", Text, nullable=False),
    Column("propensity", Float(53)),  # probability of the item given those above it; null: the list was not drawn
)

CATALOGUES = Table(
    "catalogue_versions",
    METADATA,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),  # when it was first seen
    Column("note", Text, nullable=False),
)

KEYS = Table(
    "api_keys",
    METADATA,
    Column("key_id", Text, primary_key=True),
    Column("salt", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("revoked", BigInteger),
)
