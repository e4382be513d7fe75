"""benchmarks/sft_cost.py on a small run directory, and its ratios by hand."""

from __future__ import annotations

import json

import pytest
from run_dirs import make_run_dir

from benchmarks import sft_cost
from benchmarks.sft_cost import Point, ratios, reached
from sidrec.pipeline.errors import InputError


def test_ratios_by_hand():
    curves = {
        "all_positions": [Point(100, 1.0, 0.1), Point(200, 2.0, 0.2), Point(300, 3.0, 0.4), Point(400, 4.0, 0.3)],
        "windows": [Point(1000, 8.0, 0.1), Point(2000, 16.0, 0.2), Point(3000, 24.0, 0.15)],
        "full": [Point(100, 5.0, 0.05), Point(200, 10.0, 0.1), Point(300, 15.0, 0.21)],
    }
    by_name = ratios(curves)
    assert by_name["recall_reached"] == 0.2
    assert by_name["token_ratio"] == 2000 / 200
    assert by_name["cpu_ratio"] == 16 / 2
    assert by_name["likelihood_ratio"] == 15 / 2
    assert by_name["tokens_per_second"] == 100
    assert reached(curves["all_positions"], 0.25).tokens == 300
    curves["all_positions"] = [Point(100, 1.0, 0.1)]
    assert ratios(curves)["likelihood_ratio"] == 0, "never reached"
    assert ratios(curves)["token_ratio"] == 1000 / 100


def test_a_short_run_prints_all_keys(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sft_cost, "LARGE_VOCABULARY", 640)
    monkeypatch.setattr(sft_cost, "OVERHEAD_STEPS", 3)
    run_dir = make_run_dir(tmp_path / "rings")
    flags = ["--run_dirs", run_dir, "--epochs", 2, "--window_epochs", 1, "--measurements", 2, "--tokens_per_step", 256]
    flags += ["--hidden_size", 16, "--intermediate_size", 24, "--max_items", 12]
    sft_cost.main([str(flag) for flag in flags])
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])["rings"]
    for key in ("token_ratio", "cpu_ratio", "likelihood_ratio_152k", "trainer_overhead", "tokens_per_second"):
        assert figures[key] > 0, key
    curves = figures["curves"]
    assert list(curves) == ["all_positions", "windows", "full"]
    assert curves["windows"][-1]["tokens"] > curves["all_positions"][-1]["tokens"], "one answer an example"
    assert all(0 <= point["recall"] <= 1 for points in curves.values() for point in points)
    assert curves["all_positions"][-1]["tokens"] == curves["full"][-1]["tokens"]


def test_no_run_directory_is_refused():
    with pytest.raises(InputError, match="--run_dirs"):
        sft_cost.main([])
