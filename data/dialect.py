"""How a CSV file is written: its encoding, what separates the columns, and the quotation mark."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import textwrap
import zlib
from dataclasses import dataclass
from pathlib import Path

from sidrec.pipeline.errors import InputError

SEPARATORS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}  # what is tried, and how a sentence names it
QUOTES = ('"', "'")
GZIP, UTF8 = b"\x1f\x8b", "utf-8"
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
OTHER_KINDS = {b"PAR1": "a Parquet file; name it .parquet", b"PK\x03\x04": "a zip or Excel file; export it as CSV"}
HEAD_CHARACTERS = 1 << 16
QUOTED_CHARACTERS, LISTED_CHARACTERS = 80, 300


@dataclass(frozen=True)
class Dialect:
    """encoding: a codec of Python. names: the columns' names as the first line has them."""

    encoding: str
    separator: str
    quote: str
    names: tuple[str, ...]

    @property
    def is_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name in ("utf-8", "utf-8-sig", "ascii")


def dialect_of(path: Path, required: list[str], separator: str | None, encoding: str | None) -> Dialect:
    """The dialect of a CSV, packed with gzip or not: the one in which the first line holds the columns `required`.

    separator: None for the first of SEPARATORS that fits. encoding: None for UTF-8; a byte order mark decides before both. Raises
    InputError that names what separates the columns when one of them is missing, or is there twice.
    """
    head, encoding = _head(path, encoding or UTF8)
    if not head.strip() or not head.splitlines()[0].strip():
        raise InputError(f"{path} begins with an empty line; its first line must hold the columns' names.")
    candidates = [
        Dialect(encoding, mark, quote, tuple(names))
        for quote in QUOTES
        for mark in ([separator] if separator else SEPARATORS)
        if (names := _first_row(head, mark, quote))
    ]
    fits = next((each for each in candidates if set(required) <= {name.strip() for name in each.names}), None)
    if fits is None:
        raise _without_columns(path, head, required, separator, max(candidates, key=lambda each: len(each.names)))
    names = [name.strip() for name in fits.names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has the column {twice!r} {names.count(twice)} times; rename or remove all but one.")
    return fits


def decoded(path: Path, encoding: str) -> str:
    """The whole text of a file, packed with gzip or not. Raises InputError naming the line that is not in this encoding."""
    content = _unpacked(path)
    try:
        return content.decode(encoding)
    except UnicodeError as error:
        start = getattr(error, "start", 0)  # an encoding of its own kind gives none
        line = content.count(b"\n", 0, start) + 1
        raise _not_text(path, encoding, f"byte 0x{content[start]:02x} in line {line}") from error


def is_packed(path: Path) -> bool:
    """Whether a file is packed with gzip, whatever its name."""
    with path.open("rb") as handle:
        return handle.read(len(GZIP)) == GZIP


def shown(separator: str) -> str:
    """A separator as a sentence names it."""
    return SEPARATORS.get(separator, repr(separator))


def quote(line: str) -> str:
    """A line in quotation marks, cut after 80 characters."""
    return repr(line if len(line) <= QUOTED_CHARACTERS else line[:QUOTED_CHARACTERS] + "…")


def listed(names: list[str]) -> str:
    """Columns' names as a sentence lists them, on one line."""
    return textwrap.shorten(", ".join(names), LISTED_CHARACTERS, placeholder=", …")


def _head(path: Path, encoding: str) -> tuple[str, str]:
    """The file's first characters, and its encoding: that of the byte order mark if it has one."""
    content = _unpacked(path, HEAD_CHARACTERS)
    other = next((kind for mark, kind in OTHER_KINDS.items() if content.startswith(mark)), None)
    if other is not None:
        raise InputError(f"{path} is named as a CSV and holds {other}.")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), encoding)
    try:
        head = codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeError:
        head = decoded(path, encoding)  # says where it fails
    if "\0" in head:
        raise _not_text(path, encoding, f"a zero byte in line {head.count(chr(10), 0, head.index(chr(0))) + 1}")
    return head, encoding


def _unpacked(path: Path, most: int = -1) -> bytes:
    if not is_packed(path):
        with path.open("rb") as handle:
            return handle.read(most)
    try:
        with gzip.open(path) as packed:
            return packed.read(most)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as csv: {error}; download or export it again.") from error


def _not_text(path: Path, encoding: str, where: str) -> InputError:
    others = "latin-1, cp1252 or utf-16-le" if encoding == UTF8 else "utf-8 or utf-16-le"
    return InputError(
        f"{path} is not {encoding} text ({where}); name its encoding with --encoding, for example {others}."
    )


def _first_row(head: str, separator: str, mark: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(head, newline=""), delimiter=separator, quotechar=mark), [])
    except csv.Error:
        return []


def _without_columns(path: Path, head: str, required: list[str], asked: str | None, nearest: Dialect) -> InputError:
    """nearest: the dialect that gives the first line most columns."""
    names = [name.strip() for name in nearest.names]
    if asked is not None and len(names) == 1:
        fits = next((mark for mark in SEPARATORS if set(required) <= set(_first_row(head, mark, nearest.quote))), None)
        hint = f"the separator is {shown(fits)}, so name that one" if fits else "check what separates the columns"
        return InputError(
            f"{path}: expected columns separated by {shown(asked)} but the first line is {quote(names[0])}; {hint}."
        )
    if len(names) == 1:
        tried = ", ".join(SEPARATORS.values())
        return InputError(
            f"{path}: no separator of {tried} gives the first line, {quote(names[0])}, the columns {', '.join(required)}; add the "
            "columns' names as first line (another separator is named to `sidrec prepare` with --separator)."
        )
    missing = next(name for name in required if name not in names)
    return InputError(
        f"{path} has no column {missing!r} (found: {listed(names)}; separated by {shown(nearest.separator)}); rename or add it."
    )
