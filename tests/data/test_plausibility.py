"""A messy log of one's own: what is refused, what is left out, and what is said of it."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.data import repeats
from sidrec.data.dataset import Dataset
from sidrec.data.filters import Filters, why_left_out
from sidrec.data.kcore import k_core
from sidrec.data.prepare import main
from sidrec.data.repeats import count_again, first_of_equals
from sidrec.data.timestamps import EARLIEST, LATEST, UNITS, unit_of
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import write_manifest

NOVEMBER = 1_700_000_000  # 2023-11-14, in seconds
Row = tuple[Any, ...]
Prepare = Callable[..., str]


def rows_of(users: str = "abc", items: str = "xyz") -> list[Row]:
    return [(u, i, NOVEMBER + 1000 * n) for n, (u, i) in enumerate((u, i) for u in users for i in items)]


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Prepare these rows, as CSV or, of a frame, as Parquet; what was printed."""

    def call(log: list[Row] | pl.DataFrame, items: list[str] | pl.DataFrame | None = None, *flags: str) -> str:
        names = {}
        lines = [",".join(map(str, row)) for row in log] if isinstance(log, list) else []
        catalogue = [f"{name},Tea {name}" for name in "xyz"] if items is None else items
        for name, head, table in (
            ("log", "user_id,item_id,timestamp", log if isinstance(log, pl.DataFrame) else lines),
            ("items", "item_id,title", catalogue),
        ):
            if isinstance(table, pl.DataFrame):
                names[name] = tmp_path / f"{name}.parquet"
                table.write_parquet(names[name])
            else:
                names[name] = tmp_path / f"{name}.csv"
                names[name].write_text("\n".join([*([] if "item_id" in table[0] else [head]), *table]) + "\n")
        words = ["--dataset", "own", "--interactions", str(names["log"]), "--items", str(names["items"])]
        k = [] if "--k_user" in flags else ["--k_user", "1", "--k_item", "1"]
        capsys.readouterr()
        main([*words, *k, *flags, "--run_dir", str(tmp_path / "run"), "--overwrite", "true"])
        return capsys.readouterr().out

    return call


def info_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "data" / "dataset.json").read_text())


# ---- the summary


def test_the_summary_counts_what_each_rule_left_out(prepare: Prepare, tmp_path: Path) -> None:
    """9 rows and two repeats; user d and item w are too rare, and nobody took v."""
    log = [*rows_of(), *rows_of()[:2], ("d", "x", NOVEMBER + 90_000), ("a", "w", NOVEMBER + 2 * 86_400)]
    items = ["item_id,title,kind,price,page", "v,,,1,http://a", "w,W,,1,http://b", "x,,tea,1.5,http://c"]
    printed = prepare(log, [*items, "y,,,,http://d", "z,Z,cup,2,http://e"], "--k_user", "2", "--k_item", "2")
    info = info_of(tmp_path / "run")
    assert info["read"] == {"interactions": 13, "users": 4, "items": 4, "catalogue": 5}
    assert info["left_out"] == {
        "repeats": {"interactions": 2},
        "not_taken": {"items": 1},
        "k_core": {"interactions": 2, "users": 1, "items": 1},
    }
    assert info["counts"]["interactions"] == 13 - 2 - 2
    assert info["times"] == {"first": NOVEMBER, "last": NOVEMBER + 8000, "unit": "seconds"}
    assert info["medians"] == {"interactions_of_user": 3, "interactions_of_item": 3}
    left_out = {"page": "web addresses"}
    assert info["text"] == {
        **{"columns": ["title", "kind", "price"], "left_out": left_out},
        **{"untitled": 2, "without_text": 1},
    }
    for words in (
        "read: 13 interactions, 4 users, 4 items, 5 in the catalogue; left out: 2 rows that repeat an earlier user, item and time; "
        "k-core (k_user 2, k_item 2): 2 interactions, 1 users, 1 items; 1 items that nobody took\n",
        "times: 2023-11-14 to 2023-11-15, in seconds; median interactions of an item 3",
        "item text: title, kind, price; not page (web addresses); without a title, and their id in its place: 2, 1 of them",
        "density 100.000%",
    ):
        assert words in printed
    assert Dataset.load(tmp_path / "run").items["text"].to_list() == [
        "x. kind: tea. price: 1.5",
        "y",
        "Z. kind: cup. price: 2",
    ]


