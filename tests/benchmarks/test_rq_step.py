"""benchmarks/rq_step.py on a small run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_dirs import make_run_dir

from benchmarks import rq_step
from sidrec.pipeline.errors import InputError


def test_a_short_run_prints_all_keys(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run_dir(tmp_path / "rings")
    rq_step.main(["--run_dir", str(run_dir), "--steps", "3", "--repeats", "1"])
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert set(figures) == {"bare_step_seconds", "trainer_step_seconds", "batch_seconds", "trainer_overhead"}
    assert all(value > 0 for value in figures.values())


def test_a_folder_without_semantic_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished 'sid' stage"):
        rq_step.main(["--run_dir", str(tmp_path)])
