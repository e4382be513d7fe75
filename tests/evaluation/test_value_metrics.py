"""Metrics of a column of the log: by hand, on the whole stage, and that nothing changes without one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sidrec.baselines.value_model import fit_value_model
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.evaluation import evaluate, table, value_metrics
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage

N, USERS = 40, 30
MODELS = ("popularity", "markov")


def dataset(**columns: pl.Expr) -> Dataset:
    """Users walk upwards; `rating` is 5 for even items, 2 for odd ones, a tenth more for each user, and missing at each user's first."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        items = (rng.integers(N) + np.cumsum(rng.integers(1, 3, size=rng.integers(5, 9)))) % N
        splits = ["train"] * (len(items) - 2) + ["valid", "test"]
        for t, (item, split) in enumerate(zip(items, splits, strict=True)):
            rating = (2.0 if item % 2 else 5.0) + user / 10
            rows.append((f"u{user:02}", int(item), t, split, rating if t else None))
    log = pl.DataFrame(rows, schema=["user_id", "item_index", "timestamp", "split", "rating"], orient="row")
    items = pl.DataFrame({"item_id": [str(i) for i in range(N)], "item_index": range(N), "title": "t", "text": "t"})
    return Dataset(items, log.with_columns(**columns), {"name": "small", "protocol": "leave_one_out"})


def write(run_dir: Path, data: Dataset) -> None:
    with Stage(run_dir, "data", {}).building(overwrite=True) as folder:
        data.save(folder)


def run(run_dir: Path, *flags: str) -> dict:
    evaluate.main(["--run_dir", str(run_dir), "--models", *MODELS, *flags])
    return json.loads((run_dir / "evaluation" / "metrics.json").read_text())


def files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / "evaluation").iterdir() if path.name != "log.txt"}


def test_liked_recall_by_hand() -> None:
    """Five cases of four users, whose ranks are 0, 3, 60, 9 and 10; the second is liked too little and the third has no value."""
    values = np.array([4.0, 3.5, np.nan, 5.0, 4.5])
    frames = []
    for model, ranks in {"sft": [0, 3, 60, 9, 10], "popularity": [60, 0, 0, 60, 60]}.items():
        for repeat in (0, 1):  # a second training that misses all
            shown = ranks if repeat == 0 else [60] * 5
            frame = pl.DataFrame({"user_id": list("abccd"), "target": [1] * 5, "rank": shown})
            labels = {"model": pl.lit(model), "split": pl.lit("test"), "masked": pl.lit(True)}
            frames.append(frame.with_columns(**labels, repeat=pl.lit(repeat)))
    recalls = value_metrics.liked_recalls(pl.concat(frames), "test", values >= 4)
    assert np.array_equal(recalls["liked_recall@1"]["sft"], [0.5, np.nan, np.nan, 0, 0], equal_nan=True)
    assert np.nanmean(recalls["liked_recall@10"]["sft"]) == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert np.nanmean(recalls["liked_recall@20"]["sft"]) == pytest.approx(0.5)
    assert np.nanmean(recalls["liked_recall@50"]["popularity"]) == 0, "its hits are not liked"


def test_the_mean_value_of_lists_by_hand() -> None:
    values = np.array([[1, 2, 4, 8], [10, 20, 40, 80]], dtype=np.float32)
    items = np.array([[3, 0, -1], [2, -1, -1]])
    assert value_metrics.mean_of_lists(values, items).tolist() == [4.5, 40.0]
    assert np.isnan(value_metrics.mean_of_lists(values, np.full((2, 3), -1))).all()


def test_a_metric_is_entered_with_its_interval_and_its_paired_tests() -> None:
    cases = EvalCases([f"u{i}" for i in range(40)], [np.array([0])] * 40, np.zeros(40, dtype=int))
    frames = []
    for model in ("sft", "popularity", "markov"):
        frame = pl.DataFrame({"user_id": cases.user_ids, "target": cases.targets, "rank": 0, "repeat": 0})
        frames += [
            frame.with_columns(model=pl.lit(model), split=pl.lit(split), masked=pl.lit(True))
            for split in ("valid", "test")
        ]
    ranks = pl.concat(frames)
    values = {"sft": np.full(40, 3.5), "popularity": np.full(40, 3.0), "markov": np.arange(40) / 10}
    for each in values.values():
        each[7] = np.nan
    metrics = {model: {split: {"masked": {}, "unmasked": {}} for split in ("valid", "test")} for model in values}
    assert value_metrics.enter(metrics, "value@10", values, "valid", cases, ranks, 0) == []
    assert metrics["sft"]["valid"]["masked"] == {"value@10": 3.5}
    rows = value_metrics.enter(metrics, "value@10", values, "test", cases, ranks, 0)
    assert metrics["sft"]["test"]["masked"] == {"value@10": 3.5, "value@10_interval": [3.5, 3.5]}
    assert [(row["model"], row["against"], row["metric"], row["seen"]) for row in rows] == [
        ("sft", other, "value@10", "masked") for other in ("popularity", "markov")
    ]
    assert rows[0]["difference"] == pytest.approx(0.5)
    assert rows[1]["difference"] == pytest.approx(3.5 - (78 - 0.7) / 39)
    assert rows[0]["p"] < rows[0]["p_holm"] < 0.01
    assert value_metrics.enter(metrics, "liked_recall@20", values, "test", cases, ranks, 0) == [], "no column of it"
    assert "liked_recall@20" in metrics["sft"]["test"]["masked"]


