"""MovieLens in its publisher's layouts: 100K (`u.data`), 1M (`ratings.dat`), and the CSVs of latest-small, 20M and 32M."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from sidrec.data.dialect import quote
from sidrec.data.readers import RawLog, checked
from sidrec.data.tables import collect, read_table, require_file
from sidrec.pipeline.errors import InputError

# u.item's 19 flags in the publisher's order (u.genre)
ML_100K_GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
NO_GENRES = "(no genres listed)"
CSV_FILES = ("ratings.csv", "movies.csv")
FILES = {
    "ml-100k": ("u.data", "u.item"),
    "ml-1m": ("ratings.dat", "movies.dat"),
    "ml-latest-small": CSV_FILES,
    "ml-20m": CSV_FILES,
    "ml-32m": CSV_FILES,
}


def read_movielens(name: str, folder: Path) -> RawLog:
    """The data set `name`, a key of FILES, from its unpacked files in `folder`.

    Columns: title, genres ("Animation, Comedy"), year ("1995", null when unknown). Time in Unix seconds. Raises InputError for a
    missing, truncated or differently delimited file, naming the line or row.
    """
    readers: dict[str, Callable[[Path], RawLog]] = {"ml-100k": read_ml_100k, "ml-1m": read_ml_1m}
    return readers.get(name, read_ml_csv)(folder)


def read_ml_100k(folder: Path) -> RawLog:
    """MovieLens-100K from `u.data` and `u.item` (Latin-1, 19 flags for the genres)."""
    log_path, items_path = folder / "u.data", folder / "u.item"
    log = _read_delimited(log_path, "\t", ["user_id", "item_id", "rating", "timestamp"], "utf-8")
    columns = ["item_id", "title", "release_date", "video_date", "url", *ML_100K_GENRES]
    items = _read_delimited(items_path, "|", columns, "latin-1")
    genres = pl.concat_list(
        pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in ML_100K_GENRES if genre != "unknown"
    ).list.drop_nulls()
    items = items.select(
        "item_id",
        "title",
        genres=genres.list.join(", "),
        year=pl.coalesce(_year_in_title(), pl.col("release_date").str.extract(r"(\d{4})$")),
    )
    return checked(log_path, log.lazy().with_columns(_rating()), items_path, items, "line")


def read_ml_1m(folder: Path) -> RawLog:
    """MovieLens-1M from `ratings.dat` and `movies.dat` (Latin-1, fields separated by `::`)."""
    log_path, items_path = folder / "ratings.dat", folder / "movies.dat"
    log = _read_delimited(log_path, "::", ["user_id", "item_id", "rating", "timestamp"], "utf-8")
    items = _read_delimited(items_path, "::", ["item_id", "title", "genres"], "latin-1")
    log_with_ratings = log.lazy().with_columns(_rating())
    return checked(log_path, log_with_ratings, items_path, items.with_columns(_genres(), _year_in_title()), "line")


def read_ml_csv(folder: Path) -> RawLog:
    """MovieLens latest-small, 20M or 32M from `ratings.csv` and `movies.csv` (UTF-8, titles with commas in quotation marks)."""
    log_path, items_path = folder / "ratings.csv", folder / "movies.csv"
    log = read_table(log_path, ["userId", "movieId", "timestamp"])
    log = log.rename({"userId": "user_id", "movieId": "item_id"})
    items = collect(items_path, read_table(items_path, ["movieId", "title", "genres"]))
    items = items.select("title", _genres(), _year_in_title(), item_id="movieId")
    return checked(log_path, log, items_path, items, "row")


def _rating() -> pl.Expr:
    return pl.col("rating").cast(pl.Float64, strict=False)


def _genres() -> pl.Expr:
    """ "Animation|Comedy" as "Animation, Comedy"; null when the publisher lists none."""
    genres = pl.col("genres").str.replace_all("|", ", ", literal=True)
    return pl.when(genres != NO_GENRES).then(genres).alias("genres")


def _year_in_title() -> pl.Expr:
    return pl.col("title").str.extract(r"\((\d{4})\)\s*$").alias("year")


def _read_delimited(path: Path, separator: str, names: list[str], encoding: str) -> pl.DataFrame:
    """Every line split at `separator`, which may have several characters; all columns are strings."""
    require_file(path)
    try:
        text = path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {encoding} text (byte {error.start}); download it again.") from error
    lines = pl.Series("line", text.replace("\r\n", "\n").rstrip("\n").split("\n"))
    fields = lines.str.split(separator)
    wrong = (fields.list.len() != len(names)).arg_true()
    if len(wrong):
        row = int(wrong[0])
        fault = f"has {fields[row].len()} fields where {len(names)} separated by {separator!r} were expected: {quote(lines[row])}"
        if row == len(lines) - 1 and row > 0:
            raise InputError(
                f"{path} line {row + 1}, the last one, {fault}; the file looks truncated, so download it again."
            )
        raise InputError(f"{path} line {row + 1} {fault}; check that this is the publisher's own file.")
    return fields.list.to_struct(fields=names).struct.unnest()
