"""Which columns of a catalogue join the item's text, and in which words."""

from __future__ import annotations

import datetime
import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.data.item_text import MANY, joined_columns


def joined(column: pl.Series) -> list[str | None] | str:
    """The words of a column, or why it is left out."""
    items = pl.DataFrame({"item_id": range(len(column)), "title": "t"}).with_columns(column)
    words, left_out = joined_columns(items)
    assert {*words, *left_out} == {column.name}
    return left_out[column.name] if left_out else items.select(words[column.name]).to_series().to_list()


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pl.Series("price", [12.5, 3.0, None, math.nan, math.inf]), ["12.5", "3", None, None, None]),
        (pl.Series("price", [1.1, 2.0], dtype=pl.Float32), ["1.1", "2"]),
        (pl.Series("price", ["1.50", "2.00"]).cast(pl.Decimal(8, 2)), ["1.50", "2.00"]),
        (pl.Series("large", [1e300, -2.0]), ["1e+300", "-2"]),
        (pl.Series("stock", [7, None, 7]), ["7", None, "7"]),
        (pl.Series("new", [True, False, None]), ["true", "false", None]),
        (pl.Series("kind", ["tea", None, "tea"], dtype=pl.Categorical), ["tea", None, "tea"]),
        (pl.Series("kind", ["a", "b"], dtype=pl.Enum(["a", "b"])), ["a", "b"]),
        (pl.Series("story", [" two\nlines. ", "", " "]), ["two lines", None, None]),
        (pl.Series("tags", [["x", None, "y"], [], None]), ["x, y", None, None]),
        (pl.Series("sizes", [[40, 41], [42]]), ["40, 41", "42"]),
        (pl.Series("sizes", [[40, 41]], dtype=pl.Array(pl.Int8, 2)), ["40, 41"]),
        (pl.Series("day", [datetime.date(2024, 5, 1), None]), ["2024-05-01", None]),
        (pl.Series("day", [datetime.datetime(2024, 5, 1, 9, 30)]), ["2024-05-01"]),
        (pl.Series("vector", [[0.5, 0.25]]), "nested"),
        (pl.Series("vector", ["[0.5, -1e-3]", None, "[2, 3.25]"]), "lists of decimal numbers"),
        (pl.Series("sizes", ["[40, 41]", "[42]"]), ["[40, 41]", "[42]"]),
        (pl.Series("struct", [{"a": 1}]), "nested"),
        (pl.Series("deep", [[["a"]]]), "nested"),
        (pl.Series("raw", [b"x"]), "type Binary"),
        (pl.Series("length", [datetime.timedelta(1)]), "type Duration(time_unit='us')"),
        (pl.Series("nothing", [None, " "]), "empty"),
        (pl.Series("", ["a", "a"]), "no name"),
        (pl.Series("page", ["https://a.example/1", None, "www.a.example"]), "web addresses"),
        (pl.Series("pages", [["http://a", "http://b"], ["http://c"]]), "web addresses"),
        (pl.Series("page", ["https://a.example/1", "sold out"]), ["https://a.example/1", "sold out"]),
        (pl.Series("photo", ["img/1.JPG", "2.png"]), "files of pictures"),
        *((pl.Series(name, ["k1", "k2"]), "ids") for name in ("id", "brand_id", "productId", "SKU", "item uuid")),
        *((pl.Series(name, ["k1", "k2"]), ["k1", "k2"]) for name in ("grid", "humid", "paid")),
        (pl.Series("category_id", [17, 17, 4]), ["17", "17", "4"]),
        (pl.Series("views", range(MANY)), "numbers, all different"),
        (pl.Series("x", [n / 7 for n in range(MANY)]), "numbers, all different"),
        (pl.Series("views", range(MANY - 1)), [str(n) for n in range(MANY - 1)]),
        (pl.Series("views", [*range(MANY), 3]), [*map(str, range(MANY)), "3"]),
    ],
    ids=lambda value: f"{value.name}-{value.dtype}" if isinstance(value, pl.Series) else "",
)
def test_the_words_of_a_column_or_why_it_has_none(column: pl.Series, wanted: list[str | None] | str) -> None:
    assert joined(column) == wanted


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_the_words_of_a_number_are_that_number(numbers: list[float]) -> None:
    words = joined(pl.Series("price", numbers))
    assert isinstance(words, list)
    assert [float(word) for word in words if word is not None] == numbers


def test_title_and_id_are_no_further_columns_and_the_order_is_the_sources() -> None:
    items = pl.DataFrame({"b": ["x"], "title": ["t"], "a": [1], "item_id": ["i"], "url": ["http://a"]})
    words, left_out = joined_columns(items)
    assert list(words) == ["b", "a"]
    assert left_out == {"url": "web addresses"}
