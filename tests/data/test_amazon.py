"""Small files in the publisher's true formats, with their oddities."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sidrec.data.amazon import find_amazon, plain, read_amazon
from sidrec.data.json_lines import BLOCK_BYTES
from sidrec.pipeline.errors import InputError

# as published: Python's own text for a dictionary, not JSON
META_2014 = (
    "{'asin': 'B01', 'description': \"It's a comb.\", 'title': \"Women's Comb & Brush\", 'price': 6.99, "
    "'imUrl': 'http://x/y.jpg', 'related': {'also_bought': ['B02', 'B99']}, 'salesRank': {'Beauty': 42}, "
    "'categories': [['Beauty', 'Hair Care'], ['Beauty', 'Tools & Accessories']], 'brand': 'Goody'}\n"
    "{'asin': 'B99', 'title': 'nobody reviewed this'}\n"
    "{'asin': 'B02', 'description': 'Says \"hello\", it\\'s so', 'categories': [['Beauty']]}\n"
)
REVIEWS_2014 = [
    ("A1", "B02", 1390000000),
    ("A1", "B01", 1380000000),
    ("A2", "B03", 1390000000),
    ("A1", "B02", 1390086400),
]


def review(user: str, item: str, time: int) -> dict[str, Any]:
    text = 'He said "it\'s fine"\nand {"asin": "B77"}'
    return {
        "reviewerID": user,
        "asin": item,
        "reviewerName": "Amazon Customer “J.”",
        "helpful": [0, 1],
        "reviewText": text,
        "overall": 5.0,
        "unixReviewTime": time,
        "reviewTime": "01 18, 2014",
    }


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def pack(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.fixture
def files_2014(tmp_path: Path) -> tuple[Path, Path]:
    reviews = pack(tmp_path / "reviews_Beauty_5.json.gz", lines([review(*row) for row in REVIEWS_2014]))
    return reviews, pack(tmp_path / "meta_Beauty.json.gz", META_2014)


def test_2014_reads_python_literals_and_keeps_repeats(files_2014: tuple[Path, Path]) -> None:
    raw = read_amazon("amazon-2014", *files_2014)
    assert raw.interactions.rows() == REVIEWS_2014
    assert raw.items.columns == ["item_id", "title", "brand", "categories", "description"]
    assert raw.items.rows() == [
        ("B02", "B02", None, "Beauty", 'Says "hello", it\'s so'),
        ("B01", "Women's Comb & Brush", "Goody", "Beauty, Hair Care, Tools & Accessories", "It's a comb."),
        ("B03", "B03", None, None, None),
    ]
    assert raw.notes == (
        "1 reviews repeat an earlier (user, item) and are kept.",
        "2 of 3 items have no title, 1 of them no line in meta_Beauty.json.gz at all: their title is their id.",
    )


def test_a_literal_is_never_run(files_2014: tuple[Path, Path], tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    pack(files_2014[1], META_2014 + f"{{'asin': 'B03', 'title': open({str(witness)!r}, 'w').name}}\n")
    with pytest.raises(InputError, match=r"meta_Beauty\.json\.gz line 4 is neither JSON nor a Python literal"):
        read_amazon("amazon-2014", *files_2014)
    assert not witness.exists()


def test_reviews_as_python_literals_give_the_same_log(files_2014: tuple[Path, Path]) -> None:
    wanted = read_amazon("amazon-2014", *files_2014).interactions.rows()
    pack(files_2014[0], "".join(f"{review(*row)}\n" for row in REVIEWS_2014))
    assert read_amazon("amazon-2014", *files_2014).interactions.rows() == wanted


def test_2018_cleans_html_and_takes_the_first_of_two_lines(tmp_path: Path) -> None:
    records = [{"reviewerID": "A1", "asin": asin, "overall": 5.0, "unixReviewTime": 5} for asin in ("B1", "B2", "B1")]
    reviews = pack(tmp_path / "Toys_5.json.gz", lines(records))
    meta = [
        {
            "asin": "B1",
            "title": "Ben &amp; Jerry&#39;s <b>Box</b>",
            "brand": "",
            "category": ["Toys", "</span></span>", "x" * 101],
            "description": ["<p>Two <br/>parts</p>", "word " * 200],
        },
        {"asin": "B1", "title": "a second line of the same product", "brand": "Other"},
        {"asin": "B2", "title": '<span id="productTitle">var aPageStart = (new Date()).getTime();', "description": []},
    ]
    raw = read_amazon("amazon-2018", reviews, pack(tmp_path / "meta_Toys.json.gz", lines(meta)))
    assert raw.interactions.rows() == [("A1", "B1", 5), ("A1", "B2", 5), ("A1", "B1", 5)]
    first, second = raw.items.rows(named=True)
    assert (first["title"], first["brand"], first["categories"]) == ("Ben & Jerry's Box", None, "Toys")
    assert first["description"].startswith("Two parts word word")
    assert first["description"].endswith(" …")
    assert 490 < len(first["description"]) <= 500
    assert (second["title"], second["description"]) == ("B2", None)
    assert raw.notes[1].startswith("1 of 2 items have no title, 0 of them no line")


META_2023 = [
    {
        "parent_asin": "B1",
        "title": "Lamp",
        "store": "Acme",
        "categories": ["Home", "Light"],
        "details": {"Brand": "Lux"},
    },
    {"parent_asin": "B2", "title": "Rug", "store": "Acme", "categories": [], "details": {}, "description": ["Red."]},
]


def test_2023_keeps_the_earliest_review_of_a_pair(tmp_path: Path) -> None:
    rows = [("U1", "B1", 30), ("U1", "B2", 20), ("U1", "B1", 10), ("U2", "B1", 30), ("U2", "B1", 30)]
    records = [
        {"rating": 5.0, "asin": "variant", "parent_asin": item, "user_id": user, "timestamp": time, "images": []}
        for user, item, time in rows
    ]
    reviews = pack(tmp_path / "Home.jsonl.gz", lines(records))
    raw = read_amazon("amazon-2023", reviews, pack(tmp_path / "meta_Home.jsonl.gz", lines(META_2023)))
    assert raw.interactions.rows() == [("U1", "B2", 20), ("U1", "B1", 10), ("U2", "B1", 30)]
    assert raw.items.rows() == [
        ("B1", "Lamp", "Lux", "Home, Light", None),
        ("B2", "Rug", "Acme", None, "Red."),
    ]
    assert raw.notes == ("2 reviews repeat an earlier (user, item) and are left out.",)


def test_2023_five_core_csv(tmp_path: Path) -> None:
    table = "user_id,parent_asin,rating,timestamp\nU1,B2,3.0,1452647382000\nU1,B1,4.0,1454675785000\n"
    reviews = pack(tmp_path / "Home.csv.gz", table)
    meta = pack(tmp_path / "meta_Home.jsonl.gz", lines(META_2023))
    raw = read_amazon("amazon-2023", reviews, meta)
    assert raw.interactions.rows() == [("U1", "B2", 1452647382000), ("U1", "B1", 1454675785000)]
    reviews.write_bytes(reviews.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"Home\.csv\.gz cannot be read as csv"):
        read_amazon("amazon-2023", reviews, meta)
    unpacked = tmp_path / "Home.csv"
    unpacked.write_text(table + "U2,B1")
    with pytest.raises(InputError, match=r"Home\.csv row 3, the last one, has fewer than 4 fields"):
        read_amazon("amazon-2023", unpacked, meta)


def test_blocks_are_joined_at_whole_lines(files_2014: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = read_amazon("amazon-2014", *files_2014)
    for size in (1, 100, 1000):
        monkeypatch.setattr("sidrec.data.json_lines.BLOCK_BYTES", size)
        raw = read_amazon("amazon-2014", *files_2014)
        assert raw.interactions.rows() == wanted.interactions.rows()
        assert raw.items.equals(wanted.items)
    assert BLOCK_BYTES > 1 << 20


def test_files_are_found_packed_or_unpacked_and_five_core_first(tmp_path: Path) -> None:
    for name in ("Toys.json.gz", "meta_Toys.json"):
        (tmp_path / name).touch()
    assert find_amazon("amazon-2018", "Toys", tmp_path) == (tmp_path / "Toys.json.gz", tmp_path / "meta_Toys.json")
    (tmp_path / "Toys_5.json").touch()
    assert find_amazon("amazon-2018", "Toys", tmp_path)[0] == tmp_path / "Toys_5.json"
    with pytest.raises(
        InputError, match=r"holds no reviews_Toys_5\.json\.gz or reviews_Toys\.json\.gz.*--category Toys"
    ):
        find_amazon("amazon-2014", "Toys", tmp_path)
    (tmp_path / "Toys.csv").touch()
    with pytest.raises(InputError, match=r"holds no meta_Toys\.jsonl\.gz"):
        find_amazon("amazon-2023", "Toys", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json\n", r"line 5 is neither JSON nor a Python literal: 'not json'; the file looks damaged"),
        ('{"reviewerID": "A1", "asin": "B0', r"line 5 is neither JSON nor a Python literal"),
        ("[1, 2]\n", r"line 5 holds no object"),
        (lines([review("A1", "B01", 0) | {"unixReviewTime": "soon"}]), r"line 5: unixReviewTime is 'soon', not Int64"),
        (lines([review("A1", "B01", 0) | {"reviewerID": ""}]), r"line 5 has an empty user_id"),
        (lines([review("A1", "B01", 0) | {"asin": None}]), r"line 5 has an empty item_id"),
        (lines([review("A1", "B01", 0) | {"unixReviewTime": None}]), r"line 5 has an empty timestamp"),
    ],
)
def test_a_wrong_line_is_named(files_2014: tuple[Path, Path], text: str, words: str) -> None:
    pack(files_2014[0], lines([review(*row) for row in REVIEWS_2014]) + text)
    with pytest.raises(InputError, match=words) as error:
        read_amazon("amazon-2014", *files_2014)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [0, 1])
def test_cut_or_foreign_archives_are_one_sentence(files_2014: tuple[Path, Path], place: int) -> None:
    path, content = files_2014[place], files_2014[place].read_bytes()
    for damaged, words in (
        (content[:-20], "is cut short: its gzip data end too early; download it again"),
        (b"<html>404</html>", "is not a sound gzip file"),
        (content[:30] + b"\0" * 30 + content[60:], "is not a sound gzip file|is cut short"),
        (b"", "is empty"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=words):
            read_amazon("amazon-2014", *files_2014)


def test_another_edition_is_recognised(files_2014: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=r"has no field 'user_id' in any line; .*edition"):
        read_amazon("amazon-2023", *files_2014)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a < b and c > d", "a < b and c > d"),
        ("AT&amp;T<br>\n phone", "AT&T phone"),
        ("<!-- x --> ", None),
        (None, None),
        (3, None),
    ],
)
def test_plain_text(text: object, wanted: str | None) -> None:
    assert plain(text) == wanted