def test_a_run_of_an_earlier_version_has_a_shorter_summary(prepare: Prepare, tmp_path: Path) -> None:
    from sidrec.data.summary import summary

    prepare(rows_of())
    info = info_of(tmp_path / "run")
    lines = summary(tmp_path / "run" / "data")
    file = tmp_path / "run" / "data" / "dataset.json"
    file.write_text(json.dumps({name: info[name] for name in ("name", "protocol", "counts", "notes")}))
    assert summary(tmp_path / "run" / "data") == [
        line for line in lines if not line.startswith(("read", "times", "item t"))
    ]


# ---- repeats


def test_of_equal_rows_the_first_counts(prepare: Prepare, tmp_path: Path) -> None:
    """Equal after parsing: the same moment written twice is one."""
    log = [(u, i, f"2024-05-0{1 + n} 10:00:00") for n, (u, i, _) in enumerate(rows_of("ab"))]
    repeated = [(u, i, t.replace(" ", "T") + "Z") for u, i, t in log]
    later = ("a", "x", "2024-05-01 10:00:01")
    prepare([*log, *repeated, later])
    interactions = Dataset.load(tmp_path / "run").interactions
    assert len(interactions) == 7
    assert interactions.select("user_id", "item_index", "timestamp").is_duplicated().sum() == 0
    assert info_of(tmp_path / "run")["left_out"] == {"repeats": {"interactions": 6}}


def test_of_equal_rows_of_the_catalogue_the_first_counts(prepare: Prepare, tmp_path: Path) -> None:
    """Also with columns of lists and empty cells; two rows that share an id and differ are refused by name, wherever equal ones lie."""
    rows = {
        "item_id": list("xyxzxy"),
        "title": ["X", "Y", "X", "Z", "X", "Y"],
        "price": [1.5, None, 1.5, 2.0, 1.5, None],
    }
    tags = [["a"], [], ["a"], ["b", "c"], ["a"], []]
    printed = prepare(rows_of(), pl.DataFrame({**rows, "tags": tags}))
    assert "3 rows that repeat an earlier one in all columns are left out." in printed
    items = Dataset.load(tmp_path / "run").items
    assert items["item_id"].to_list() == ["x", "y", "z"]
    assert items["title"].to_list() == ["X", "Y", "Z"]
    assert "repeat an earlier one" not in prepare(rows_of())
    with pytest.raises(InputError, match=r"item_id 'y' is in rows 2 and 6, which differ; keep one of them"):
        prepare(rows_of(), pl.DataFrame({**rows, "tags": [*tags[:5], ["b"]]}))


def test_items_that_a_user_takes_again_are_told(prepare: Prepare, tmp_path: Path) -> None:
    again = [("a", "x", NOVEMBER + 90_000), ("a", "x", NOVEMBER + 90_001), ("b", "y", NOVEMBER + 90_000)]
    assert "3 interactions (25.0%) take an item that the user took before" in prepare([*rows_of(), *again])
    assert info_of(tmp_path / "run")["again"] == 3
    assert "took before" not in prepare(rows_of())


