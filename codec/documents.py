"""Documents, one after the other: of text files, JSON lines, Parquet, folders of them, and of FineWeb where there is a connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidrec.pipeline.errors import InputError

FINEWEB = "fineweb"
FINEWEB_DATASET, FINEWEB_PART = "HuggingFaceFW/fineweb", "sample-10BT"
MOST_BYTES = 1 << 26  # of a document: it is held in memory, with its tokens
ROWS_AT_ONCE = 256  # of a Parquet file


@dataclass(frozen=True)
class Document:
    """name: the file's, relative to the folder that was named, and for a file of rows the row's number, from 1. text: not blank, at most
    MOST_BYTES in UTF-8."""

    name: str
    text: str

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode())


def documents_of(sources: Sequence[str], text_field: str = "text") -> Iterator[Document]:
    """The documents of files, folders and FINEWEB, in the order in which they are named; in a folder by the files' paths. Blank ones are
    left out.

    text_field: of JSON lines the field, of Parquet the column that holds the text. No more than a few documents are in memory at once.
    Raises InputError when a source is missing, of another kind, damaged, without a document or without the field.
    """
    for source in sources:
        if is_fineweb(source):
            yield from _fineweb(text_field)
            continue
        n_documents = 0
        for name, file in files_of(Path(source)):
            for document in READERS[file.suffix.lower()](name, file, text_field):
                if document.text.strip():
                    n_documents += 1
                    yield document
        if not n_documents:
            raise InputError(f"{source} holds no text; name files or folders with some in --documents.")


def is_fineweb(source: str) -> bool:
    """Whether a source is FineWeb; a file or folder of that name goes before it."""
    return source == FINEWEB and not Path(source).exists()


def files_of(source: Path) -> list[tuple[str, Path]]:
    """(name, file) of the readable files of a source, sorted by name; hidden ones are left out. Raises InputError when there are none."""
    if not source.exists():
        raise InputError(f"{source} does not exist; name files, folders or {FINEWEB} in --documents.")
    endings = ", ".join(READERS)
    if not source.is_dir():
        if source.suffix.lower() not in READERS:
            raise InputError(f"{source} is none of {endings}; convert it to one of them.")
        return [(source.name, source)]
    files = {
        path.relative_to(source).as_posix(): path
        for path in source.rglob("*")
        if path.is_file() and path.suffix.lower() in READERS
    }
    visible = [(name, files[name]) for name in sorted(files) if not any(part[0] == "." for part in name.split("/"))]
    if not visible:
        raise InputError(f"{source} holds no file of {endings}; name another folder.")
    return visible


def size_of(file: Path, text_field: str) -> int:
    """About how many bytes of text a file holds. Raises InputError when it cannot be read."""
    if file.suffix.lower() != ".parquet":
        return file.stat().st_size
    with _parquet(file, text_field) as table:
        groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_field)


def _of_text(name: str, file: Path, text_field: str) -> Iterator[Document]:
    """A text file is one document."""
    if file.stat().st_size > MOST_BYTES:
        raise InputError(f"{file} is larger than {MOST_BYTES:,} bytes; cut it into several files, one a document.")
    try:
        yield Document(name, file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text ({error}); convert it.") from error


def _of_json_lines(name: str, file: Path, text_field: str) -> Iterator[Document]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{file} line {number} is no JSON ({error}); write one object a line, in UTF-8."
                ) from error
            if not isinstance(row, dict) or text_field not in row:
                raise InputError(f"{file} line {number} has no field {text_field!r}; name the text's in --text_field.")
            yield Document(f"{name}:{number}", _text_in(row[text_field], f"{file} line {number}", text_field))


def _of_parquet(name: str, file: Path, text_field: str) -> Iterator[Document]:
    import pyarrow

    number = 0
    with _parquet(file, text_field) as table:
        try:
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield Document(f"{name}:{number}", _text_in(value, f"{file} row {number}", text_field))
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{file} is damaged after row {number} ({_first_line(error)}); write it again.") from error


def _parquet(file: Path, text_field: str) -> Any:
    """pyarrow's ParquetFile, which has the column `text_field` of texts."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read as Parquet ({_first_line(error)}); write it again.") from error
    if text_field not in table.schema_arrow.names:
        names = ", ".join(table.schema_arrow.names)
        table.close()
        raise InputError(f"{file} has no column {text_field!r}, it has {names}; name the text's in --text_field.")
    return table


def _fineweb(text_field: str) -> Iterator[Document]:
    """The rows of FineWeb as they come over the network."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    no_answer: type[Exception] = HfHubHTTPError.__bases__[0]  # of whichever HTTP client huggingface_hub uses
    try:
        rows = datasets.load_dataset(FINEWEB_DATASET, name=FINEWEB_PART, split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            place = f"{FINEWEB_DATASET} row {number}"
            if text := _text_in(row.get(text_field), place, text_field).strip():
                yield Document(f"{FINEWEB}:{number}", text)
    except (OSError, ValueError, RuntimeError, no_answer) as error:
        raise InputError(
            f"{FINEWEB_DATASET} cannot be read ({_first_line(error)}); it needs a connection to the hub, so name files of your own in "
            "--documents where there is none."
        ) from error


def _text_in(value: object, place: str, text_field: str) -> str:
    """`value` as a document's text. Raises InputError, which names the place, when it is none."""
    if not isinstance(value, str):
        raise InputError(
            f"{place}: {text_field} is {type(value).__name__}, not a text; name another field in --text_field."
        )
    try:
        n_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise InputError(f"{place}: {text_field} holds half a character; write the file again in UTF-8.") from None
    if n_bytes > MOST_BYTES:
        raise InputError(f"{place}: {text_field} is longer than {MOST_BYTES:,} bytes; cut it into several documents.")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[str, Path, str], Iterator[Document]]] = {  # by a file's ending
    ".txt": _of_text,
    ".md": _of_text,
    ".jsonl": _of_json_lines,
    ".ndjson": _of_json_lines,
    ".parquet": _of_parquet,
}
