"""`sidrec drift`: its figures against small cases counted by hand."""

from __future__ import annotations

import math
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_dirs import N_ITEMS, assert_one_sentence, exit_code, finished_sft_run

from sidrec.data.dataset import Dataset
from sidrec.pipeline.files import read_json
from sidrec.serving.bundle import training_counts
from sidrec.serving.drift import MICROSECONDS_PER_HOUR
from sidrec.serving.drift_figures import divergence, halves, list_figures, popularity_shift, reasons_to_train
from sidrec.serving.store import Event, ServedList, Store

DRIFT, BUNDLE = "serving/drift.py", "serving/make_bundle.py"
HOUR = MICROSECONDS_PER_HOUR
CALM = {
    "recall@10_change_high": 0.1,
    "cold_share": 0.02,
    "unknown_share": 0.03,
    "new_user_share": 0.25,
    "divergence_bits": 0.15,
    "divergence_by_chance_bits": 0.1,
}


def test_the_divergence_is_that_by_the_formula() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    mean = (p + q) / 2
    terms = [a * math.log2(a / m) for each in (p, q) for a, m in zip(each, mean, strict=True) if a]
    assert divergence(p, q) == pytest.approx(sum(terms) / 2)
    assert divergence(p, 7 * p) == pytest.approx(0, abs=1e-12)
    assert divergence(np.array([1, 0]), np.array([0, 3])) == pytest.approx(1)


def test_popularity_by_hand() -> None:
    shift = popularity_shift(np.array([4, 3, 2, 1]), np.array([1, 2, 3, 4]), seed=0)
    assert shift["rank_correlation"] == pytest.approx(-1)
    assert shift["divergence_bits"] == pytest.approx(divergence(np.array([4, 3, 2, 1]), np.array([1, 2, 3, 4])))
    draws = np.random.default_rng(0).multinomial(10, [0.4, 0.3, 0.2, 0.1], size=20)
    by_chance = np.mean([divergence(np.array([4, 3, 2, 1]), each) for each in draws])
    assert shift["divergence_by_chance_bits"] == pytest.approx(by_chance)
    assert set(popularity_shift(np.array([4, 3]), np.array([0, 0]), seed=0).values()) == {None}


def lists_of(rows: list[tuple[str | None, int, int, list[str], list[str]]]) -> pl.DataFrame:
    schema = {
        "user_id": pl.String,
        "time": pl.Int64,
        "k": pl.Int64,
        "history": pl.List(pl.String),
        "items": pl.List(pl.String),
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_recall_of_lists_by_hand() -> None:
    events = pl.DataFrame(
        [("ann", "a", 10), ("ann", "b", 15), ("ann", "a", 16), ("ann", "c", 31), ("bob", "a", 12), ("ann", "d", 5)],
        schema=["user_id", "item_id", "received_at"],
        orient="row",
    )
    lists = lists_of(
        [
            ("ann", 10, 2, ["x"], ["a", "z"]),  # takes a and b within 20: 1/2, and not c, which comes after 21
            ("bob", 11, 3, ["x"], ["b", "z"]),  # takes a: 0, and the list is short
            ("ann", 12, 2, [], ["a", "b"]),  # takes a, b and c: 2/3, without a history
            ("eve", 13, 1, ["x"], ["a"]),  # takes nothing
            (None, 14, 1, ["x"], ["a"]),
        ]
    )
    figures = list_figures(events, lists, within=20, seed=0)
    assert (figures["lists"], figures["lists_followed"]) == (5, 3)
    assert figures["recall@10"] == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert figures["recall@10_early"] == pytest.approx(1 / 2)
    assert figures["recall@10_late"] == pytest.approx((0 + 2 / 3) / 2)
    assert figures["lists_without_reason"] == pytest.approx(3 / 5)
    none = list_figures(events, lists.clear(), within=20, seed=0)
    assert none["recall@10"] is None
    assert none["lists_without_reason"] is None


def test_only_a_change_beyond_its_interval_is_one() -> None:
    users = np.array([f"u{i}" for i in range(200)])
    same = halves(np.tile([0.0, 1.0], 100), users, seed=0)
    worse = halves(np.concatenate([np.ones(100), np.tile([0.0, 1.0], 50)]), users, seed=0)
    assert same["recall@10_change_low"] < 0 < same["recall@10_change_high"]
    assert worse["recall@10_change_high"] < 0
    assert worse["recall@10_late"] - worse["recall@10_early"] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"recall@10_change_high": -0.01}, "later lists"),
        ({"cold_share": 0.03}, "never learnt"),
        ({"new_user_share": 0.26}, "users are new"),
        ({"divergence_bits": 0.16}, "beyond chance"),
        (dict.fromkeys(("recall@10_change_high", "new_user_share", "divergence_bits")), None),
    ],
)
def test_training_pays_where_one_limit_is_passed(change: dict[str, float], word: str | None) -> None:
    reasons = reasons_to_train(CALM | change)
    assert len(reasons) == (word is not None)
    assert word is None or word in reasons[0]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("drift") / "run"
    shutil.copytree(finished_sft_run(tmp_path_factory), run)
    assert exit_code(BUNDLE, "--run_dir", run, "--overwrite", "true") == 0
    return run