def test_density_counts_a_user_and_an_item_once(prepare: Prepare) -> None:
    """7 of the 9 pairs of 3 users and 3 items, one of them three times: 9 interactions."""
    again = [("a", "x", NOVEMBER + 90_000), ("a", "x", NOVEMBER + 90_001)]
    assert "density 77.778%" in prepare([*rows_of()[:7], *again])


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 2)), min_size=1, max_size=40),
    st.sampled_from([1, 5, 1 << 20]),
    st.sampled_from([repeats.HASH_FACTORS, (1, 1, 1), (0, 0, 0)]),
)
def test_the_first_of_equal_rows_against_a_list(
    rows: list[tuple[str, str, int]], together: int, factors: tuple[int, ...]
) -> None:
    """Also where different rows have one hash."""
    users, items, times = zip(*rows, strict=True)
    keys = (
        np.array([*map(ord, users)], dtype=np.uint32),
        np.array([*map(ord, items)], dtype=np.uint32),
        np.array(times),
    )
    wanted = [row not in rows[:place] for place, row in enumerate(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "ROWS_TOGETHER", together)
        patch.setattr(repeats, "HASH_FACTORS", factors)
        assert first_of_equals(keys).tolist() == wanted
    pairs = [row[:2] for row in rows]
    assert count_again(*keys[:2]) == sum(pair in pairs[:place] for place, pair in enumerate(pairs))


def test_repeats_do_not_lift_anyone_over_the_k_core(prepare: Prepare) -> None:
    with pytest.raises(InputError, match="no interaction is left of 9"):
        prepare(rows_of() * 2, None, "--k_user", "4", "--k_item", "4")


# ---- times


@pytest.mark.parametrize("few", list(UNITS))
@pytest.mark.parametrize("many", list(UNITS))
def test_two_units_are_refused_with_rows_and_values(prepare: Prepare, many: str, few: str) -> None:
    log = [(u, i, t * UNITS[few if n in (2, 5) else many]) for n, (u, i, t) in enumerate(rows_of())]
    if many == few:
        prepare(log)
        return
    words = (
        rf"log.csv has times in {many} \(row 1: {log[0][2]}\) and in {few} \(rows 3, 6: {log[2][2]}\); write every one"
    )
    with pytest.raises(InputError, match=words):
        prepare(log)


def test_two_units_in_decimal_numbers_and_parquet(prepare: Prepare) -> None:
    log = pl.DataFrame(rows_of(), schema=["user_id", "item_id", "timestamp"], orient="row")
    mixed = log.with_columns(
        pl.when(pl.int_range(pl.len()) >= 4).then(pl.col("timestamp") * 1000.0).otherwise("timestamp") + 0.5
    )
    with pytest.raises(
        InputError,
        match=r"log.parquet has times in milliseconds \(row 5: .*\) and in seconds \(rows 1, 2, 3 and 1 more: ",
    ):
        prepare(mixed)


@given(st.floats(EARLIEST, LATEST, exclude_max=True), st.sampled_from(list(UNITS)))
def test_a_time_between_1980_and_2100_has_one_unit(second: float, unit: str) -> None:
    assert unit_of(second * UNITS[unit]) == unit


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (0, "Warning: interactions before 1980: 1, as far as 1970-01-01; a missing time is often written as 0."),
        (-86_400, "Warning: interactions before 1980: 1, as far as 1969-12-31"),
        (4_000_000_000, "Warning: interactions in the future: 1, as far as 2096-10-02"),
        (253_402_300_799 + 1, "Warning: interactions in the future: 1, as far as 253,402,300,800"),
    ],
)
def test_a_time_far_from_the_others_is_told(prepare: Prepare, time: int, words: str) -> None:
    assert words in prepare([*rows_of(), ("c", "x", time)])
    assert "Warning" not in prepare(rows_of())


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (0, "times: 0 to 8,000, an order and no dates"),
        (20_240_501, "times: 20,240,501 to 20,248,501, an order and no dates"),
        (NOVEMBER * 1000, "times: 2023-11-14 to 2023-11-14, in milliseconds"),
    ],
)
def test_numbers_that_are_no_dates_are_an_order(prepare: Prepare, first: int, words: str) -> None:
    printed = prepare([(u, i, first + t - NOVEMBER) for u, i, t in rows_of()])
    assert words in printed
    assert "Warning" not in printed


