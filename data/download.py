"""Download MovieLens and Amazon reviews from their publishers, once, into a cache folder, from the first address that answers."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, sha256

# the second one serves while the first one's certificate is out of date; the checksum protects both
MOVIELENS_SITES = ("https://files.grouplens.org/datasets/movielens", "http://files.grouplens.org/datasets/movielens")
# from the publisher's ….zip.md5; ml-latest-small has none here because it is replaced from time to time
MD5 = {
    "ml-100k": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-32m": "d472be332d4daa821edc399621853b57",
}
AMAZON_SITES = {
    "amazon-2014": (
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon",
        "https://snap.stanford.edu/data/amazon/productGraph",
        "http://jmcauley.ucsd.edu/data/amazon",
    ),
    "amazon-2018": (
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
        "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2",
        "https://jmcauley.ucsd.edu/data/amazon_v2",
    ),
    "amazon-2023": (
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023",
        "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_2023",
    ),
}
# reviews (those of users and items with five or more), then metadata
AMAZON_FILES = {
    "amazon-2014": ("categoryFiles/reviews_{}_5.json.gz", "categoryFiles/meta_{}.json.gz"),
    "amazon-2018": ("categoryFilesSmall/{}_5.json.gz", "metaFiles2/meta_{}.json.gz"),
    "amazon-2023": ("benchmark/5core/rating_only/{}.csv.gz", "raw/meta_categories/meta_{}.jsonl.gz"),
}
TIMEOUT_SECONDS = 30


def fetch_movielens(name: str, folder: Path) -> Path:
    """The folder with the unpacked files of `name`, below `folder`; downloaded (1 to 230 MB) unless it is there.

    Raises InputError when no address answers, and when the archive is not the publisher's. Nothing half-made stays behind.
    """
    unpacked = folder / name
    if unpacked.is_dir():
        return unpacked
    folder.mkdir(parents=True, exist_ok=True)
    urls = [f"{site}/{name}.zip" for site in MOVIELENS_SITES]
    by_hand = f"download and unpack {name}.zip by hand and pass its folder as --raw_dir"
    with atomic_path(folder / f"{name}.zip") as archive:
        _fetch(urls, archive, MD5.get(name) or _published_md5(urls, by_hand), by_hand)
        _unpack(archive, unpacked)
    return unpacked


def fetch_amazon(edition: str, category: str, folder: Path) -> Path:
    """The folder with a category's reviews and metadata, below `folder`; each file is downloaded unless it is there.

    The publisher gives no checksums, so the download is recorded: its sha256 in the run's manifest.json, its size in dataset.json.
    Raises InputError when no address answers.
    """
    target = folder / edition
    target.mkdir(parents=True, exist_ok=True)
    for name in AMAZON_FILES[edition]:
        file = target / Path(name.format(category)).name
        if file.exists():
            continue
        by_hand = f"check --category {category}, or download {file.name} by hand and pass its folder as --raw_dir"
        with atomic_path(file) as temporary:
            _fetch([f"{site}/{name.format(category)}" for site in AMAZON_SITES[edition]], temporary, None, by_hand)
            size, digest = temporary.stat().st_size, sha256(temporary)
        Console().print(
            f"{file.name}: {size:,} bytes, sha256 {digest}; its publisher gives no checksum, so size and sha256 are recorded "
            "in dataset.json and manifest.json.",
            soft_wrap=True,
            highlight=False,
        )
    return target


def _fetch(urls: list[str], target: Path, md5: str | None, by_hand: str) -> None:
    """Download the first of `urls` that delivers the whole file with this md5 (None: not known). Raises InputError when none does."""
    failures = []
    for url in urls:
        try:
            _download(url, target)
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            failures.append(f"{url} cannot be downloaded ({error})")
            continue
        digest = hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest() if md5 else None
        if digest == md5:
            return
        failures.append(f"{url} has md5 {digest}, not the publisher's {md5}")
    raise InputError(f"{', and '.join(failures)}; try again, or {by_hand}.")


def _download(url: str, target: Path) -> None:
    """Copy what is at `url` to `target`, with a progress bar; raises ConnectionError when less came than was announced."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    name = Path(url).name
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        size = int(response.headers.get("Content-Length") or 0)
        with Progress(f"downloading {name}", *columns) as progress, target.open("wb") as handle:
            task = progress.add_task(name, total=size or None)
            while chunk := response.read(1 << 16):
                handle.write(chunk)
                progress.advance(task, len(chunk))
    came = target.stat().st_size
    if came < size:
        raise ConnectionError(f"only {came} of {size} bytes came")


def _published_md5(urls: list[str], by_hand: str) -> str:
    """The md5 in the file that the publisher puts beside an archive (`….zip.md5`)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "md5"
        _fetch([f"{url}.md5" for url in urls], file, None, by_hand)
        match = re.search(r"\b[0-9a-f]{32}\b", file.read_text(encoding="utf-8", errors="replace"))
    if match is None:
        raise InputError(f"{urls[0]}.md5 holds no md5; try again, or {by_hand}.")
    return match.group()


def _unpack(archive: Path, target: Path) -> None:
    """Unpack the archive's folder `target.name` as `target`: all of it or nothing, and nothing outside it."""
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary, zipfile.ZipFile(archive) as content:
        folder = Path(temporary).resolve()
        for member in content.namelist():
            if not (folder / member).resolve().is_relative_to(folder):
                raise InputError(
                    f"{archive.name} holds {member!r}, which points outside its folder; do not use this archive."
                )
        content.extractall(folder)
        shutil.move(folder / target.name, target)