@pytest.fixture
def store(run_dir: Path, tmp_path: Path) -> str:
    """Events that the run has, ten hours before; then those that it has not, and two lists."""
    log, clock = Dataset.load(run_dir).interactions, [0]
    with closing(Store.open(str(tmp_path / "store.db"))) as opened:
        at = replace(opened, clock=lambda: clock[0])
        old = log.head(7).select("user_id", "item_index", "timestamp").rows()
        at.add_events([Event(f"old{n}", user, f"i{item}", time) for n, (user, item, time) in enumerate(old)])
        clock[0] = 30 * 24 * HOUR
        for number, items in enumerate((["i1", "i2"], ["i3"])):
            at.log_list(ServedList(f"r{number}", f"u{number}", "sft", 0, 2, ["i5"], True, items))
        clock[0] += HOUR
        new = [("u0", "i1"), ("u0", "i4"), ("u1", "i3"), ("new", "i1"), ("new", "unknown")]
        at.add_events([Event(f"new{n}", user, item, 100 + n) for n, (user, item) in enumerate(new)])
    return str(tmp_path / "store.db")


def test_the_command_counts_what_the_run_lacks(
    run_dir: Path, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "drift.json"
    assert exit_code(DRIFT, "--store", store, "--run_dir", run_dir, "--output", file) == 0
    figures, counts = read_json(file), training_counts(Dataset.load(run_dir))
    assert (figures["events"], figures["users"]) == (5, 3)
    assert figures["unknown_share"] == pytest.approx(1 / 5)
    assert figures["cold_share"] == pytest.approx(sum(counts[item] == 0 for item in (1, 4, 3, 1)) / 5)
    assert figures["new_user_share"] == pytest.approx(1 / 3)
    assert figures["recall@10"] == pytest.approx((1 / 2 + 1) / 2)
    assert figures["lists_without_reason"] == pytest.approx(1 / 2)
    now = np.bincount([1, 4, 3, 1], minlength=N_ITEMS)
    assert figures["divergence_bits"] == pytest.approx(divergence(counts, now))
    assert figures["retrain"]
    said = capsys.readouterr().out
    assert "training pays: more than 5% of events are of items that the model never learnt; " in said
    assert "on items that the catalogue lacks 20.0%" in said


def test_a_bundle_knows_no_users_and_days_look_at_the_newest(run_dir: Path, store: str, tmp_path: Path) -> None:
    file = tmp_path / "drift.json"
    assert exit_code(DRIFT, "--store", store, "--bundle", run_dir / "bundle", "--output", file) == 0
    assert (read_json(file)["events"], read_json(file)["new_user_share"]) == (12, None)
    flags = ["--days", "1", "--within_hours", "0.5"]
    assert exit_code(DRIFT, "--store", store, "--bundle", run_dir / "bundle", *flags, "--output", file) == 0
    assert (read_json(file)["events"], read_json(file)["lists_followed"]) == (5, 0)


def test_what_is_missing_is_said(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(str(tmp_path / "empty.db")).close()
    for flags, sentence in (
        (["--run_dir", run_dir], "--store holds no event that the run lacks"),
        ([], "name one of --run_dir and --bundle"),
        (["--run_dir", run_dir, "--days", "0"], "--days is 0; it must be above 0"),
        (["--run_dir", run_dir, "--days", "1e9"], "--days is 1e+09; it must be above 0 and at most 41,667"),
        (["--run_dir", run_dir, "--within_hours", "inf"], "--within_hours is inf"),
        (["--run_dir", run_dir, "--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--run_dir", run_dir, "--output", tmp_path], "is a folder"),
        (["--run_dir", run_dir, "--output", tmp_path / "empty.db"], "which this command reads"),
        (["--run_dir", run_dir, "--output", run_dir / "data" / "dataset.json"], "is a file of the stage in"),
    ):
        assert exit_code(DRIFT, "--store", tmp_path / "empty.db", *flags) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert_one_sentence(error)
