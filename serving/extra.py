"""The packages of the extra `serve`, which a plain install leaves out."""

from __future__ import annotations

from importlib.util import find_spec

from sidrec.pipeline.errors import InputError

STORE_PACKAGES = ("sqlalchemy", "alembic")
STORE_HELP = "The store: a SQLite file, or a URL such as postgresql://user@host/name."


def require_store() -> None:
    """Raise InputError unless what the store is built on is installed."""
    missing = next((name for name in STORE_PACKAGES if find_spec(name) is None), None)
    if missing is not None:
        raise InputError(f'the store needs {missing}, which is not installed: run `pip install "sidrec[serve]"`.')
