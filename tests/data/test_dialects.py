"""CSV files as other programs write them, read by `sidrec prepare`."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from run_dirs import assert_one_sentence, exit_code

from sidrec.data.dataset import Dataset

LOG = [("user_id", "item_id", "timestamp")]
LOG += [(user, item, str(1_700_000_000 + 10 * n)) for n, (user, item) in enumerate((u, i) for u in "ab" for i in "xyz")]
CATALOGUE = [("item_id", "title", "price"), ("x", "Rød kop", "1.5"), ("y", "Green, big", "2"), ("z", "Blå", "")]
Prepare = Callable[..., tuple[int, str]]


def written(rows: list[tuple[str, ...]], separator: str = ",", mark: str = '"', everywhere: bool = False) -> str:
    """CSV text; a field that holds the separator is quoted, or every one."""
    lines = (
        separator.join(f"{mark}{field}{mark}" if everywhere or separator in field else field for field in row)
        for row in rows
    )
    return "\n".join(lines) + "\n"


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Write a log and a catalogue under these names, prepare them; exit code and stderr."""

    def call(log: bytes, items: bytes, *flags: str, log_name: str = "log.csv", items_name: str = "items.csv"):
        (tmp_path / log_name).write_bytes(log)
        (tmp_path / items_name).write_bytes(items)
        files = ["--interactions", tmp_path / log_name, "--items", tmp_path / items_name]
        keep = ["--k_user", "1", "--k_item", "1", "--run_dir", tmp_path / "run"]
        code = exit_code("data/prepare.py", "--dataset", "own", *files, *keep, *flags)
        return code, capsys.readouterr().err

    return call


def assert_whole(run_dir: Path) -> None:
    dataset = Dataset.load(run_dir)
    price = pl.col("price").cast(pl.Float64, strict=False)  # a quoted number stays a string
    assert dataset.items.select("item_id", "title", price).rows() == [
        *(("x", "Rød kop", 1.5), ("y", "Green, big", 2.0), ("z", "Blå", None))
    ]
    log = dataset.interactions.join(dataset.items, on="item_index").sort("timestamp")
    assert [*log.select("user_id", "item_id", pl.col("timestamp").cast(pl.String)).iter_rows()] == LOG[1:]


@pytest.mark.parametrize(("mark", "everywhere"), [('"', False), ('"', True), ("'", True)])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separator_and_quotation_mark_are_those_of_the_first_line(
    prepare: Prepare, tmp_path: Path, separator: str, mark: str, everywhere: bool
) -> None:
    """Each file has its own."""
    items = written(CATALOGUE, separator, mark, everywhere)
    assert prepare(written(LOG).encode(), items.encode()) == (0, "")
    assert_whole(tmp_path / "run")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [("log.csv", "items.csv"), ("LOG.CSV", "items.Tsv"), ("log.txt", "items.csv.gz")])
def test_byte_order_marks_and_packed_files_need_no_flag(
    prepare: Prepare, tmp_path: Path, encoding: str, packed: bool, names: tuple[str, str]
) -> None:
    """Packed or not, whatever the name; with the line ends of Windows."""
    contents = [written(rows).replace("\n", "\r\n").encode(encoding) for rows in (LOG, CATALOGUE)]
    contents = [gzip.compress(content) for content in contents] if packed else contents
    assert prepare(*contents, log_name=names[0], items_name=names[1]) == (0, "")
    assert_whole(tmp_path / "run")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_asked_for_and_named(prepare: Prepare, tmp_path: Path, encoding: str) -> None:
    contents = [written(rows).encode(encoding) for rows in (LOG, CATALOGUE)]
    code, err = prepare(*contents)
    assert code == 2
    assert_one_sentence(err)
    culprit = "items.csv is not utf-8 text (byte 0xf8 in line 2)" if len(encoding) < 9 else "log.csv is not utf-8 text"
    assert culprit in err
    assert "--encoding, for example latin-1, cp1252 or utf-16-le" in err
    assert prepare(*contents, "--encoding", encoding) == (0, "")
    assert_whole(tmp_path / "run")


def test_a_separator_of_another_kind_is_named(prepare: Prepare, tmp_path: Path) -> None:
    contents = [written(rows, "^").encode() for rows in (LOG, CATALOGUE)]
    code, err = prepare(*contents)
    assert code == 2
    assert "no separator of ',', ';', tab, '|' gives the first line, 'user_id^item_id^timestamp'" in err
    assert prepare(*contents, "--separator", "^") == (0, "")
    assert_whole(tmp_path / "run")
    tabs = [written(rows, "\t").encode() for rows in (LOG, CATALOGUE)]
    for word in ("tab", "\\t"):
        assert prepare(*tabs, "--separator", word, "--overwrite", "true") == (0, "")


