"""`sidrec import-events`: a log's rows are in the store, each once, and what does not fit is refused before anything is stored."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
from run_dirs import assert_one_sentence, exit_code

from sidrec.serving.export_events import events_table
from sidrec.serving.store import Event, Store

IMPORT = "serving/import_events.py"
SECOND = 1_700_000_000
HEAD = "user_id;item_id;timestamp;rating;shop\n"


def stored(location: str) -> pl.DataFrame:
    with closing(Store.open(location)) as store:
        return events_table(store)


def test_a_log_is_stored_once(location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        f"{HEAD}ann;tea-3;2023-11-14 22:13:20;4,5;x\nbob;cup-1;2023-11-14 22:13:21;;x\nann;cup-1;2023-11-14 22:13:22;2;y\n"
        "ann;tea-3;2023-11-14 22:13:20;1,0;again\n"
    )
    for said in ("4 rows read, 3 events added, 1 known already", "4 rows read, 0 events added, 4 known already"):
        assert exit_code(IMPORT, log, "--store", location, "--value_column", "rating") == 0
        assert said in capsys.readouterr().out
    assert stored(location).rows() == [
        ("ann", "tea-3", SECOND, 4.5, None),
        ("bob", "cup-1", SECOND + 1, None, None),
        ("ann", "cup-1", SECOND + 2, 2.0, None),
    ]
    with closing(Store.open(location)) as store:
        assert store.history("ann") == ["tea-3", "cup-1"]


def test_what_was_exported_comes_into_another_store(tmp_path: Path) -> None:
    places = [str(tmp_path / name) for name in ("first.db", "second.db")]
    with closing(Store.open(places[0])) as store:
        store.add_events([Event("e1", "ann", 'it"em,\n3', SECOND, 2.5, {"page": "ä"}), Event("e2", "bob", "x", SECOND)])
    for ending in ("csv", "parquet"):
        log = tmp_path / f"log.{ending}"
        assert exit_code("serving/export_events.py", "--store", places[0], "--output", log) == 0
        assert exit_code(IMPORT, log, "--store", places[1]) == 0
        assert stored(places[1]).equals(stored(places[0]))


def test_ids_of_ones_own_count(tmp_path: Path) -> None:
    log, location = tmp_path / "log.csv", str(tmp_path / "store.db")
    log.write_text("event_id,user_id,item_id,timestamp\n007,ann,tea-3,5\n8,ann,tea-3,5\n")
    with closing(Store.open(location)) as store:
        store.add_events([Event("007", "ann", "tea-3", 5)])
    assert exit_code(IMPORT, log, "--store", location) == 0
    assert len(stored(location)) == 2


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("user_id,item_id\nann,tea\n", [], "has no column 'timestamp'"),
        ("user_id,item_id,timestamp\nann,tea,5\n,tea,6\n", [], "row 2 has an empty user_id"),
        ("user_id,item_id,timestamp\nann,tea,soon\n", [], "row 1: the timestamp 'soon'"),
        (f"user_id,item_id,timestamp\nann,tea,{SECOND}\nann,tea,{SECOND}000\n", [], "has times in"),
        (f"user_id,item_id,timestamp\nann,{'x' * 600},5\n", [], "it must be a text of 1 to 512 characters"),
        ("user_id,item_id,timestamp,value\nann,tea,5,1\nann,tea,6,dear\n", [], "row 2: column 'value' holds 'dear', which is no finite"),
        ("user_id,item_id,timestamp,extra\nann,tea,5,[1]\n", [], "row 1: extra is '[1]', no JSON object"),
        ("user_id,item_id,timestamp,event_id\nann,tea,5,\nann,tea,6,b\n", [], "row 1 has an empty event_id"),
        ("user_id,item_id,timestamp\nann,tea,5\n", ["--value_column", "stars"], "has no column 'stars'"),
        ("user_id,item_id,timestamp\nann,tea,5\n", ["--separator", "long"], "--separator is 'long'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_sentence_and_stores_nothing(
    text: str, flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, location = tmp_path / "log.csv", tmp_path / "store.db"
    log.write_text(text)
    assert exit_code(IMPORT, log, "--store", location, *flags) == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert words in " ".join(said.split())
    assert not location.exists()


def test_times_in_another_unit_than_the_stores_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, location = tmp_path / "log.csv", str(tmp_path / "store.db")
    log.write_text(f"user_id,item_id,timestamp\nann,tea,{SECOND}\n")
    with closing(Store.open(location)) as store:
        store.add_events([Event("e1", "ann", "tea", SECOND * 1000)])
    assert exit_code(IMPORT, log, "--store", location) == 2
    assert "has times in seconds, and the store's are in milliseconds" in capsys.readouterr().err
    assert len(stored(location)) == 1
