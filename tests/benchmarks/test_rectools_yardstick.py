"""The yardstick from outside: it needs nothing of the project, says in a sentence what it lacks, and measures as the project does."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from run_dirs import ROOT

SCRIPT = ROOT / "benchmarks" / "rectools_yardstick.py"


def run(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_it_lacks_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = run("--run_dir", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {tmp_path}/data/interactions.parquet is missing; run `sidrec prepare --run_dir"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "interactions.parquet").touch()
    if importlib.util.find_spec("rectools") is None:
        done = run("--run_dir", tmp_path)
        assert done.returncode == 2
        assert done.stderr == (
            "error: RecTools is not in this environment; the head of this file says how to make one that has it.\n"
        )


def test_it_imports_nothing_of_the_project() -> None:
    lines = [line.split() for line in SCRIPT.read_text(encoding="utf-8").splitlines()]
    imported = {words[1].split(".")[0] for words in lines if words[:1] in (["import"], ["from"])}
    assert imported <= {
        "__future__",
        "argparse",
        "json",
        "sys",
        "time",
        "pathlib",
        "typing",
        "polars",
        "pandas",
        "rectools",
        "torch",
    }


def test_our_lists_by_rectools_metrics(tmp_path: Path) -> None:
    if importlib.util.find_spec("rectools") is None:
        pytest.skip(
            "RecTools is not in this environment; benchmarks/rectools_yardstick.py says how to make one that has it"
        )
    (tmp_path / "data").mkdir()
    (tmp_path / "evaluation").mkdir()
    pl.DataFrame({"user_id": ["a"]}).write_parquet(tmp_path / "data" / "interactions.parquet")
    rows = [[3, 1, 2], [5, 6, 7]]
    pl.DataFrame({"model": ["sft"] * 2, "items": rows}).write_parquet(tmp_path / "evaluation" / "lists.parquet")
    ranks = pl.DataFrame(
        {"model": ["sft"] * 2, "split": ["test"] * 2, "masked": [True] * 2, "target": [2, 9], "repeat": [0, 0]}
    )
    ranks.write_parquet(tmp_path / "evaluation" / "ranks.parquet")
    figures = json.loads(run("--run_dir", tmp_path).stdout.splitlines()[-1])
    assert figures == {"sft": {"recall10": 0.5, "ndcg10": pytest.approx(0.25)}}
