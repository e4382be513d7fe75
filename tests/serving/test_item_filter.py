"""Filters of items: SQL expressions and conditions against a filter by hand, and one sentence for what does not fit."""

from __future__ import annotations

from datetime import UTC, date, datetime

import polars as pl
import pytest

from sidrec.pipeline.errors import InputError
from sidrec.serving.item_filter import OPS, allowed_by, allowed_by_sql

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["Red tea", "red [x] boot", None, "Lamp"],
        "category": pl.Series(["tea", "shoes", None, "light"], dtype=pl.Categorical),
        "stock": [3, 0, None, 7],
        "price": [1.5, None, 2.5, float("nan")],
        "new": [True, False, None, True],
        "tags": [["x", "y"], ["y"], [], None],
        "since": [date(2024, 1, 1), date(2024, 6, 1), None, date(2025, 1, 1)],
        "seen": [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)],
        "raw": [b"1", b"2", b"3", b"4"],
    }
)
ROWS = ITEMS.to_dicts()


def passing(where: str | list[tuple[str, str, object]]) -> list[str]:
    if isinstance(where, str):
        allowed = allowed_by_sql(ITEMS, where)
    else:
        allowed = allowed_by(ITEMS, [dict(zip(("column", "op", "value"), one, strict=True)) for one in where])
    assert allowed.dtype == bool
    return ITEMS["item_id"].filter(pl.Series(allowed)).to_list()


def test_every_comparison_is_the_one_it_says() -> None:
    by_hand = {
        "=": lambda x: x == 3, "!=": lambda x: x != 3, "<": lambda x: x < 3, "<=": lambda x: x <= 3,
        ">": lambda x: x > 3, ">=": lambda x: x >= 3, "in": lambda x: x in (3, 7),
    }  # fmt: skip
    assert {*by_hand, "contains"} == set(OPS)
    for op, holds in by_hand.items():
        wanted = [row["item_id"] for row in ROWS if row["stock"] is not None and holds(row["stock"])]
        assert passing([("stock", op, [3, 7] if op == "in" else 3)]) == wanted
        if op != "in":
            assert passing(f"stock {op} 3") == wanted


def test_a_number_that_is_none_passes_as_an_empty_cell_does() -> None:
    """Polars orders NaN above every number."""
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "price": [1.0, float("nan"), None]})
    for op in (">", ">=", "<", "!="):
        conditions = [{"column": "price", "op": op, "value": 0.5}]
        wanted = [op != "<", False, False]
        assert allowed_by(items, conditions).tolist() == allowed_by_sql(items, f"price {op} 0.5").tolist() == wanted


@pytest.mark.parametrize(
    ("conditions", "sql", "wanted"),
    [
        ([("category", "=", "shoes")], "category = 'shoes'", ["b"]),
        ([("category", "in", ["tea", "light"])], "category in ('tea', 'light')", ["a", "d"]),
        ([("title", "contains", "[x]")], "title like '%[x]%'", ["b"]),
        ([("tags", "contains", "y")], "array_contains(tags, 'y')", ["a", "b"]),
        ([("new", "=", True), ("stock", ">", 5)], "new and stock > 5", ["d"]),
        ([("since", ">=", "2024-06-01")], "since >= '2024-06-01'::date", ["b", "d"]),
        ([("seen", "<", "2024-01-02T12:00:00+00:00")], None, ["a", "b"]),
        ([("stock", "in", [])], "stock < 0", []),
        ([], None, ["a", "b", "c", "d"]),
        ([("title", "!=", "Lamp")], "title != 'Lamp'", ["a", "b"]),  # an empty cell passes nothing
        ([("title", "=", "' or 1 = 1 --")], None, []),
    ],
)
def test_conditions_and_sql_pass_the_same_items(conditions: list, sql: str | None, wanted: list[str]) -> None:
    assert passing(conditions) == wanted
    if sql is not None:
        assert passing(sql) == wanted


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("stock", "is of type Int64, not true or false"),
        ("stock >", "unable to parse"),
        ("", "unable to parse"),
        ("colour = 'red'", "there is no column 'colour'; texts stand in single quotes"),
        ("category = \"shoes\"", "there is no column 'shoes'; texts stand in single quotes"),
        ("lower(colour) = 'red' and stock > 0", "there is no column 'colour'"),
        ("stock > 0; drop table items", "unexpected token"),
        ("select 1", "expected an expression"),
        ("true", "is not one answer an item"),
        ("1 = 1", "is not one answer an item"),
        ("max(stock) > 1", "is not one answer an item"),
        ("unnest(tags) = 'x'", "is not one answer an item"),
        ("title > 3", "cannot compare"),
        ("title ~ '['", "regex"),
        ("read_csv('/etc/passwd')", "unsupported function"),
        ("stock > (select max(stock) from self)", "was not found"),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_with_the_columns(where: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        allowed_by_sql(ITEMS, where)
    said = str(error.value)
    assert words in said
    assert "the items' columns are item_id, title, category, stock" in said
    assert said.count("category") <= 1 + where.count("category"), "the columns once"
    assert "\n" not in said


@pytest.mark.parametrize("where", ["price < 12,5", "stock > 0 and price >= 1,5 and title != 'a (1,2)'", "price<1,5"])
def test_a_decimal_comma_is_named(where: str) -> None:
    with pytest.raises(InputError, match=r"has a number with a comma; write a decimal point, as in 12\.5"):
        allowed_by_sql(ITEMS, where)
    assert passing("stock in (3,7) and title != '1,5'") == ["a", "d"]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (("colour", "=", 1), "no column 'colour'; they have item_id, title"),
        (("stock", "==", 1), "'==' is no op; there are = !="),
        (("stock", "=", "3"), "must be a number, not '3'"),
        (("stock", "=", True), "must be a number, not True"),
        (("stock", "<", float("nan")), "must be a number, not nan"),
        (("stock", "<", 10**30), "must be a number"),
        (("stock", "in", 3), "`in` takes a list of values, not 3"),
        (("stock", "in", [3, None]), "must be a number, not None"),
        (("stock", "contains", 3), "`contains` is of texts and lists"),
        (("title", "=", 3), "must be a text, not 3"),
        (("category", "contains", 3), "must be a text, not 3"),
        (("new", "<", True), "has no order"),
        (("new", "=", 1), "must be true or false, not 1"),
        (("tags", "=", "x"), "which no condition compares"),
        (("tags", "contains", 1), "must be a text"),
        (("raw", "=", "1"), "which no condition compares"),
        (("since", "=", "yesterday"), "must be an ISO date, not 'yesterday'"),
        (("since", "=", 5), "must be an ISO date, not 5"),
        (("seen", "<", "2024-01-02"), "must be a time with an offset"),
    ],
)
def test_a_condition_that_does_not_fit_its_column_is_refused(condition: tuple[str, str, object], words: str) -> None:
    with pytest.raises(InputError) as error:
        passing([condition])
    assert words in str(error.value)


def test_a_condition_has_three_keys() -> None:
    for condition in ({"column": "stock"}, {"column": "stock", "op": "=", "value": 1, "sql": "x"}, "stock = 1", None):
        with pytest.raises(InputError, match="exactly the keys column, op and value"):
            allowed_by(ITEMS, [condition])  # type: ignore[list-item]
