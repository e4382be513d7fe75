"""The packages of the extra `serve`, which a plain install leaves out."""

from __future__ import annotations

from importlib.util import find_spec

from sidrec.pipeline.errors import InputError

STORE_PACKAGES = ("sqlalchemy", "alembic")
MICROSECONDS_PER_HOUR = 3_600_000_000
MOST_HOURS = 1_000_000.0  # more than a hundred years
STORE_HELP = "The store: a SQLite file, or a URL such as postgresql://user@host/name."


def require_store() -> None:
    """Raise InputError unless what the store is built on is installed."""
    missing = next((name for name in STORE_PACKAGES if find_spec(name) is None), None)
    if missing is not None:
        raise InputError(f'the store needs {missing}, which is not installed: run `pip install "sidrec[serve]"`.')


def check_hours(name: str, hours: float, a_unit: float = 1.0) -> None:
    """Raise InputError for a time that is not above 0, or longer than any store is old. hours: or longer units, of `a_unit` hours."""
    if not 0 < hours <= MOST_HOURS / a_unit:
        raise InputError(f"--{name} is {hours:g}; it must be above 0 and at most {MOST_HOURS / a_unit:,.0f}.")
