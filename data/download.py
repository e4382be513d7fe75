"""MovieLens from its publisher: downloaded once, checked against the publisher's md5, unpacked into a cache folder."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.error import URLError

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from data.stage import InputError, atomic_path

SITE = "https://files.grouplens.org/datasets/movielens"
MD5 = {"ml-100k": "0e33842e24a9c977be4e0107933c0723", "ml-1m": "c4d9eecfca2ab87c1945afe126590906"}
TIMEOUT_SECONDS = 30


def fetch_movielens(name: Literal["ml-100k", "ml-1m"], folder: Path) -> Path:
    """The folder with the unpacked files of `name`, below `folder`; downloaded (5 or 6 MB) unless it is there.

    Raises InputError when the network fails, and when the archive is not the publisher's. Nothing half-made stays behind.
    """
    unpacked = folder / name
    if unpacked.is_dir():
        return unpacked
    folder.mkdir(parents=True, exist_ok=True)
    url = f"{SITE}/{name}.zip"
    with atomic_path(folder / f"{name}.zip") as archive:
        _download(url, archive)
        found = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
        if found != MD5[name]:
            raise InputError(f"{url} has md5 {found}, not the publisher's {MD5[name]}; try again, or {_by_hand(name)}.")
        _unpack(archive, unpacked)
    return unpacked


def _by_hand(name: str) -> str:
    return f"download and unpack {name}.zip by hand and pass its folder as --raw_dir"


def _download(url: str, target: Path) -> None:
    """Copy what is at `url` to `target`, with a progress bar."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    name = Path(url).stem
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            size = int(response.headers.get("Content-Length") or 0)
            with Progress(f"downloading {name}", *columns) as progress, target.open("wb") as handle:
                task = progress.add_task(name, total=size or None)
                while chunk := response.read(1 << 16):
                    handle.write(chunk)
                    progress.advance(task, len(chunk))
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise InputError(f"{url} cannot be downloaded ({error}); {_by_hand(name)}.") from error


def _unpack(archive: Path, target: Path) -> None:
    """Unpack the archive's folder `target.name` as `target`: all of it or nothing, and nothing outside it."""
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary, zipfile.ZipFile(archive) as content:
        place = Path(temporary).resolve()
        for member in content.namelist():
            if not (place / member).resolve().is_relative_to(place):
                raise InputError(
                    f"{archive.name} holds {member!r}, which points outside its folder; do not use this archive."
                )
        content.extractall(place)
        shutil.move(place / target.name, target)
