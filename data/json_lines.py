"""Read files with one JSON object per line, block by block: most are gzipped and larger than memory."""

from __future__ import annotations

import ast
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from sidrec.data.dialect import quote
from sidrec.data.tables import require_file
from sidrec.pipeline.errors import InputError

BLOCK_BYTES = 1 << 24
NO_TABLE = (
    pl.exceptions.PolarsError,
    TypeError,
    ValueError,
    OverflowError,
)  # of objects that make no columns, or hold half a character


def read_columns(path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    """The top-level fields named in `schema`, null where a line lacks one.

    schema: name → pl.Categorical for ids, pl.Int64 for numbers. Raises InputError naming the line that is not an object or holds
    another type.
    """
    as_read = {name: pl.String if dtype == pl.Categorical else dtype for name, dtype in schema.items()}
    frames = [pl.DataFrame(schema=schema)]
    for first_line, block in blocks(path):
        try:
            frame = pl.read_ndjson(io.BytesIO(block), schema=as_read)
        except pl.exceptions.PolarsError:
            frame = _read_slowly(path, first_line, block, as_read)
        frames.append(frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items()))
    return pl.concat(frames, rechunk=True)


def read_objects(path: Path) -> pl.DataFrame:
    """All top-level fields of a file that fits into memory, null where a line lacks one; where a field's types differ, as strings.

    Raises InputError naming the line that is no object.
    """
    records = [
        parse(path, number, line)
        for first_line, block in blocks(path)
        for number, line in enumerate(block.split(b"\n"), first_line)
        if line.strip()
    ]
    try:
        return pl.DataFrame(records, infer_schema_length=None, strict=False)
    except NO_TABLE as error:
        raise InputError(
            f"{path} cannot be read as JSON lines ({' '.join(str(error).split())}); repair or export it again."
        ) from error


def blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """The file, unpacked when it ends in .gz, in blocks of whole lines, each with the number of its first line, from 1.

    Shows a progress bar. Raises InputError when the file is missing, empty, no gzip file, or cut short.
    """
    require_file(path)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with path.open("rb") as packed, Progress(f"reading {path.name}", *columns, transient=True) as progress:
        task = progress.add_task(path.name, total=path.stat().st_size)
        content = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
        line, rest = 1, b""
        try:
            while chunk := content.read(BLOCK_BYTES):
                progress.update(task, completed=packed.tell())
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                if newline:
                    yield line, whole
                    line += whole.count(b"\n") + 1
        except EOFError as error:
            raise InputError(f"{path} is cut short: its gzip data end too early; download it again.") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path} is not a sound gzip file ({error}); download it again.") from error
        if rest.strip():
            yield line, rest


def parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """One line as a dictionary: JSON, or a Python literal as in the metadata of 2014 (single quotes), which is never evaluated."""
    try:
        text = line.decode("utf-8")
        try:
            record = json.loads(text)
        except json.JSONDecodeError:
            record = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        shown = quote(line.decode("utf-8", "replace"))
        raise InputError(
            f"{path} line {number} is neither JSON nor a Python literal: {shown}; the file looks damaged, so download it again."
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f"{path} line {number} holds no object: {quote(str(record))}; check that this is the right file."
        )
    return record


def _read_slowly(path: Path, first_line: int, block: bytes, schema: dict[str, Any]) -> pl.DataFrame:
    """Read a block that Polars refuses line by line, so that the error names the line."""
    kinds = {pl.String: str, pl.Int64: int}
    columns: dict[str, list[Any]] = {name: [] for name in schema}
    for number, line in enumerate(block.split(b"\n"), first_line):
        if not line.strip():
            continue
        record = parse(path, number, line)
        for name, dtype in schema.items():
            value = record.get(name)
            if value is not None and not isinstance(value, kinds[dtype]):
                raise InputError(
                    f"{path} line {number}: {name} is {value!r}, not {dtype}; check that this is the right file."
                )
            columns[name].append(value)
    return pl.DataFrame(columns, schema=schema)
