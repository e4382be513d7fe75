"""The database under the store: SQLite in one file, or PostgreSQL by its URL; how it is reached, and brought to the newest version.

SQLite writes ahead (WAL) and waits for the disk before a transaction counts (synchronous FULL), so that what was acknowledged survives
`kill -9` and a power cut; what is deleted is overwritten (secure_delete). PostgreSQL does the first by itself.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError, TimeoutError

from sidrec.data.dialect import listed
from sidrec.pipeline.errors import InputError
from sidrec.serving.schema import METADATA

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
VERSION_TABLE = "sidrec_version"
CONNECT_SECONDS = 10  # for which a server may be silent
BUSY_SECONDS = 30  # for which a writer waits for others, and a thread for a connection
FIRST_STATEMENTS = {
    "sqlite": (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        "PRAGMA secure_delete = ON",
    ),
    "postgresql": (f"SET lock_timeout = '{BUSY_SECONDS}s'",),
}
# One writer after the other: two that add the same events in different orders do not wait for each other for ever, and arrival numbers
# appear in the order in which they were given.
TAKE_TURN = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(20250917)"}
TURN = (
    threading.Lock()
)  # within the process: SQLite's own waiting is by trying again, and not fair; and Alembic has one context a process


def open_database(location: str, must_exist: bool) -> Engine:
    """A database of the newest version, with a pool of connections for any number of threads.

    location: a URL of SQLite or PostgreSQL, or the path of a SQLite file. must_exist: whether a missing store is refused, not made. Raises
    InputError for another kind of database, one that cannot be reached, and one that is newer than this sidrec.
    """
    url = url_of(location)
    if url.get_backend_name() == "sqlite":
        _check_file(Path(url.database or ""), must_exist)
    engine = _engine(url)
    try:
        with taking_turn(engine) as connection:
            _migrate(connection, url, must_exist)
    except (SQLAlchemyError, CommandError) as error:
        engine.dispose()
        raise InputError(
            f"--store {shown(url)} cannot be opened ({reason_of(error)}); check the path or the server, and who may use it."
        ) from error
    except InputError:
        engine.dispose()
        raise
    return engine


def reason_of(error: Exception) -> str:
    """What a database says, on one line."""
    said = getattr(error, "orig", None) or error  # without SQLAlchemy's words around it
    return " ".join(str(said).split()).rstrip(".") or type(said).__name__


def _check_file(file: Path, must_exist: bool) -> None:
    """Raise InputError for what is no SQLite file, and for another program's, before a byte of it is changed."""
    if file.is_dir():
        raise InputError(f"--store {file} is a folder; name a file in it.")
    if not file.is_file():
        if must_exist or file.exists():
            raise InputError(f"--store {file}: there is no such file; check the path.")
        return
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as opened:
            held = opened.execute("SELECT name, type FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        raise InputError(
            f"--store {file} cannot be opened ({error}); check the path, and who may use it, or put back a copy."
        ) from error
    if not held and must_exist:
        raise InputError(f"--store {file} holds no store of sidrec; check the path.")
    if held and (VERSION_TABLE, "table") not in held:
        names = listed([name for name, _ in held])
        raise InputError(
            f"--store {file} holds no store of sidrec, but another program's tables ({names}); name another file."
        )


def url_of(location: str) -> URL:
    """The URL with its driver, of what a user writes. Raises InputError for what is neither SQLite nor PostgreSQL, or lacks its driver."""
    if "://" not in location:
        _refuse_memory(location)
        return URL.create("sqlite", database=location)
    try:
        url = make_url(location)
    except (ArgumentError, ValueError) as error:
        raise InputError("--store is no URL; write sqlite:///store.db or postgresql://user@host/name.") from error
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite" and (url.username or url.host or url.port or url.query):
        raise InputError(f"--store {shown(url)} has more than the path of a file; write sqlite:///store.db.")
    if backend == "sqlite":
        _refuse_memory(url.database)
    if backend in ("postgresql", "postgres"):
        if find_spec("psycopg") is None:
            raise InputError(
                f'--store {shown(url)} needs psycopg, which is not installed: run `pip install "sidrec[postgres]"`.'
            )
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "sqlite":
        raise InputError(f"--store {shown(url)} is neither sqlite:// nor postgresql://; name one of them, or a file.")
    return url