def test_whole_days_and_decimal_nanoseconds_are_told(prepare: Prepare) -> None:
    assert "in seconds, whole days;" in prepare([(u, i, "2024-05-01") for u, i, _ in rows_of()])
    assert "whole days" not in prepare(rows_of())
    log = pl.DataFrame(rows_of(), schema=["user_id", "item_id", "timestamp"], orient="row")
    nanoseconds = log.with_columns(pl.col("timestamp") * 1e9)
    assert "2023-11-14 to 2023-11-15, in nanoseconds;" in prepare(nanoseconds)


def test_dates_as_other_programs_write_them(prepare: Prepare, tmp_path: Path) -> None:
    prepare([(u, i, f"2024-05-01 10:00:0{n} UTC") for n, (u, i, _) in enumerate(rows_of())])
    first = int(datetime.datetime(2024, 5, 1, 10, tzinfo=datetime.UTC).timestamp())
    assert info_of(tmp_path / "run")["times"] == {"first": first, "last": first + 8, "unit": "seconds"}
    with pytest.raises(InputError, match=r"row 1: the timestamp '01\.05\.2024' is neither a number nor an ISO date"):
        prepare([(u, i, "01.05.2024") for u, i, _ in rows_of()])


# ---- ids


@pytest.mark.parametrize(
    ("other", "alike"), [("a ", True), ("A", True), (" a", True), ("a\t", True), ("aa", False), ("1", False)]
)
def test_ids_that_differ_in_white_space_or_case_are_told(prepare: Prepare, other: str, alike: bool) -> None:
    printed = prepare([*rows_of(), *((other, i, t) for _, i, t in rows_of("a"))])
    assert ("2 user_ids differ from another one only in white space or letter case" in printed) == alike
    assert "4 users" in printed


@pytest.mark.parametrize(
    ("in_log", "listed", "cure"),
    [
        ("x ", "x", r"it has 'x', so write the ids in one way"),
        ("X", "x", r"it has 'x', so"),
        ("1.0", "1", r"it has '1', so"),
        ("7", "007", r"it has '007', so"),
        ("q", "x", r"nor is any other one of the log, so write the ids in one way \(.*items.csv has 'x'\)"),
    ],
)
def test_an_unknown_item_that_is_nearly_a_known_one(prepare: Prepare, in_log: str, listed: str, cure: str) -> None:
    with pytest.raises(InputError, match=rf"log.csv row 1: user 'a' took item '{in_log}', which is not in .*; {cure}"):
        prepare([("a", in_log, 1)], [f"{listed},Tea"])
    with pytest.raises(InputError, match=r"row 2: .* \(1 such row\); (add the item|it has)"):
        prepare([("a", listed, 1), ("a", in_log, 2)], [f"{listed},Tea"])


def frame(**columns: object) -> pl.DataFrame:
    log = pl.DataFrame(rows_of(), schema=["user_id", "item_id", "timestamp"], orient="row")
    return log.with_columns(**{name: pl.Series(values) for name, values in columns.items()})  # type: ignore[arg-type]


def test_numbers_with_gaps_are_the_same_ids(prepare: Prepare, tmp_path: Path) -> None:
    """A program makes a column of whole numbers decimal when one is missing."""
    items = pl.DataFrame({"item_id": [1, 2, 3], "title": ["X", "Y", "Z"]})
    prepare(frame(item_id=[1.0, 2.0, 3.0] * 3), items)
    assert Dataset.load(tmp_path / "run").items["item_id"].to_list() == ["1", "2", "3"]
    with pytest.raises(InputError, match=r"log.parquet row 2 has an empty item_id"):
        prepare(frame(item_id=[1.0, float("nan"), 3.0] * 3), items)


