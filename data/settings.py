"""The settings of `sidrec prepare`. Nothing that takes long is imported here: `--help` answers at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from sidrec.pipeline.errors import InputError

CACHE = Path("~/.cache/sidrec")
MOVIELENS = ("ml-100k", "ml-1m", "ml-latest-small", "ml-20m", "ml-32m")
AMAZON = ("amazon-2014", "amazon-2018", "amazon-2023")
NOT_DECISIVE = ("run_dir", "raw_dir", "interactions", "items", "overwrite")  # files count by what they hold


@dataclass
class PrepareConfig:
    """Read a catalogue and an interaction log, filter and split them, and write `data/` of a run directory."""

    run_dir: Path | None = field(
        default=None, metadata={"help": "Run directory; its data/ is written. Default: outputs/<dataset>."}
    )
    dataset: Literal[
        "demo",
        "ml-100k",
        "ml-1m",
        "ml-latest-small",
        "ml-20m",
        "ml-32m",
        "amazon-2014",
        "amazon-2018",
        "amazon-2023",
        "minionerec",
        "own",
    ] = field(
        default="demo",
        metadata={
            "help": "demo: drawn from a known model, no download; ml-*: MovieLens; amazon-*: Amazon reviews, one category; "
            "minionerec: a folder that MiniOneRec prepared; own: your two files."
        },
    )
    category: str | None = field(
        default=None,
        metadata={"help": "amazon-*, minionerec: the category as in the publisher's file names, for example Beauty."},
    )
    raw_dir: Path | None = field(
        default=None,
        metadata={
            "help": "Folder with the publisher's files (ml-*: unpacked; amazon-*: the reviews and meta files of the category; "
            f"minionerec: train/, valid/, test/, info/, index/). None: ml-* and amazon-* are downloaded once to {CACHE}."
        },
    )
    interactions: Path | None = field(
        default=None,
        metadata={
            "help": "own: CSV (.csv, .tsv, .txt, also .gz) or Parquet with the columns user_id, item_id, timestamp."
        },
    )
    items: Path | None = field(
        default=None,
        metadata={
            "help": "own: CSV or Parquet with item_id, title; further columns of strings, categories and numbers join the text."
        },
    )
    separator: str | None = field(
        default=None,
        metadata={
            "help": "own: what separates the columns of a CSV: one character, or the word tab. None: comma, semicolon, tab or |, as the "
            "first line says."
        },
    )
    encoding: str | None = field(
        default=None,
        metadata={
            "help": "own: encoding of the CSV files, such as latin-1, cp1252 or utf-16-le. None: UTF-8; a byte order mark decides before "
            "both."
        },
    )
    from_date: str | None = field(
        default=None,
        metadata={"help": "ml-*, amazon-*: drop interactions before this day (2016-10-01, UTC), ahead of the k-core."},
    )
    to_date: str | None = field(
        default=None,
        metadata={"help": "ml-*, amazon-*: drop interactions after this day (2018-11-01, UTC), ahead of the k-core."},
    )
    k_user: int = field(
        default=0,
        metadata={
            "help": "Keep users with at least this many interactions (k-core, with k_item); 1 keeps all. 0: 5 for own and amazon-* "
            "(as in the papers); 1 for demo (its best possible Recall needs whole histories), for ml-* (published tables use all "
            "users and items) and for minionerec (filtered already)."
        },
    )
    k_item: int = field(
        default=0,
        metadata={
            "help": "Keep items with at least this many interactions; 1 keeps all. 0: 5 for own and amazon-*, 1 for the others."
        },
    )
    keep_untaken_items: bool = field(
        default=False,
        metadata={
            "help": "Keep every item of the catalogue, also those that nobody has taken, or nobody whom the filters leave: they get "
            "semantic IDs by their text and can be recommended."
        },
    )
    protocol: Literal["leave_one_out", "leave_one_out_ties_shuffled", "global_time", "published"] = field(
        default="leave_one_out",
        metadata={
            "help": "leave_one_out: each user's last interaction is test, the last but one valid; equal timestamps in input order. "
            "leave_one_out_ties_shuffled: the same with a user's equal timestamps in an order drawn by seed. global_time: of all "
            "interactions in time order, the first 8 tenths are train, the next tenth valid, the last tenth test. published: as the "
            "files of minionerec say."
        },
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the demo data and of shuffled ties; nothing else uses randomness."}
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Delete the run's data/ and make it again, even from other inputs or settings."},
    )

    def __post_init__(self) -> None:
        self.run_dir = self.run_dir or Path("outputs") / self.dataset
        self._check_inputs()
        self._check_dialect()
        self._check_window()
        if self.protocol == "published" and self.dataset != "minionerec":
            raise InputError(f"--protocol published is for --dataset minionerec only, not {self.dataset}.")
        for flag, number in (("--k_user", self.k_user), ("--k_item", self.k_item)):
            if number < 0:
                raise InputError(f"{flag} is {number}; it must not be negative.")
        self.k_user = self.k_user or default_k(self.dataset)
        self.k_item = self.k_item or default_k(self.dataset)

    def _check_inputs(self) -> None:
        for flag, file in (("--interactions", self.interactions), ("--items", self.items)):
            if self.dataset == "own" and file is None:
                raise InputError(f"--dataset own needs {flag}, a CSV or Parquet file.")
            if self.dataset != "own" and file is not None:
                raise InputError(f"{flag} is for --dataset own only, not {self.dataset}; leave it out.")
        if self.raw_dir is not None and self.dataset in ("demo", "own"):
            raise InputError(f"--raw_dir is for a publisher's files, not for {self.dataset}; leave it out.")
        if self.raw_dir is None and self.dataset == "minionerec":
            raise InputError("--dataset minionerec needs --raw_dir, the folder with valid/, test/, info/ and index/.")
        has_category = self.dataset in AMAZON or self.dataset == "minionerec"
        if has_category and not re.fullmatch(r"\w+", self.category or ""):
            raise InputError(
                f"--dataset {self.dataset} needs --category, as in the publisher's file names (for example Beauty)."
            )
        if not has_category and self.category is not None:
            raise InputError(f"--category is for amazon-* and minionerec, not {self.dataset}; leave it out.")

    def _check_dialect(self) -> None:
        for flag, text in (("--separator", self.separator), ("--encoding", self.encoding)):
            if text is not None and self.dataset != "own":
                raise InputError(f"{flag} is for --dataset own only, not {self.dataset}; leave it out.")
        self.separator = read_dialect(self.separator, self.encoding)

    def _check_window(self) -> None:
        given = {"--from_date": self.from_date, "--to_date": self.to_date}
        days = []
        for flag, text in given.items():
            if text is None:
                continue
            if self.dataset not in AMAZON and self.dataset not in MOVIELENS:
                raise InputError(
                    f"{flag} is for ml-* and amazon-*, whose times are dates, not {self.dataset}; leave it out."
                )
            try:
                days.append(date.fromisoformat(text))
            except ValueError as error:
                raise InputError(f"{flag} is {text!r}; write a day as 2016-10-01.") from error
        if len(days) == 2 and days[1] < days[0]:
            raise InputError(f"--to_date {self.to_date} lies before --from_date {self.from_date}; exchange them.")


def read_dialect(separator: str | None, encoding: str | None) -> str | None:
    """The separator as one character. Raises InputError where it is none, and for an encoding that Python does not know."""
    if separator is not None:
        separator = {"tab": "\t", "\\t": "\t"}.get(separator, separator)
        if len(separator) != 1 or not separator.isascii() or separator in "\"'\r\n":
            raise InputError(f"--separator is {separator!r}; give one character, such as ';', or the word tab.")
    if encoding is not None:
        try:
            "a".encode(encoding)  # an empty text is never looked at
        except (LookupError, ValueError) as error:
            raise InputError(
                f"--encoding {encoding!r} is no encoding that Python knows; give for example utf-8, latin-1 or cp1252."
            ) from error
    return separator


def default_k(dataset: str) -> int:
    """The k of the k-core that published tables of a data set use."""
    return 5 if dataset == "own" or dataset in AMAZON else 1