def files_of(location: str) -> list[Path]:
    """The SQLite file of a store; none of a server's. Raises InputError as `url_of` does."""
    url = url_of(location)
    return [Path(url.database or "")] if url.get_backend_name() == "sqlite" else []


def _refuse_memory(database: str | None) -> None:
    if not (database or "").strip() or database == ":memory:":
        raise InputError("--store would be lost with the process; name a file, such as store.db or sqlite:///store.db.")


def shown(url: URL) -> str:
    """The URL without its password."""
    return url.render_as_string(hide_password=True)


@contextmanager
def taking_turn(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other one of this kind runs beside; committed when the block ends well, undone when it does not.

    Raises SQLAlchemy's TimeoutError or OperationalError when the others take longer than BUSY_SECONDS.
    """
    if not TURN.acquire(timeout=BUSY_SECONDS):
        raise TimeoutError(f"other writers of this process took longer than {BUSY_SECONDS} seconds")
    try:
        with engine.execution_options(takes_turn=True).begin() as connection:
            yield connection
    finally:
        TURN.release()


def empty_wal(engine: Engine) -> None:
    """Bring what SQLite wrote ahead into its file, so that no deleted row is left there; not while somebody reads for long, for writers
    wait meanwhile."""
    with closing(engine.raw_connection()) as raw:
        cursor = raw.cursor()
        cursor.execute("PRAGMA busy_timeout = 1000")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        cursor.close()


def _engine(url: URL) -> Engine:
    wait: dict[str, Any] = {"timeout": BUSY_SECONDS}
    if url.get_backend_name() == "postgresql":
        wait = {"connect_timeout": CONNECT_SECONDS}
    try:
        engine = create_engine(url, connect_args=wait, pool_timeout=BUSY_SECONDS, pool_pre_ping=True)
    except ArgumentError as error:
        raise InputError(f"--store {shown(url)} is no URL of a database ({reason_of(error)}); correct it.") from error
    is_sqlite = engine.dialect.name == "sqlite"

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        if is_sqlite:
            connection.isolation_level = None  # sqlite3 begins no transaction by itself; `begun` does
        cursor = connection.cursor()
        for statement in FIRST_STATEMENTS[engine.dialect.name]:
            cursor.execute(statement)
        cursor.close()
        connection.commit()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        if connection.get_execution_options().get("takes_turn"):
            connection.exec_driver_sql(TAKE_TURN[engine.dialect.name])
        elif is_sqlite:
            connection.exec_driver_sql("BEGIN")

    return engine


def _migrate(connection: Connection, url: URL, must_exist: bool) -> None:
    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    version = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    newest = script.get_current_head()
    if version is None and must_exist:
        raise InputError(f"--store {shown(url)} holds no store of sidrec; check the URL.")
    if version is not None and version not in [each.revision for each in script.walk_revisions()]:
        raise InputError(
            f"--store {shown(url)} has version {version}, and this sidrec knows versions up to {newest}; install the newer sidrec, or "
            "name another store."
        )
    if version != newest:
        command.upgrade(config, "head")
    _refuse_other_tables(connection, url)


def _refuse_other_tables(connection: Connection, url: URL) -> None:
    """Raise InputError where a table or a column of the newest version is not there."""
    of_tables = inspect(connection)
    for table in METADATA.sorted_tables:
        names = (
            {column["name"] for column in of_tables.get_columns(table.name)}
            if of_tables.has_table(table.name)
            else set()
        )
        lost = [column.name for column in table.columns if column.name not in names]
        if lost:
            raise InputError(
                f"--store {shown(url)} has lost {table.name}.{lost[0]}: something else changed its tables; put back a copy."
            )
