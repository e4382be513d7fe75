"""Events, served lists, catalogue versions and API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "events",
        sa.Column("arrival", number, primary_key=True),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Float(53)),
        sa.Column("extra", sa.JSON()),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("event_id", name="events_once"),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_user", "events", ["user_id", sa.text("timestamp DESC"), sa.text("arrival DESC")])
    op.create_index("events_received", "events", ["received_at"])
    op.create_table(
        "served_lists",
        sa.Column("request_id", sa.Text(), primary_key=True),
        sa.Column("user_id", sa.Text()),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("catalogue_version", sa.BigInteger(), nullable=False),
        sa.Column("k", sa.Integer(), nullable=False),
        sa.Column("history", sa.JSON(), nullable=False),
        sa.Column("exclude_seen", sa.Boolean(), nullable=False),
    )
    op.create_index("lists_of_user", "served_lists", ["user_id", sa.text("time DESC")])
    op.create_index("lists_served", "served_lists", ["time"])
    list_id = sa.ForeignKey("served_lists.request_id", ondelete="CASCADE")
    op.create_table(
        "served_items",
        sa.Column("request_id", sa.Text(), list_id, primary_key=True),
        sa.Column("rank", sa.Integer(), primary_key=True),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("propensity", sa.Float(53)),
    )
    op.create_table(
        "catalogue_versions",
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(), primary_key=True),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.BigInteger()),
    )
