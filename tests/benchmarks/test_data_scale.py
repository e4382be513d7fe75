import json
from pathlib import Path

import polars as pl
import pytest

from benchmarks import data_scale
from benchmarks.data_scale import DataScaleConfig, write_catalogue, write_log
from sidrec.pipeline.errors import InputError


def test_the_log_is_drawn_by_the_seed_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "a.parquet", 3000, 0)
    write_log(tmp_path / "b.parquet", 3000, 0)
    write_log(tmp_path / "c.parquet", 3000, 1)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert (tmp_path / "a.parquet").read_bytes() != (tmp_path / "c.parquet").read_bytes()
    monkeypatch.setattr(data_scale, "PIECE_ROWS", 700)
    write_log(tmp_path / "d.parquet", 3000, 0)
    write_catalogue(tmp_path / "items.parquet", 3000)
    log, items = pl.read_parquet(tmp_path / "d.parquet"), pl.read_parquet(tmp_path / "items.parquet")
    assert log.schema == {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    assert len(log) == 3000
    assert set(log["item_id"]) <= set(items["item_id"])
    assert not log["timestamp"].is_sorted()


def test_prepares_and_reports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data_scale.main(["--rows", "20000", "--work_dir", str(tmp_path / "work")])
    printed = capfd.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    assert set(figures) == {"rows", "seconds", "peak_gib"}
    assert figures["rows"] == 20000
    assert 0.05 < figures["peak_gib"] < 8
    assert " train, " in printed
    assert " test interactions" in printed
    assert not (tmp_path / "work").exists()


def test_a_folder_with_something_in_it_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(InputError, match="is not empty and would be deleted"):
        DataScaleConfig(work_dir=tmp_path)
    with pytest.raises(InputError, match="--rows is 5"):
        DataScaleConfig(rows=5)
    assert (tmp_path / "precious").exists()
