import hashlib
import zipfile
from pathlib import Path

import pytest

from data import download
from data.download import fetch_movielens
from data.movielens import read_ml_1m
from data.stage import InputError

FILES = {"ml-1m/ratings.dat": "1::10::5::978300760\n", "ml-1m/movies.dat": "10::Toy Story (1995)::Comedy\n"}


def publish(site: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> Path:
    """Put an archive at a file:// address that stands for the publisher's site."""
    site.mkdir()
    with zipfile.ZipFile(site / "ml-1m.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    monkeypatch.setattr(download, "MOVIELENS_SITES", (site.as_uri(),))
    digest = hashlib.md5((site / "ml-1m.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(download, "MD5", {"ml-1m": digest})
    return site / "ml-1m.zip"


def test_downloads_once_and_the_reader_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = publish(tmp_path / "site", monkeypatch, FILES)
    folder = fetch_movielens("ml-1m", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "ml-1m"
    assert read_ml_1m(folder).interactions.rows() == [("1", "10", 978300760)]
    archive.unlink()
    assert fetch_movielens("ml-1m", tmp_path / "cache") == folder


def test_wrong_checksum_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "site", monkeypatch, FILES)
    monkeypatch.setattr(download, "MD5", {"ml-1m": "0" * 32})
    with pytest.raises(InputError, match=r"not the publisher's 0000.*--raw_dir"):
        fetch_movielens("ml-1m", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "site", monkeypatch, FILES).unlink()
    with pytest.raises(InputError, match=r"cannot be downloaded .*unpack ml-1m\.zip by hand .*--raw_dir"):
        fetch_movielens("ml-1m", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_that_points_outside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "site", monkeypatch, FILES | {"../../evil.txt": "x"})
    with pytest.raises(InputError, match=r"evil\.txt"):
        fetch_movielens("ml-1m", tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.txt"))
    assert list((tmp_path / "cache").iterdir()) == []
