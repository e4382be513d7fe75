import gzip
import hashlib
import zipfile
from pathlib import Path

import pytest

from sidrec.data import download
from sidrec.data.amazon import find_amazon, read_amazon
from sidrec.data.download import fetch_amazon, fetch_movielens
from sidrec.data.movielens import read_ml_1m
from sidrec.pipeline.errors import InputError

FILES = {"ml-1m/ratings.dat": "1::10::5::978300760\n", "ml-1m/movies.dat": "10::Toy Story (1995)::Comedy\n"}


def publish(site: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], name: str = "ml-1m") -> Path:
    """Put an archive at a file:// address that stands for the publisher's site."""
    site.mkdir()
    with zipfile.ZipFile(site / f"{name}.zip", "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    monkeypatch.setattr(download, "MOVIELENS_SITES", (site.as_uri(),))
    monkeypatch.setattr(download, "MD5", {"ml-1m": md5(site / f"{name}.zip")})
    return site / f"{name}.zip"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_downloads_once_and_the_reader_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = publish(tmp_path / "site", monkeypatch, FILES)
    folder = fetch_movielens("ml-1m", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "ml-1m"
    assert read_ml_1m(folder).interactions.rows() == [("1", "10", 978300760, 5.0)]
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


@pytest.mark.parametrize("first", ["absent", "damaged"])
def test_the_next_mirror_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    publish(tmp_path / "site", monkeypatch, FILES)
    other = tmp_path / first
    other.mkdir()
    if first == "damaged":
        (other / "ml-1m.zip").write_bytes(b"<html>moved</html>")
    monkeypatch.setattr(download, "MOVIELENS_SITES", (other.as_uri(), (tmp_path / "site").as_uri()))
    assert (fetch_movielens("ml-1m", tmp_path / "cache") / "ratings.dat").is_file()


def test_every_failed_mirror_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [(tmp_path / name).as_uri() for name in ("one", "two")]
    monkeypatch.setattr(download, "MOVIELENS_SITES", sites)
    with pytest.raises(InputError, match=r"one/ml-20m\.zip cannot be .*, and .*two/ml-20m\.zip cannot be") as error:
        fetch_movielens("ml-20m", tmp_path / "cache")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [False, True])
def test_latest_small_is_checked_against_the_md5_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    archive = publish(tmp_path / "site", monkeypatch, {"ml-latest-small/ratings.csv": "x"}, "ml-latest-small")
    digest = "f" * 32 if wrong else md5(archive)
    archive.with_name("ml-latest-small.zip.md5").write_text(f"MD5 (ml-latest-small.zip) = {digest}\n")
    if wrong:
        with pytest.raises(InputError, match="not the publisher's ffff"):
            fetch_movielens("ml-latest-small", tmp_path / "cache")
    else:
        assert (fetch_movielens("ml-latest-small", tmp_path / "cache") / "ratings.csv").read_text() == "x"


def test_less_than_announced_is_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "site", monkeypatch, FILES)
    really_open = download.urllib.request.urlopen

    def cut_short(url: str, timeout: float) -> object:
        response = really_open(url, timeout=timeout)
        response.headers.replace_header("Content-Length", "99999")
        return response

    monkeypatch.setattr(download.urllib.request, "urlopen", cut_short)
    with pytest.raises(InputError, match=r"cannot be downloaded \(only \d+ of 99999 bytes came\)"):
        fetch_movielens("ml-1m", tmp_path / "cache")


def test_amazon_comes_file_by_file_and_tells_size_and_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site" / "categoryFiles"
    site.mkdir(parents=True)
    review = b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 5}\n'
    (site / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(review))
    monkeypatch.setattr(download, "AMAZON_SITES", {"amazon-2014": (site.parent.as_uri(),)})
    with pytest.raises(InputError, match=r"meta_Beauty\.json\.gz cannot be downloaded .*--category Beauty.*--raw_dir"):
        fetch_amazon("amazon-2014", "Beauty", tmp_path / "cache")
    (site / "meta_Beauty.json.gz").write_bytes(gzip.compress(b"{'asin': 'B1', 'title': 'Comb'}\n"))
    (site / "reviews_Beauty_5.json.gz").unlink()  # it is there already
    folder = fetch_amazon("amazon-2014", "Beauty", tmp_path / "cache")
    raw = read_amazon("amazon-2014", *find_amazon("amazon-2014", "Beauty", folder))
    assert raw.interactions.rows() == [("A1", "B1", 5)]
    assert raw.items["title"].to_list() == ["Comb"]
    digest = hashlib.sha256((folder / "meta_Beauty.json.gz").read_bytes()).hexdigest()
    size = (folder / "meta_Beauty.json.gz").stat().st_size
    assert f"meta_Beauty.json.gz: {size:,} bytes, sha256 {digest}" in capsys.readouterr().out


def test_every_edition_has_addresses_and_the_names_that_its_reader_looks_for(tmp_path: Path) -> None:
    for edition, sites in download.AMAZON_SITES.items():
        assert all(not site.endswith("/") for site in sites)
        for name in download.AMAZON_FILES[edition]:
            (tmp_path / Path(name.format("Toys")).name).touch()
        names = [path.name for path in find_amazon(edition, "Toys", tmp_path)]
        assert names == [Path(name.format("Toys")).name for name in download.AMAZON_FILES[edition]]
        for path in tmp_path.iterdir():
            path.unlink()
