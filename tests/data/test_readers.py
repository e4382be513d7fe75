import datetime
import os
from pathlib import Path

import polars as pl
import pytest

from sidrec.data.movielens import read_ml_1m, read_ml_100k
from sidrec.data.own import read_own
from sidrec.data.readers import RawLog
from sidrec.pipeline.errors import InputError

U_DATA = "1\t10\t5\t881250949\n2\t20\t3\t891717742\n1\t20\t1\t878887116\n"


def u_item_line(item: int, title: str, date: str, *genres: int) -> str:
    flags = ["1" if place in genres else "0" for place in range(19)]
    return "|".join([str(item), title, date, "", "http://x", *flags])


@pytest.fixture
def ml_100k(tmp_path: Path) -> Path:
    (tmp_path / "u.data").write_text(U_DATA)
    lines = [u_item_line(10, "Toy Story (1995)", "01-Jan-1995", 3, 4, 5), u_item_line(20, "Amélie", "01-Feb-2001", 18)]
    (tmp_path / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")
    return tmp_path


@pytest.fixture
def ml_1m(tmp_path: Path) -> Path:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\r\n1::20::4::978300750\r\n")
    movies = "10::Toy Story (1995)::Animation|Children's\r\n20::Café: The Film (1999)::Drama\r\n"
    (tmp_path / "movies.dat").write_text(movies, encoding="latin-1", newline="")
    return tmp_path


def own(folder: Path, log: str, items: str = "item_id,title\na,A\nb,B\n") -> RawLog:
    (folder / "log.csv").write_text(log)
    (folder / "items.csv").write_text(items)
    return read_own(folder / "log.csv", folder / "items.csv")


def one_sentence(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


def test_ml_100k_keeps_order_encoding_and_genres(ml_100k: Path) -> None:
    raw = read_ml_100k(ml_100k)
    assert raw.interactions.columns == ["user_id", "item_id", "timestamp", "rating"]
    assert raw.interactions.dtypes == [pl.Categorical, pl.Categorical, pl.Int64, pl.Float64]
    assert raw.interactions.rows() == [
        *(("1", "10", 881250949, 5.0), ("2", "20", 891717742, 3.0), ("1", "20", 878887116, 1.0))
    ]
    assert raw.items.to_dicts() == [
        {"item_id": "10", "title": "Toy Story (1995)", "genres": "Animation, Children's, Comedy", "year": "1995"},
        {"item_id": "20", "title": "Amélie", "genres": "Western", "year": "2001"},
    ]


def test_ml_1m_splits_at_double_colons_only(ml_1m: Path) -> None:
    raw = read_ml_1m(ml_1m)
    assert raw.interactions.rows() == [("1", "10", 978300760, 5.0), ("1", "20", 978300750, 4.0)]
    assert raw.items.rows() == [
        ("10", "Toy Story (1995)", "Animation, Children's", "1995"),
        ("20", "Café: The Film (1999)", "Drama", "1999"),
    ]


def test_truncated_file_names_the_last_line(ml_100k: Path) -> None:
    (ml_100k / "u.data").write_text(U_DATA + "3\t10\t4")
    with pytest.raises(InputError) as error:
        read_ml_100k(ml_100k)
    one_sentence(error, "u.data line 4", "3 fields where 4", "truncated")


def test_wrong_delimiter_shows_the_first_line(ml_100k: Path) -> None:
    (ml_100k / "u.data").write_text(U_DATA.replace("\t", ","))
    with pytest.raises(InputError) as error:
        read_ml_100k(ml_100k)
    one_sentence(error, "u.data line 1", r"'\t'", "'1,10,5,881250949'")


@pytest.mark.parametrize(("content", "parts"), [(None, ("u.item does not exist",)), ("", ("u.item is empty",))])
def test_missing_and_empty_files(ml_100k: Path, content: str | None, parts: tuple[str, ...]) -> None:
    (ml_100k / "u.item").unlink()
    if content is not None:
        (ml_100k / "u.item").write_text(content)
    with pytest.raises(InputError) as error:
        read_ml_100k(ml_100k)
    one_sentence(error, *parts)


def test_movielens_ids_are_checked_too(ml_1m: Path) -> None:
    (ml_1m / "ratings.dat").write_text("1::10::5::978300760\n2::99::5::978300760\n3::98::5::978300760\n")
    with pytest.raises(InputError) as error:
        read_ml_1m(ml_1m)
    one_sentence(error, "ratings.dat line 2", "user '2' took item '99'", "movies.dat", "2 such lines")


def test_own_csv_keeps_other_columns_and_leading_zeros(tmp_path: Path) -> None:
    items = 'item_id,price,title,story\n007,1.5,,"one, two"\n8,2,B,\n'
    raw = own(tmp_path, "timestamp,extra,item_id,user_id\n3,x,007,01\n1,y,8,01\n3,z,007,01\n4,z,007,01\n", items)
    assert raw.interactions.rows() == [("01", "007", 3, "x"), ("01", "8", 1, "y"), ("01", "007", 4, "z")]
    assert raw.repeats == 1
    assert raw.items.columns == ["item_id", "title", "price", "story"]
    assert raw.items.rows() == [("007", "007", 1.5, "one, two"), ("8", "B", 2.0, None)]


def test_own_parquet_with_other_types(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 1, 1)
    log = pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6], "timestamp": [day, day + datetime.timedelta(seconds=1)]})
    log.write_parquet(tmp_path / "log.parquet")
    items = pl.DataFrame({"item_id": ["5", "6"], "title": [None, "six"], "tags": [["x"], ["y", "z"]]})
    items.write_parquet(tmp_path / "items.parquet")
    raw = read_own(tmp_path / "log.parquet", tmp_path / "items.parquet")
    assert raw.interactions.rows() == [("1", "5", 1577836800), ("2", "6", 1577836801)]
    assert raw.items["title"].to_list() == ["5", "six"]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["5", "-3"], [5, -3]),
        (["1.0", "2"], [1, 2]),
        (["1.25", "2"], [1_250_000, 2_000_000]),
        (["1970-01-02", "1970-01-01 00:01", "1970-01-01T00:00:07"], [86400, 60, 7]),
        (["1970-01-01T00:00:00Z", "1970-01-01T01:00:00.500+01:00"], [0, 500_000]),
    ],
)
def test_timestamps(tmp_path: Path, times: list[str], expected: list[int]) -> None:
    raw = own(tmp_path, "user_id,item_id,timestamp\n" + "".join(f"u,a,{time}\n" for time in times))
    assert raw.interactions["timestamp"].to_list() == expected


