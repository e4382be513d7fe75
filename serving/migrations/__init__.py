"""Alembic's migrations of the store, oldest first in `versions/`: each takes a store from the version before it to its own."""
