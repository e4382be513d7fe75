"""Amazon reviews in their publisher's files: the editions of 2014, 2018 and 2023, any category.

A category has a file of reviews and one of metadata. The first of the names in `EDITIONS` that is there is read, packed or unpacked;
"_5" means that users and items with fewer than five reviews are already left out.

Repeated reviews of one item by one user are kept in the editions of 2014 and 2018, as in the papers that use them (TIGER,
arXiv 2305.05065, and its followers; MiniOneRec, arXiv 2510.24431): they are rare in 2014, and in 2018 a repeat is a purchase. In
that of 2023 only the earliest stays, as in its publisher's own benchmark files.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sidrec.data.json_lines import blocks, parse, read_columns
from sidrec.data.readers import RawLog, checked
from sidrec.data.tables import collect, read_table
from sidrec.pipeline.errors import InputError

DESCRIPTION_CHARACTERS = 500
CATEGORY_CHARACTERS = 100  # in 2018 some "categories" are paragraphs of the product page
# a page's source where its title should be (2018): there is no title in it
PAGE_SOURCE = re.compile(r"<span id|<script|var aPageStart|getTime\(\)", re.IGNORECASE)
TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")


@dataclass(frozen=True)
class Edition:
    """File names, with {} for the category, and the names of the fields in them.

    reviews: in order of preference. ticks: units of `time` in a second. keeps_repeats: whether a user's second review of an item
    counts.
    """

    reviews: tuple[str, ...]
    metadata: str
    user: str
    item: str
    time: str
    ticks: int
    keeps_repeats: bool


EDITIONS = {
    "amazon-2014": Edition(
        ("reviews_{}_5.json.gz", "reviews_{}.json.gz"),
        "meta_{}.json.gz",
        *("reviewerID", "asin", "unixReviewTime", 1, True),
    ),
    "amazon-2018": Edition(
        ("{}_5.json.gz", "{}.json.gz"), "meta_{}.json.gz", *("reviewerID", "asin", "unixReviewTime", 1, True)
    ),
    "amazon-2023": Edition(
        ("{}.csv.gz", "{}.jsonl.gz"), "meta_{}.jsonl.gz", *("user_id", "parent_asin", "timestamp", 1000, False)
    ),
}


def find_amazon(edition: str, category: str, folder: Path) -> tuple[Path, Path]:
    """The files of reviews and of metadata of a category in `folder`; raises InputError naming what was looked for."""
    files = EDITIONS[edition]
    return _first(folder, files.reviews, category), _first(folder, (files.metadata,), category)


def read_amazon(edition: str, reviews: Path, metadata: Path) -> RawLog:
    """A category of an edition, a key of EDITIONS, from its two files.

    Columns: title, brand, categories ("Beauty, Hair Care"), description (its first 500 characters), without HTML; null where there
    is none. An item without metadata, or without a title, has its id as title. Time in Unix seconds (whole days), in 2023 in
    milliseconds. Raises InputError for a damaged file, naming the line.
    """
    files = EDITIONS[edition]
    log = _read_reviews(reviews, files).rename({files.user: "user_id", files.item: "item_id", files.time: "timestamp"})
    unit = "row" if ".csv" in reviews.name else "line"
    item_ids = log["item_id"].drop_nulls().unique(maintain_order=True).cast(pl.String)
    described = pl.DataFrame(
        list(_descriptions(metadata, files.item, set(item_ids))),
        schema=dict.fromkeys(("item_id", "title", "brand", "categories", "description"), pl.String),
        orient="row",
    )
    items = item_ids.to_frame().join(described, on="item_id", how="left", maintain_order="left")
    raw = checked(reviews, log.lazy(), metadata, items, unit)
    interactions, notes = _without_repeats(raw.interactions, files.keeps_repeats)
    untitled = items["title"].is_null().sum()
    if untitled:
        unknown = len(items) - len(described)
        notes.append(
            f"{untitled:,} of {len(items):,} items have no title, {unknown:,} of them no line in {metadata.name} at all: "
            "their title is their id."
        )
    return RawLog(interactions, raw.items, tuple(notes))


def _first(folder: Path, names: tuple[str, ...], category: str) -> Path:
    wanted = [name.format(category) for name in names]
    candidates = [folder / name for packed in wanted for name in (packed, packed.removesuffix(".gz"))]
    first = next((path for path in candidates if path.is_file()), None)
    if first is None:
        raise InputError(
            f"{folder} holds no {' or '.join(wanted)}, packed or unpacked; check the folder and --category {category}."
        )
    return first


def _read_reviews(path: Path, files: Edition) -> pl.DataFrame:
    names = [files.user, files.item, files.time]
    if ".csv" in path.name:
        table = read_table(path, names).select(pl.col(names[:2]).cast(pl.Categorical), names[2])
        return collect(path, table)
    log = read_columns(path, {names[0]: pl.Categorical, names[1]: pl.Categorical, names[2]: pl.Int64})
    if log.is_empty():
        raise InputError(f"{path} holds no review; download it again.")
    absent = next((name for name in names if log[name].null_count() == len(log)), None)
    if absent is not None:
        raise InputError(f"{path} has no field {absent!r} in any line; check that this is the edition you named.")
    return log


def _descriptions(path: Path, id_field: str, wanted: set[str]) -> Iterator[tuple[str | None, ...]]:
    """item_id, title, brand, categories, description of every item of `wanted`; of several lines of one item the first counts."""
    looks_like_id = re.compile(rb"""["']%s["']: *["']([^"']+)["']""" % id_field.encode())
    left = set(wanted)
    for first_line, block in blocks(path):
        for number, line in enumerate(block.split(b"\n"), first_line):
            # parsing is most of the time, and most products have too few reviews to be wanted
            if not any(item_id.decode("utf-8", "replace") in left for item_id in looks_like_id.findall(line)):
                continue
            record = parse(path, number, line)
            item = record.get(id_field)
            if item in left:
                left.remove(item)
                yield item, _title(record), _brand(record), _categories(record), _description(record)


def _title(record: dict[str, Any]) -> str | None:
    title = record.get("title")
    return None if not isinstance(title, str) or PAGE_SOURCE.search(title) else plain(title)


def _brand(record: dict[str, Any]) -> str | None:
    details = record.get("details")
    named = details.get("Brand") if isinstance(details, dict) else None
    return plain(record.get("brand")) or plain(named) or plain(record.get("store"))


def _categories(record: dict[str, Any]) -> str | None:
    """2014: paths of categories; 2018 and 2023: one path."""
    paths = record.get("categories") or record.get("category") or []
    levels = [plain(level) for path in paths for level in (path if isinstance(path, list) else [path])]
    return ", ".join(dict.fromkeys(level for level in levels if level and len(level) <= CATEGORY_CHARACTERS)) or None


def _description(record: dict[str, Any]) -> str | None:
    parts = record.get("description") or []
    text = " ".join(part for part in (parts if isinstance(parts, list) else [parts]) if isinstance(part, str))
    return textwrap.shorten(plain(text) or "", DESCRIPTION_CHARACTERS, placeholder=" …") or None


def plain(text: object) -> str | None:
    """Text without HTML tags and entities, on one line; None when nothing is left, or when it is no text."""
    if not isinstance(text, str):
        return None
    return " ".join(html.unescape(TAG.sub(" ", text)).split()) or None


def _without_repeats(log: pl.DataFrame, keeps_repeats: bool) -> tuple[pl.DataFrame, list[str]]:
    """The log, without all but the earliest review of every (user, item) unless `keeps_repeats`, and a sentence about them."""
    pair = ["user_id", "item_id"]
    repeats = len(log) - log.select(pl.struct(pair).n_unique()).item()
    if not repeats:
        return log, []
    if keeps_repeats:
        return log, [f"{repeats:,} reviews repeat an earlier (user, item) and are kept."]
    first = log.with_row_index().sort("timestamp", maintain_order=True).unique(pair, keep="first", maintain_order=True)
    return first.sort("index").drop("index"), [f"{repeats:,} reviews repeat an earlier (user, item) and are left out."]