def test_float_timestamps_in_parquet(tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "a"], "timestamp": [2.0, float("nan")]})
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
    log[:1].write_parquet(tmp_path / "log.parquet")
    assert read_own(tmp_path / "log.parquet", tmp_path / "items.csv").interactions["timestamp"].to_list() == [2]
    log.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError) as error:
        read_own(tmp_path / "log.parquet", tmp_path / "items.csv")
    one_sentence(error, "log.parquet row 2", "empty timestamp")


HEADER = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("log", "items", "parts"),
    [
        (
            "user,item_id,timestamp\nu,a,1\n",
            None,
            ("log.csv", "no column 'user_id'", "found: user, item_id, timestamp"),
        ),
        ("user_id item_id timestamp\nu a 1\n", None, ("no separator of ','", "'user_id item_id timestamp'")),
        (HEADER, None, ("log.csv", "no rows")),
        ("", None, ("log.csv is empty",)),
        (HEADER + "u,a,1\n,a,2\n", None, ("log.csv row 2", "empty user_id")),
        (HEADER + "u,a,1\nu,,2\n", None, ("log.csv row 2", "empty item_id")),
        (HEADER + "u,a,1\nu,b,\n", None, ("log.csv row 2", "empty timestamp")),
        (HEADER + "u,a,1\nu,b\n", None, ("log.csv row 2", "truncated")),
        (HEADER + "u,a,1\nu,b,soon\n", None, ("log.csv row 2", "'soon'")),
        (HEADER + "u,a,2020-01-01\nu,b,2020-13-01\n", None, ("log.csv row 2", "'2020-13-01'")),
        (HEADER + "u,a,1\nu,b,inf\n", None, ("log.csv row 2", "'inf'")),
        (HEADER + "u,a,1\nu,b,2,3\n", None, ("log.csv", "row 2 has 4 fields", "header has 3")),
        (HEADER + "u,a,1\nv,z,2\nv,y,2\n", None, ("log.csv row 2", "user 'v'", "item 'z'", "items.csv", "2 such rows")),
        (HEADER + "u,a,1\n", "item_id,name\na,A\n", ("items.csv", "no column 'title'")),
        (HEADER + "u,a,1\n", "item_id,title\na,A\nb,B\na,C\n", ("items.csv", "'a'", "rows 1 and 3")),
        (HEADER + "u,a,1\n", "item_id,title\na,A\n,B\n", ("items.csv row 2", "empty item_id")),
        (HEADER + "u,a,1\n", "item_id,title,text\na,A,x\nb,B", ("items.csv row 2", "truncated")),
        (HEADER + "u,a,1\n", "item_id,title,item_index\na,A,0\n", ("items.csv", "'item_index'")),
    ],
)
def test_own_errors(tmp_path: Path, log: str, items: str | None, parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        own(tmp_path, log, items or "item_id,title\na,A\nb,B\n")
    one_sentence(error, *parts)


def test_own_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text("{}")
    with pytest.raises(InputError) as error:
        read_own(tmp_path / "log.json", tmp_path / "items.csv")
    one_sentence(error, "log.json is neither .csv nor .parquet")
    (tmp_path / "log.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError) as error:
        read_own(tmp_path / "log.parquet", tmp_path / "items.csv")
    one_sentence(error, "log.parquet cannot be read as parquet")


def test_an_empty_last_field_is_not_a_truncated_file(tmp_path: Path) -> None:
    raw = own(tmp_path, HEADER + "u,a,1\n", "item_id,title,story\na,A,x\nb,B,\n")
    assert raw.items["story"].to_list() == ["x", None]


def test_the_real_ml_100k() -> None:
    if "SIDREC_DATASETS" not in os.environ:
        pytest.skip("SIDREC_DATASETS does not point at the folder with ml-100k/")
    raw = read_ml_100k(Path(os.environ["SIDREC_DATASETS"]) / "ml-100k")
    assert len(raw.interactions) == 100_000
    assert raw.interactions["user_id"].n_unique() == 943
    assert len(raw.items) == raw.interactions["item_id"].n_unique() == 1682
    assert raw.items.row(0, named=True)["genres"] == "Animation, Children's, Comedy"
    assert raw.interactions.row(0) == ("196", "242", 881250949, 3.0)