def test_nested_columns_are_kept_and_join_no_text(prepare: Prepare, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [*"xyz"], "title": [*"XYZ"], "struct": [{"a": 1}] * 3, "lists": [[[1]]] * 3})
    printed = prepare(frame(basket=[["a"]] * 9, place=[{"shop": 1}] * 9), items)
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.items["struct"].to_list() == [{"a": 1}] * 3
    assert dataset.interactions["place"].to_list() == [{"shop": 1}] * 9
    assert dataset.items["text"].to_list() == [*"XYZ"]
    assert "item text: title; not lists (nested), struct (nested)" in printed


TITLES = pl.DataFrame({"item_id": [*"xyz"], "title": [*"XYZ"]})


@pytest.mark.parametrize(
    ("log", "items", "words"),
    [
        (frame(user_id=[["a"]] * 9), TITLES, "column 'user_id' has type List"),
        (frame(user_id=[True] * 9), TITLES, "column 'user_id' has type Boolean"),
        (frame(user_id=[b"\xff"] * 9), TITLES, "column 'user_id' has type Binary"),
        (frame(user_id=[None] * 9), TITLES, "row 1 has an empty user_id"),
        (frame(timestamp=[[1]] * 9), TITLES, "'timestamp' has type List"),
        (frame(timestamp=[None] * 9), TITLES, "'timestamp' has type Null"),
        (frame(timestamp=[True] * 9), TITLES, "'timestamp' has type Boolean"),
        (frame(timestamp=[float("inf")] * 9), TITLES, "row 1: the timestamp inf"),
        (frame(), TITLES.with_columns(title=pl.Series([["X"]] * 3)), "column 'title' has type List"),
        (frame(), TITLES.with_columns(item_id=pl.Series([{"a": 1}] * 3)), "column 'item_id' has type Struct"),
        (frame().clear(), TITLES, "log.parquet has a header but no rows"),
    ],
)
def test_parquet_columns_of_a_type_that_does_not_fit(
    prepare: Prepare, log: pl.DataFrame, items: pl.DataFrame, words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        prepare(log, items)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("log", [rows_of("a"), rows_of("abc", "x"), rows_of("a", "x")])
def test_one_user_or_one_item_can_be_prepared_and_is_told(prepare: Prepare, log: list[Row]) -> None:
    printed = prepare(log)
    has_one_item = len({item for _, item, _ in log}) == 1
    assert ("Warning: there is one item only" in printed) == has_one_item
    assert ("Warning: no interaction is test" in printed) == has_one_item


# ---- who was left out


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz")), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_everyone_of_the_source_is_in_the_data_or_named(pairs: list[tuple[str, str]], k_user: int, k_item: int) -> None:
    log = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row").cast(pl.Categorical)
    items = pl.DataFrame({"item_id": [*"uvwxyz!"], "title": [*"UVWXYZ?"]})
    filters = Filters(log, items, repeats=0)
    core = k_core(log, k_user, k_item)
    if len(core) < len(log):
        filters.passed("k_core", core)
    table = filters.left_out()
    for kind, everyone in (("user", {u for u, _ in pairs}), ("item", {*items["item_id"]})):
        inside = set(core[f"{kind}_id"].cast(pl.String))
        rows = table.filter(pl.col("kind") == kind)
        assert rows["id"].to_list() == sorted(everyone - inside)
        counted = Counter(pair[kind == "item"] for pair in pairs)
        assert rows["interactions"].to_list() == [counted[name] for name in rows["id"]]
        assert rows["rule"].to_list() == ["k_core" if counted[name] else "not_taken" for name in rows["id"]]
    assert filters.counts.get("k_core", {"interactions": 0})["interactions"] == len(log) - len(core)
    if len(core):
        sizes = [*Counter(core["user_id"].to_list()).values()]
        assert filters.medians()["interactions_of_user"] == np.median(sizes)


def test_the_reason_is_the_rule_that_came_first(prepare: Prepare, tmp_path: Path) -> None:
    log = [*rows_of(), ("d", "x", NOVEMBER), ("a", "w", NOVEMBER)]
    prepare(log, ["item_id,title", *(f"{i},Tea {i}" for i in "vwxyz")], "--k_user", "2", "--k_item", "2")
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.left_out.rows() == [
        ("user", "d", None, "k_core", 1),
        ("item", "v", "Tea v", "not_taken", 0),
        ("item", "w", "Tea w", "k_core", 1),
    ]
    reason = why_left_out(dataset.left_out, dataset.info, "user", "d")
    assert reason is not None
    assert reason.startswith(
        "was left out by the k-core (1 interaction; k_user 2, k_item 2); prepare the data with a lower"
    )
    assert "nobody in the log has taken it" in str(why_left_out(dataset.left_out, dataset.info, "item", "v"))
    for kind, name in (("user", "a"), ("user", "v"), ("item", "d"), ("item", "x"), ("user", "nobody")):
        assert why_left_out(dataset.left_out, dataset.info, kind, name) is None


def test_a_column_that_few_cells_make_a_text_is_told(prepare: Prepare, tmp_path: Path) -> None:
    """From 90 % of numbers on, of the cells that are not empty."""
    paid, prices = [*range(18), "dear", "dear"], ["n/a", *range(9), *[""] * 10]
    log = [("a", f"i{n}", NOVEMBER + n, paid[n], f"w{n}") for n in range(20)]
    items = [f"i{n},Tea {n},{prices[n]},{'x' if n < 3 else n}" for n in range(20)]
    said = prepare([("user_id", "item_id", "timestamp", "paid", "word"), *log], ["item_id,title,price,code", *items])
    warned = [" ".join(line.split()) for line in said.splitlines() if "one of texts" in line]
    files = [tmp_path / "log.csv", tmp_path / "items.csv"]
    tail = "correct or empty what is no number."
    assert [line[line.index("Warning") :] for line in warned] == [
        f"Warning: {files[0]}: column 'paid' is one of texts, since not all of its 20 cells are numbers (2 are none, the first in row 19: "
        f"'dear'); {tail}",
        f"Warning: {files[1]}: column 'price' is one of texts, since not all of its 10 cells are numbers (1 is none, the first in row 1: "
        f"'n/a'); {tail}",
    ]
    assert Dataset.load(tmp_path / "run").items.schema["price"] == pl.String


def test_users_outside_the_dates_are_named_as_such(tmp_path: Path) -> None:
    day = 86_400
    rows = [("1", item, NOVEMBER + n) for n, item in enumerate("123")] + [("2", "4", NOVEMBER - 9 * day)]
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},3.5,{t}\n" for u, i, t in rows)
    )
    titles = "".join(f"{item},Movie {item},Drama\n" for item in "1234")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n" + titles)
    main(
        [
            "--dataset",
            "ml-20m",
            "--raw_dir",
            str(tmp_path),
            "--run_dir",
            str(tmp_path / "run"),
            "--from_date",
            "2023-11-14",
        ]
    )
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.left_out.rows() == [("user", "2", None, "dates", 1), ("item", "4", "Movie 4", "dates", 1)]
    reason = why_left_out(dataset.left_out, dataset.info, "user", "2")
    assert reason == (
        "was left out by the dates (1 interaction, none from 2023-11-14 to the end); prepare the data with others to keep it"
    )


def test_data_of_an_earlier_version_name_nobody(prepare: Prepare, tmp_path: Path) -> None:
    prepare(rows_of())
    (tmp_path / "run" / "data" / "left_out.parquet").unlink()
    manifest = tmp_path / "run" / "data" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["outputs"]["left_out.parquet"]
    write_manifest(manifest, content)
    assert Dataset.load(tmp_path / "run").left_out.is_empty()
