"""The stage end to end on a small catalogue, with a recommender that reads its lists from a score matrix."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sidrec.baselines import sasrec
from sidrec.data.dataset import Dataset
from sidrec.data.metrics import mask_seen
from sidrec.decoding.diagnostics import Diagnosis
from sidrec.decoding.recommender import Recommendations
from sidrec.evaluation import comparison as compared
from sidrec.evaluation import evaluate, models, preconditions, ranking, results
from sidrec.evaluation.models import load_models
from sidrec.evaluation.report import figures as report
from sidrec.evaluation.settings import DEFAULT_MODELS, EvaluateConfig
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage

N, USERS = 70, 25
QUIET = Screen("test", quiet=True)


def dataset(name: str = "small") -> Dataset:
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        items = (rng.integers(N) + np.arange(rng.integers(4, 9))) % N
        splits = ["train"] * (len(items) - 2) + ["valid", "test"]
        rows += [(f"u{user}", int(item), t, split) for t, (item, split) in enumerate(zip(items, splits, strict=True))]
    log = pl.DataFrame(rows, schema=["user_id", "item_index", "timestamp", "split"], orient="row")
    items = pl.DataFrame({"item_id": [str(i) for i in range(N)], "item_index": range(N), "title": "t", "text": "t"})
    return Dataset(items, log, {"name": name, "protocol": "leave_one_out"})


@dataclass
class FakeRecommender:
    """Ranks item j by closeness to (last item + 1); what it is asked is kept in `asked`."""

    stage: str
    asked: list[tuple[int, int, bool]]

    @classmethod
    def load(cls, run_dir: Path, stage: str) -> "FakeRecommender":
        return cls(stage, [])

    def recommend(self, histories: list[np.ndarray], k: int, exclude_seen: bool, progress: Any = None) -> Any:
        self.asked.append((len(histories), k, exclude_seen))
        scores = np.stack([-((np.arange(N) - history[-1] - 1) % N).astype(float) for history in histories])
        if exclude_seen:
            scores = mask_seen(scores, histories)
        items = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        if self.stage == "rl":
            items = np.concatenate([items[:, :1], items[:, :1], items[:, 1 : k - 1]], axis=1)  # a repeat in every list
        reachable = np.array([N - len(np.unique(history)) * exclude_seen for history in histories])
        return Recommendations(items, np.zeros(items.shape, np.float32), reachable)


def fake_diagnose(model: FakeRecommender, histories: list[np.ndarray], k: int, seed: int, progress: Any) -> Diagnosis:
    scored = {"sft": len(histories), "rl": 0}[model.stage]
    regret = (0.012, 0.00034) if scored else (None, None)
    return Diagnosis(len(histories), [0.25, 0.5], [0.125, 0.0625], [0.0, 0.75], k, scored, *regret)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with Stage(tmp_path, "data", {}).building() as folder:
        dataset().save(folder)
    (tmp_path / "sid").mkdir()
    np.save(tmp_path / "sid" / "codes_all.npy", np.arange(N)[:, None])
    for name in ("sft", "rl"):
        with Stage(tmp_path, name, {}).building():
            pass
    monkeypatch.setattr(models, "Recommender", FakeRecommender)
    monkeypatch.setattr(compared, "diagnose", fake_diagnose)
    # the real one may change between two runs of a test
    monkeypatch.setattr(report, "code_version", lambda: "a commit")
    return tmp_path


def run(run_dir: Path, *flags: str) -> None:
    # named, since without a flag the run's last settings count
    training = ["--sasrec_epochs", "2", "--sasrec_minutes", "10", "--seeds", "1", "--tune_baselines", "false"]
    evaluate.main(["--run_dir", str(run_dir), "--models", *DEFAULT_MODELS, *training, *flags])


def files(folder: Path) -> dict[str, bytes]:
    tables = ("ranks.parquet", "lists.parquet", "metrics.json", "comparison.json", "slices.json", "report.json")
    names = (*tables, "table.md", "recall.png", "report.html", "manifest.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_the_whole_stage(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir)
    metrics = json.loads((run_dir / "evaluation" / "metrics.json").read_text())
    comparison = json.loads((run_dir / "evaluation" / "comparison.json").read_text())
    ranks = pl.read_parquet(run_dir / "evaluation" / "ranks.parquet")
    assert set(metrics) == set(DEFAULT_MODELS)
    assert len(ranks) == 7 * 2 * 2 * USERS
    assert ranks.columns == ["model", "split", "masked", "user_id", "target", "rank", "repeat"]
    assert ranks["repeat"].unique().to_list() == [0]
    # the next item is always the last one plus 1: the fake is perfect, and its RL form has it at once too
    assert metrics["sft"]["test"]["masked"]["recall@1"] == 1.0
    rows = ranks.filter((pl.col("model") == "popularity") & (pl.col("split") == "test") & pl.col("masked"))
    assert metrics["popularity"]["test"]["masked"]["recall@20"] == pytest.approx((rows["rank"] < 20).mean())
    assert rows["target"].to_list() == dataset().cases("test").targets.tolist()
    checks = comparison["list_checks"]
    assert checks["sft"] == {"lists": 4 * USERS, "invalid": 0, "repeats": 0, "short": 0, "seen": 0}
    assert checks["rl"]["repeats"] == 4 * USERS
    assert comparison["best_baseline"] in DEFAULT_MODELS[2:]
    assert set(comparison["tuning"]) == {"item_knn", "recent_popularity"}
    assert comparison["cut_short"] == comparison["repeats"] == {}
    against = [row["against"] for row in comparison["paired_tests"] if row["model"] == "sft"]
    assert set(against) == set(DEFAULT_MODELS[2:])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= 20
    masked = metrics["sasrec"]["test"]["masked"]
    for metric in ("recall@10", "ndcg@10"):
        assert "{:.4f} ({:.4f}–{:.4f})".format(masked[metric], *masked[f"{metric}_interval"]) in printed
    assert printed.count("\npopularity ") == 1, "one table"
    assert str(run_dir / "evaluation" / "report.html") in printed
    assert metrics["sft"]["decoding"] == {
        "histories": USERS,
        "leaked_full": [0.25, 0.5],
        "leaked_level": [0.125, 0.0625],
        "forced": [0.0, 0.75],
        "k": 10,
        "regret_histories": USERS,
        "missed": 0.012,
        "lost_mass": 0.00034,
    }
    assert "decoding" not in metrics["popularity"]
    written = (run_dir / "evaluation" / "table.md").read_text()
    log = (run_dir / "evaluation" / "log.txt").read_text()
    assert "log.txt" not in json.loads((run_dir / "evaluation" / "manifest.json").read_text())["outputs"]
    assert "repeats" in written
    for text in (" ".join(log.split()), " ".join(written.split())):
        sft, rl = text.split("Decoding of sft, ")[1].split("Decoding of rl, ")
        assert sft.startswith(f"{USERS} test histories")
        assert "25.00%, 50.00% of the full softmax and 12.50%, 6.25% of the level's" in sft
        assert "forced codes 0.00%, 75.00% of the items' codes" in sft
        assert (
            f"beam regret@10 ({USERS} histories, every item scored): 1.20% of the true first 10 missed, 0.00034" in sft
        )
        assert "regret" not in rl, "a catalogue too large to score"
    assert "sasrec" in printed


def test_interrupted_evaluation_gives_the_same_bytes(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(run_dir)
    whole = files(run_dir / "evaluation")
    original, calls = sasrec.TrainingState.save, []

    def save_then_stop(training: sasrec.TrainingState, path: Path) -> None:
        original(training, path)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(sasrec.TrainingState, "save", save_then_stop)
    trained = {path: path.read_bytes() for path in (run_dir / "baselines").rglob("*") if path.is_file()}
    shutil.rmtree(run_dir / "baselines")
    with pytest.raises(KeyboardInterrupt):
        run(run_dir, "--overwrite", "true")
    assert files(run_dir / "evaluation") == whole, "the last good table is there until another one is whole"
    assert not (run_dir / ".evaluation.building").exists()
    run(run_dir, "--overwrite", "true")
    assert len(calls) == 2, "two epochs, none trained twice"
    assert files(run_dir / "evaluation") == whole
    again = {path: path.read_bytes() for path in (run_dir / "baselines").rglob("*") if path.is_file()}
    assert again == trained
    assert not [path for path in trained if path.name == "training.pt"]


@pytest.mark.parametrize("step", ["load_models", "rank_all", "write_report"])
def test_an_overwriting_evaluation_that_fails_keeps_the_last_good_one(
    step: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(run_dir, "--models", "sft", "popularity")
    folder = run_dir / "evaluation"
    before = files(folder) | {"log.txt": (folder / "log.txt").read_bytes()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("the machine goes down")

    monkeypatch.setattr({"load_models": models, "rank_all": ranking, "write_report": results}[step], step, fail)
    with pytest.raises(OSError, match="goes down"):
        run(run_dir, "--models", "sft", "markov", "--overwrite", "true")
    monkeypatch.undo()
    assert files(folder) | {"log.txt": (folder / "log.txt").read_bytes()} == before
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".evaluation")] == []
    monkeypatch.setattr(ranking, "rank_all", None)
    evaluate.main(["--run_dir", str(run_dir)])  # finished, with its last settings


def test_overwriting_and_other_models_train_no_baseline_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(run_dir, "--models", "sft", "sasrec")
    before = files(run_dir / "evaluation")
    monkeypatch.setattr(sasrec, "train_epoch", None)
    run(run_dir, "--models", "sft", "sasrec", "popularity", "--overwrite", "true")
    run(run_dir, "--models", "sft", "sasrec", "--overwrite", "true")
    assert files(run_dir / "evaluation") == before
    with pytest.raises(TypeError, match="not callable"):
        run(run_dir, "--models", "sft", "sasrec", "--overwrite", "true", "--sasrec_epochs", "3")


def other_run(run_dir: Path, folder: Path) -> Path:
    """A further run with the same data."""
    shutil.copytree(run_dir, folder)
    return folder


def test_several_seeds_are_averaged(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_run(run_dir, tmp_path_factory.mktemp("other") / "run")
    models = ("--models", "sft", "sasrec", "popularity")
    run(run_dir, *models, "--seeds", "3", "--other_runs", str(other))
    metrics = json.loads((run_dir / "evaluation" / "metrics.json").read_text())
    comparison = json.loads((run_dir / "evaluation" / "comparison.json").read_text())
    ranks = pl.read_parquet(run_dir / "evaluation" / "ranks.parquet")
    counts = ranks.group_by("model").agg(pl.col("repeat").n_unique()).rows()
    assert dict(counts) == {"sft": 2, "sasrec": 3, "popularity": 1}
    rows = ranks.filter((pl.col("model") == "sasrec") & (pl.col("split") == "test") & pl.col("masked"))
    assert metrics["sasrec"]["test"]["masked"]["recall@10"] == pytest.approx((rows["rank"] < 10).mean())
    by_repeat = rows.group_by("repeat").agg(recall=(pl.col("rank") < 10).mean()).sort("repeat")["recall"].to_list()
    assert comparison["repeats"]["sasrec"] == pytest.approx(by_repeat)
    assert rows.filter(pl.col("repeat") == 0)["rank"].to_list() != rows.filter(pl.col("repeat") == 1)["rank"].to_list()
    assert "sasrec: mean of 3 trainings with different seeds" in (run_dir / "evaluation" / "table.md").read_text()
    assert len(list((run_dir / "baselines").iterdir())) == 3


@pytest.mark.parametrize("rl_weights", [b"as SFT's", b"others"])
def test_a_row_of_rl_that_is_the_sft_model_is_named(
    run_dir: Path, rl_weights: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, weights in (("sft", b"as SFT's"), ("rl", rl_weights)):
        with Stage(run_dir, name, {}).building(overwrite=True) as folder:
            (folder / "model.safetensors").write_bytes(weights)
    run(run_dir, "--models", "sft", "rl", "popularity")
    printed, is_sft = capsys.readouterr().out, rl_weights == b"as SFT's"
    for text in (printed, (run_dir / "evaluation" / "table.md").read_text()):
        assert ("rl: the SFT model, unchanged" in " ".join(text.split())) == is_sft
    assert ("rl − popularity (the best baseline" in printed) == (not is_sft), "in its place"


def test_other_runs_must_have_the_same_data(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_run(run_dir, tmp_path.parent / f"{tmp_path.name}-other")
    log = pl.read_parquet(other / "data" / "interactions.parquet")
    log.with_columns(pl.col("item_index").reverse()).write_parquet(other / "data" / "interactions.parquet")
    with pytest.raises(InputError, match="whose data are not those of"):
        run(run_dir, "--models", "sft", "popularity", "--other_runs", str(other))
    assert not (run_dir / "evaluation").exists()


def test_a_leak_stops_the_evaluation(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataset()
    column = small.interactions["split"].to_list()
    column[column.index("test")] = "train"
    leaky = Dataset(small.items, small.interactions.with_columns(split=pl.Series(column)), small.info)
    with Stage(run_dir, "data", {}).building(overwrite=True) as folder:
        leaky.save(folder)
    with pytest.raises(InputError, match=r"user u0, train\): a train interaction after the user's valid interaction"):
        run(run_dir, "--models", "popularity")
    assert not (run_dir / "evaluation").exists()


def test_tuned_baselines_say_what_was_tried_and_a_time_limit_says_that_it_cut(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ("--models", "popularity", "sasrec_bce", "esasrec", "--tune_baselines", "true")
    run(run_dir, *models, "--sasrec_epochs", "1")
    comparison = json.loads((run_dir / "evaluation" / "comparison.json").read_text())
    for name in ("sasrec_bce", "esasrec"):
        tuned = comparison["tuning"][name]
        assert tuned["grid"] == [dict(point) for point in sasrec.SasRecSettings.grid]
        assert tuned["valid_recall@10"][tuned["chosen"]] == max(tuned["valid_recall@10"])
        assert f"{name}: best of 4 settings by valid Recall@10" in (run_dir / "evaluation" / "table.md").read_text()
    flags = ("--models", "popularity", "sasrec", "--overwrite", "true")
    run(run_dir, *flags, "--sasrec_minutes", "1e-9")
    cut = (run_dir / "evaluation" / "table.md").read_text()
    assert "sasrec: NOT FULLY TRAINED. The time limit of 1e-09 minutes ended 1 of its 1 trainings" in cut
    run(run_dir, *flags)  # goes on to the end
    assert "NOT FULLY TRAINED" not in (run_dir / "evaluation" / "table.md").read_text()


def test_finished_evaluation_only_shows(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(run_dir, "--models", "popularity", "markov")
    before = files(run_dir / "evaluation")
    capsys.readouterr()
    monkeypatch.setattr(ranking, "rank_all", None)
    run(run_dir, "--models", "markov", "popularity")
    assert "popularity" in capsys.readouterr().out
    assert files(run_dir / "evaluation") == before
    with pytest.raises(InputError, match="models="):
        run(run_dir, "--models", "popularity")


def test_some_test_cases_alone_are_measured_and_reported(run_dir: Path) -> None:
    few = ["--models", "sft", "popularity", "--test_cases", "7"]
    run(run_dir, *few, "--overwrite", "true")
    comparison = json.loads((run_dir / "evaluation" / "comparison.json").read_text())
    assert comparison["cases"] == {"valid": USERS, "test": 7}
    ranks = pl.read_parquet(run_dir / "evaluation" / "ranks.parquet").filter(
        pl.col("split") == "test", pl.col("masked")
    )
    drawn = ranks.filter(pl.col("model") == "sft")["user_id"].to_list()
    every = dataset().cases("test")
    assert drawn == every.first_of_shuffle(7, EvaluateConfig.seed).user_ids
    manifest = json.loads((run_dir / "evaluation" / "manifest.json").read_text())
    assert manifest["fingerprint"]["test_cases"] == 7
    assert "test_cases" in EvaluateConfig(run_dir).not_decisive, "an evaluation of all cases is the one it was before"
    with pytest.raises(InputError, match="--test_cases is -1"):
        EvaluateConfig(run_dir, test_cases=-1)


def test_valid_is_ranked_before_test_and_never_after(run_dir: Path) -> None:
    small = dataset()
    config = EvaluateConfig(run_dir, models=["sft", "popularity"])
    rankers = load_models(small, config, QUIET).rankers
    ranked = ranking.rank_all(rankers, ranking.measured_cases(small, 0, seed=0), QUIET)
    lists = ranked.lists
    assert ranked.ranks["split"].unique(maintain_order=True).to_list() == ["valid", "test"]
    assert rankers["sft"][0].recommender.asked == [(USERS, 50, True), (USERS, 50, False)] * 2
    assert lists["model"].to_list() == ["sft"] * USERS + ["popularity"] * USERS
    first = [int(history[-1] + 1) % N for history in small.cases("test").histories]
    assert lists["items"].to_numpy()[:USERS, 0].tolist() == first, "of test"


def test_baselines_do_not_read_valid_or_test(run_dir: Path) -> None:
    small = dataset()
    log = small.interactions
    shuffled = log.with_columns(
        item_index=pl.when(pl.col("split") == "train").then("item_index").otherwise((pl.col("item_index") + 31) % N)
    )
    other = Dataset(small.items, shuffled, small.info)
    config = EvaluateConfig(run_dir, models=["popularity", "markov"])
    history = [np.array([3, 9])]
    for name, (ranker,) in load_models(small, config, QUIET).rankers.items():
        (again,) = load_models(other, config, QUIET).rankers[name]
        assert np.array_equal(ranker.scorer.scores(history), again.scorer.scores(history))


def test_demo_reports_the_share_of_the_best_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {kind: dict.fromkeys(compared.CUTOFFS, 0.5) for kind in ("expected", "realised")}
    monkeypatch.setattr(compared, "oracle_for", lambda dataset, split, ks: known)
    entry = {"masked": {f"recall@{k}": 0.4 for k in compared.CUTOFFS}}
    best = compared.oracle({"sft": {"valid": entry, "test": entry}}, dataset("demo"))
    assert best["test"]["share_of_expected"]["sft"]["10"] == pytest.approx(0.8)


def test_a_missing_model_is_named_with_what_to_do(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "rl" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"rl/grpo\.py.*leave rl out of --models"):
        run(run_dir)
    assert not (run_dir / "evaluation").exists()
    run(run_dir, "--models", "sft", "popularity")
    assert "rl" not in json.loads((run_dir / "evaluation" / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "sft", "bert4rec"], "bert4rec"),
        (["--sasrec_minutes", "0"], "sasrec_minutes"),
        (["--sasrec_epochs", "-1"], "sasrec_epochs"),
        (["--seed", "-1"], "seed"),
        (["--seeds", "0"], "seeds"),
    ],
)
def test_bad_settings_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(EvaluateConfig, flags)


def test_data_without_test_or_without_training_pairs_are_refused(run_dir: Path) -> None:
    small, config = dataset(), EvaluateConfig(run_dir, models=["popularity"])
    log = small.interactions
    with pytest.raises(InputError, match="no test interaction"):
        preconditions.check(Dataset(small.items, log.filter(pl.col("split") != "test"), {}), config)
    with pytest.raises(InputError, match="two training interactions"):
        preconditions.check(Dataset(small.items, log.filter(pl.col("split") != "train"), {}), config)


def test_the_shipped_config_is_read() -> None:
    path = Path(__file__).parents[2] / "configs" / "evaluation" / "default.yaml"
    config = parse_config(EvaluateConfig, ["--config", str(path), "--seed", "3"])
    assert config == EvaluateConfig(seed=3)