def test_the_whole_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = dataset()
    write(tmp_path, small)
    metrics = run(tmp_path, "--value_column", "rating", "--liked_from", "4")
    comparison = json.loads((tmp_path / "evaluation" / "comparison.json").read_text())
    ranks = pl.read_parquet(tmp_path / "evaluation" / "ranks.parquet")
    lists = pl.read_parquet(tmp_path / "evaluation" / "lists.parquet")
    model = fit_value_model(small, "rating")
    for split in ("valid", "test"):
        cases = small.cases(split, "rating")
        liked = cases.values >= 4
        assert 0 < liked.sum() < len(cases)
        assert comparison["value"]["liked"][split] == liked.sum()
        for name in MODELS:
            figures = metrics[name][split]
            hits = table.ranks_of(ranks, name, split, True)[liked] < 20
            assert figures["masked"]["liked_recall@20"] == pytest.approx(hits.mean())
            assert not [key for key in figures["unmasked"] if "value" in key or "liked" in key]
    cases = small.cases("test", "rating")
    values = model.values(cases.user_ids, cases.histories, cases.history_values)
    for name in MODELS:
        items = lists.filter(pl.col("model") == name)["items"].to_list()
        wanted = np.mean([values[case, row].mean() for case, row in enumerate(items)])
        figures = metrics[name]["test"]["masked"]
        assert figures["value@10"] == pytest.approx(wanted)
        low, high = figures["value@10_interval"]
        assert low < wanted < high
        assert figures["liked_recall@10_interval"][0] <= figures["liked_recall@10"]
    judged = comparison["value"]["judged"]["test"]
    assert judged["mean"] == pytest.approx(cases.values.mean())
    assert judged["predicted"] == pytest.approx(values[np.arange(USERS), cases.targets].mean())
    assert judged["rmse"] < judged["mean_rmse"]
    written = (tmp_path / "evaluation" / "table.md").read_text()
    masked, unmasked = written.split("Test, seen items")[1:]
    assert "| liked R@10 | value@10 |" in masked
    assert f"| {metrics['markov']['test']['masked']['value@10']:.3f} |" in masked
    assert "value@10" not in unmasked.split("The lists of ten")[0]
    assert f"{comparison['value']['liked']['test']} of {USERS} test cases whose event has rating 4 or more" in written
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert page.count("<th>liked R@10</th>") == page.count("<th>value@10</th>") == 1
    assert "how far the value model can be trusted" in page
    assert "value@10" in capsys.readouterr().out


def test_values_alone_need_no_threshold(tmp_path: Path) -> None:
    write(tmp_path, dataset())
    metrics = run(tmp_path, "--value_column", "rating")
    assert "value@10" in metrics["markov"]["test"]["masked"]
    assert not [key for key in metrics["markov"]["test"]["masked"] if "liked" in key]
    assert "liked" not in (tmp_path / "evaluation" / "table.md").read_text()


def test_without_a_column_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the log has values or not, and with values all other figures are the same."""
    write(tmp_path, dataset())
    monkeypatch.setattr(value_metrics, "fit_value_model", None)
    plain = run(tmp_path)
    before = files(tmp_path)
    assert b"value" not in before["metrics.json"] + before["comparison.json"] + before["table.md"]
    fingerprint = json.loads(before["manifest.json"])["fingerprint"]
    assert not {"value_column", "liked_from"} & fingerprint.keys(), (
        "a table from before there were values is still finished"
    )
    monkeypatch.undo()
    valued = run(tmp_path, "--value_column", "rating", "--liked_from", "4", "--overwrite", "true")
    after = files(tmp_path)
    assert after["ranks.parquet"] == before["ranks.parquet"]
    assert after["lists.parquet"] == before["lists.parquet"]
    for name, splits in valued.items():
        for split, seen in splits.items():
            for mask, figures in seen.items():
                others = {key: figure for key, figure in figures.items() if "value" not in key and "liked" not in key}
                assert others == plain[name][split][mask]
    run(tmp_path, "--value_column", "none", "--liked_from", "none", "--overwrite", "true")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--value_column", "price"), r"interactions\.parquet has no column 'price' .*\(it has rating, word\)"),
        (
            ("--value_column", "word"),
            r"interactions\.parquet: column 'word' holds text in \d+ of \d+ rows, the first 'good' in row \d+ ",
        ),
        (
            ("--value_column", "rating", "--liked_from", "99"),
            r"interactions\.parquet: column 'rating' is 99 or more in no valid row that is asked for \(the highest is 7\.9",
        ),
        (("--liked_from", "4"), r"--liked_from is 4, of no column; name it by --value_column"),
        (("--value_column", "rating", "--liked_from", "nan"), "--liked_from is nan; give a number"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_before_any_work(
    tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    write(tmp_path, dataset(word=pl.lit("good")))
    with pytest.raises(InputError, match=words) as error:
        run(tmp_path, *flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "evaluation").exists()


def test_the_configs_own_check() -> None:
    with pytest.raises(InputError, match="of no column"):
        EvaluateConfig(models=["popularity"], liked_from=4.0)
