"""The file that a command writes to: what cannot be written, or would be lost, is refused before any work, and nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.output_path import check_output
from sidrec.pipeline.stage import Stage


def listing(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A stage's folder, a folder that is an input, and what is no file."""
    with Stage(tmp_path / "run", "data", {}).building() as folder:
        (folder / "items.csv").write_text("theirs", encoding="utf-8")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "log.csv").write_text("theirs", encoding="utf-8")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "null.csv").symlink_to("/dev/null")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "link.csv").symlink_to("log.csv")
    (tmp_path / "manifest.json").write_text("{} of another program", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("folder.csv", "is a folder; name a file in it"),
        ("nowhere/lists.csv", "there is no folder .*nowhere; make it first"),
        ("log.csv/lists.csv", "there is no folder .*log.csv"),
        ("null.csv", "is a device or a pipe"),
        ("pipe.csv", "is a device or a pipe"),
        ("lists.xlsx", "must end in .csv or .parquet, which says the format"),
        ("x" * 252 + ".csv", "File name too long"),
        ("y" * 250 + ".csv", "File name too long"),  # with what is written first
        ("log.csv", "is .*log.csv, which this command reads"),
        ("link.csv", "is .*log.csv, which this command reads"),
        ("bundle/lists.csv", "lies in .*bundle, which this command reads"),
        ("run/data/items.csv", "is a file of the stage in .*data, which would be lost"),
    ],
)
def test_what_is_no_place_for_an_answer(place: Path, name: str, says: str) -> None:
    before = listing(place)
    with pytest.raises(InputError, match=says) as raised:
        check_output("--output", place / name, [place / "log.csv", place / "bundle"], (".csv", ".parquet"))
    assert "\n" not in str(raised.value)
    assert listing(place) == before


@pytest.mark.parametrize("name", ["lists.csv", "run/lists.PARQUET", "run/data/lists.csv", "run/lists.csv", "loop.csv"])
def test_what_is_a_place_stays_as_it_is(place: Path, name: str) -> None:
    before = listing(place)
    check_output("--output", place / name, [place / "log.csv"], (".csv", ".parquet"))
    assert listing(place) == before


def test_no_file_takes_the_place_of_a_device(place: Path) -> None:
    with pytest.raises(InputError, match="is a device or a pipe"), atomic_path(place / "null.csv") as temporary:
        temporary.write_text("gone", encoding="utf-8")
    assert (place / "null.csv").is_symlink()