def test_decimal_commas_are_numbers_where_no_comma_separates(prepare: Prepare, tmp_path: Path) -> None:
    """A column with one word, with decimal points, or with groups of digits stays as it is."""
    rows = [
        *("item_id;title;price;weight;code;sum", 'x;Cup;"1,5";-0,25;1,5;1.000,5', "y;Pot;2;3;2,5 kg;2.000,5"),
        'z;Pan;"";4,75;;3,5',
    ]
    log = written(LOG, ";").replace("1700000010", "1700000010,5")
    assert prepare(log.encode(), ("\n".join(rows) + "\n").encode()) == (0, "")
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.items.select("price", "weight", "code", "sum").rows() == [
        (1.5, -0.25, "1,5", "1.000,5"),
        (2.0, 3.0, "2,5 kg", "2.000,5"),
        (None, 4.75, None, "3,5"),
    ]
    assert dataset.items["text"][0] == "Cup. price: 1.5. weight: -0.25. code: 1,5. sum: 1.000,5"
    assert sorted(dataset.interactions["timestamp"])[:2] == [1_700_000_000_000_000, 1_700_000_010_500_000]


GOOD = {"log": written(LOG), "items": written(CATALOGUE)}


@pytest.mark.parametrize(
    ("name", "content", "flags", "words"),
    [
        (
            "log",
            written(LOG, ";"),
            ["--separator", ","],
            "separated by ',' but the first line is 'user_id;item_id;time",
        ),
        ("log", written(LOG, ";"), ["--separator", ","], "the separator is ';', so name that one."),
        ("log", written([("user", *LOG[0][1:]), *LOG[1:]], ";"), [], "no column 'user_id' (found: user, item_id, "),
        ("log", written([("user", *LOG[0][1:]), *LOG[1:]], ";"), [], "separated by ';')"),
        ("items", '"item\nid";title\nx;X\n', [], "no column 'item_id' (found: item id, title; separated by ';')"),
        ("items", "item_id,title,title\nx,X,1\n", [], "items.csv has the column 'title' 2 times"),
        ("items", "item_id;title; c;c\nx;X;1;2\n", [], "items.csv has the column 'c' 2 times"),
        ("items", "\nitem_id,title\nx,X\n", [], "items.csv begins with an empty line"),
        ("items", "PAR1", [], "items.csv is named as a CSV and holds a Parquet file; name it .parquet."),
        ("items", "PK\x03\x04", [], "items.csv is named as a CSV and holds a zip or Excel file"),
        ("items", "item_id;title\nx;X;1\ny;Y\n", [], "row 1 has 3 fields separated by ';', the header has 2"),
        ("items", "item_id;title;c\nx;X;1\ny;Y", [], "items.csv row 2, the last one, has fewer than 3 fields"),
        ("items", 'item_id,title\nx,X\ny,5" disk\n', [], "line 3 has an odd number of quotation marks"),
        ("items", "item_id,title\nx,X\ny,\0\n", [], "a zero byte in line 3"),
        ("log", GOOD["log"], ["--separator", ";;"], "--separator is ';;'; give one character"),
        ("log", GOOD["log"], ["--encoding", "klingon"], "--encoding 'klingon' is no encoding that Python knows"),
        ("log", GOOD["log"], ["--encoding", "base64"], "--encoding 'base64' is no encoding that Python knows"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    prepare: Prepare, tmp_path: Path, name: str, content: str, flags: list[str], words: str
) -> None:
    contents = {each: text.encode() for each, text in (GOOD | {name: content}).items()}
    code, err = prepare(contents["log"], contents["items"], *flags)
    assert code == 2
    assert_one_sentence(err)
    assert words in err
    assert not (tmp_path / "run" / "data").exists()


def test_a_packed_file_that_is_cut_is_one_sentence(prepare: Prepare) -> None:
    content = gzip.compress(GOOD["log"].encode())
    code, err = prepare(content[:-9], GOOD["items"].encode(), log_name="log.csv.gz")
    assert code == 2
    assert_one_sentence(err)
    assert "log.csv.gz cannot be read as csv" in err


@pytest.mark.parametrize("flag", ["--interactions", "--items"])
def test_a_folder_where_a_file_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    (tmp_path / "log.csv").write_text(GOOD["log"])
    (tmp_path / "items.csv").write_text(GOOD["items"])
    files = {"--interactions": tmp_path / "log.csv", "--items": tmp_path / "items.csv"} | {flag: tmp_path}
    words = [word for pair in files.items() for word in pair]
    assert exit_code("data/prepare.py", "--dataset", "own", *words, "--run_dir", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert_one_sentence(err)
    assert f"{tmp_path} is a folder where a file is wanted" in err


@pytest.mark.parametrize("flag", ["--separator", "--encoding"])
def test_publishers_files_have_one_dialect(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert exit_code("data/prepare.py", "--dataset", "ml-1m", flag, ",", "--run_dir", tmp_path / "run") == 2
    assert f"{flag} is for --dataset own only, not ml-1m" in capsys.readouterr().err
