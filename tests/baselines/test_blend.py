"""The blend with a memory: its formula against brute force, its weight, its place in the evaluation, and what it may see."""

import copy
import json
import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from run_dirs import N_ITEMS, finished_sft_run, small_dataset

from sidrec.baselines import BASELINES, blend
from sidrec.baselines.baseline import DirectBaseline
from sidrec.baselines.blend import WEIGHTS, Blend, LatestLogProbs, log_probs, tune_blend
from sidrec.baselines.item_knn import fit_item_knn, tune_item_knn
from sidrec.baselines.memory import Memory
from sidrec.baselines.scorer import gains, rank_cases
from sidrec.baselines.slit import fit_slit
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import mask_seen, ndcg_at, rank_of_target
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation import evaluate, models
from sidrec.evaluation.models import load_models
from sidrec.evaluation.ranking import BlendRanker, rank_each
from sidrec.evaluation.report import figures as report
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blend") / "run"
    shutil.copytree(finished_sft_run(tmp_path_factory), folder)
    return folder


@pytest.fixture(scope="module")
def sft(run_dir: Path) -> Recommender:
    return Recommender.load(run_dir, "sft")


@pytest.fixture(scope="module")
def dataset(run_dir: Path) -> Dataset:
    return Dataset.load(run_dir)


def test_gains_are_the_discounts_of_the_places_among_unseen_items() -> None:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 9, rng.integers(1, 6)) for _ in range(20)]
    scores = rng.integers(0, 4, (20, 9)).astype(np.float32)  # many ties

    class Fixed:
        name = "fixed"

        def scores(self, histories: list[np.ndarray]) -> np.ndarray:
            return scores

    gain = gains(Fixed(), histories)
    assert gain.dtype == np.float32
    for row, history in enumerate(histories):
        unseen = sorted(set(range(9)) - set(history.tolist()), key=lambda item: (-scores[row, item], item))
        wanted = [1 / math.log2(1 + unseen.index(item) + 1) if item in unseen else 0 for item in range(9)]
        assert gain[row].tolist() == pytest.approx(wanted)


def masked_ranks(blend: Blend, cases: EvalCases) -> np.ndarray:
    return rank_of_target(blend.scores(cases.histories, exclude_seen=True), cases.targets)


def test_scores_are_log_pi_plus_the_weighted_gain(sft: Recommender, dataset: Dataset) -> None:
    knn = Memory.of(tune_item_knn(dataset, dataset.cases("valid"))[0])
    histories = dataset.cases("valid").histories[:7]
    for exclude_seen in (False, True):
        scores = Blend([sft], knn, N_ITEMS, 2.0, "sft_blend").scores(histories, exclude_seen)
        assert scores.dtype == np.float32
        gain = knn.gains(histories, exclude_seen).toarray()
        for row, history in enumerate(histories):
            assert (gain[row, history] > 0).any() != exclude_seen, "what was taken lately is proposed, too"
            leaves = sft.leaf_log_probs([history])[0]
            for leaf, item in enumerate(sft.trie.item_of_leaf[torch.arange(N_ITEMS)].tolist()):
                wanted = float(leaves[leaf]) + 2 * gain[row, item]
                seen = exclude_seen and item in history
                assert scores[row, item] == pytest.approx(-np.inf if seen else wanted, abs=1e-4)
    assert np.exp(Blend([sft], knn, N_ITEMS, 0.0, "sft_blend").scores(histories)).sum(axis=1) == pytest.approx(
        1, abs=1e-3
    )


def test_weight_0_is_the_exact_ranking_of_the_model(sft: Recommender, dataset: Dataset) -> None:
    cases = dataset.cases("test")
    knn = fit_item_knn(dataset.train_sequences, N_ITEMS, neighbours=5, shrink=0.0)
    alone = Blend([sft], Memory.of(knn), N_ITEMS, 0.0, "sft_blend")
    exact = sft.recommend(cases.histories, N_ITEMS, exclude_seen=False, exact=True)
    places = (exact.items == cases.targets[:, None]).argmax(axis=1)
    assert (rank_cases(alone, cases, masked=False) == places).all()
    assert exact.log_probs[:, 0] == pytest.approx(alone.scores(cases.histories).max(axis=1))


def test_the_weight_is_the_best_of_the_grid_on_valid(
    sft: Recommender, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = dataset.cases("valid")
    knn = Memory.of(fit_item_knn(dataset.train_sequences, N_ITEMS, neighbours=N_ITEMS, shrink=0.0, decay=0.7))
    blends, tuning = tune_blend("sft_blend", [sft, sft], [knn], valid, N_ITEMS, seed=0)
    each = [Blend([sft], knn, N_ITEMS, weight, "sft_blend") for weight in WEIGHTS]
    wanted = [float(ndcg_at(masked_ranks(one, valid), 10).mean()) for one in each]
    assert tuning.values == pytest.approx(wanted)
    assert len(set(wanted)) > 2
    assert [one.weight for one in blends] == [WEIGHTS[int(np.argmax(wanted))]] * 2
    assert (tuning.grid[0], tuning.metric) == ({"with": "item_knn", "weight": 0.0}, "ndcg@10")
    few = valid.first_of_shuffle(9, seed=3)
    assert len(few) == 9
    assert few.user_ids == [user for user in valid.user_ids if user in few.user_ids], "in their order"
    assert valid.first_of_shuffle(9, seed=4).user_ids != few.user_ids
    monkeypatch.setattr(blend, "VALID_CASES", 9)
    _, tuning = tune_blend("sft_blend", [sft], [knn], valid, N_ITEMS, seed=3)
    wanted = [float(ndcg_at(masked_ranks(one, few), 10).mean()) for one in each]
    assert tuning.values == pytest.approx(wanted)


def test_the_baseline_of_a_blend_is_the_better_one_on_valid(sft: Recommender, dataset: Dataset) -> None:
    valid = dataset.cases("valid")
    knn = Memory.of(fit_item_knn(dataset.train_sequences, N_ITEMS, neighbours=N_ITEMS, shrink=0.0, decay=0.7))
    linear = Memory.of(fit_slit(dataset.train_sequences, N_ITEMS, past=0.7, future=0.5, ridge=10.0, decay=0.8))
    each = [tune_blend("sft_blend", [sft], [memory], valid, N_ITEMS, seed=0)[1].values for memory in (knn, linear)]
    for memories, wanted in (([knn, linear], each[0] + each[1]), ([linear, knn], each[1] + each[0])):
        (best,), tuning = tune_blend("sft_blend", [sft], memories, valid, N_ITEMS, seed=0)
        assert tuning.values == wanted
        assert best.memory is memories[int(np.argmax(wanted)) // len(WEIGHTS)]
        assert tuning.grid[tuning.chosen] == {"with": best.memory.name, "weight": best.weight}


def test_a_catalogue_too_large_to_score_whole_is_searched(
    sft: Recommender, dataset: Dataset, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights, and rows of the table; an ensemble, which has no one model to search with, is refused."""
    valid = dataset.cases("valid")
    knn = Memory.of(fit_item_knn(dataset.train_sequences, N_ITEMS, neighbours=5, shrink=0.0))
    _, scored = tune_blend("sft_blend", [sft], [knn], valid, N_ITEMS, seed=0)
    rows = [load_models(dataset, EvaluateConfig(run_dir, models=["sft_blend"]), Screen("test", quiet=True)).rankers]
    monkeypatch.setattr(blend, "MOST_ITEMS", N_ITEMS - 1)
    monkeypatch.setattr(models, "MOST_ITEMS", N_ITEMS - 1)
    _, searched = tune_blend("sft_blend", [sft], [knn], valid, N_ITEMS, seed=0)
    assert searched.values == pytest.approx(scored.values)
    rows += [load_models(dataset, EvaluateConfig(run_dir, models=["sft_blend"]), Screen("test", quiet=True)).rankers]
    scores, lists = (row["sft_blend"][0].rank(valid, lambda _: None) for row in rows)
    for masked in (True, False):
        assert lists.ranks[masked].tolist() == np.minimum(scores.ranks[masked], 50).tolist()
    with pytest.raises(InputError, match="60 are more than its 59; leave it out"):
        tune_blend("sft_ensemble", [sft], [knn], valid, N_ITEMS, seed=0)


@dataclass(frozen=True)
class Scores:
    """A rival whose scores are a softmax's, shifted."""

    name: str = "sasrec"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        rows = [np.sin(history[-1] + 3 * np.arange(N_ITEMS)) * 3 + len(history) for history in histories]
        return np.array(rows, dtype=np.float32)


def test_a_rival_is_blended_with_the_same_memory(
    run_dir: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its softmax stands in π's place; it is no baseline to be beaten, but compared with our blend."""
    rival, valid = Scores(), dataset.cases("valid")
    monkeypatch.setitem(BASELINES, "sasrec", DirectBaseline(lambda *_: rival))
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    asked = ["--models", "sft_blend", "sasrec_blend", "item_knn", "--overwrite", "true"]
    evaluate.main(["--run_dir", str(run_dir), *asked])
    comparison = json.loads((run_dir / "evaluation" / "comparison.json").read_text())
    tuned = comparison["tuning"]["sasrec_blend"]
    assert comparison["best_baseline"] == "item_knn"
    assert "sasrec" not in comparison["models"]
    pairs = {(row["model"], row["against"]) for row in comparison["paired_tests"]}
    assert pairs == {("sft_blend", "item_knn"), ("sft_blend", "sasrec_blend")}
    memory = Memory.load(run_dir / "evaluation" / "sasrec_blend_memory.safetensors")
    log_pi = torch.from_numpy(rival.scores(valid.histories)).log_softmax(1).numpy()
    values = []
    for weight in WEIGHTS:
        scores = mask_seen(log_pi + weight * memory.gains(valid.histories).toarray(), valid.histories)
        values.append(ndcg_at(rank_of_target(scores, valid.targets), 10).mean())
    assert tuned["valid_ndcg@10"] == pytest.approx(values)


def test_what_a_user_took_on_test_changes_no_blend(run_dir: Path) -> None:
    small = small_dataset()
    moved = pl.when(pl.col("split") == "test").then((pl.col("item_index") + 31) % N_ITEMS).otherwise("item_index")
    other = Dataset(small.items, small.interactions.with_columns(item_index=moved), small.info)
    config = EvaluateConfig(run_dir, models=["sft_blend"])
    loaded, again = (load_models(data, config, Screen("test", quiet=True)) for data in (small, other))
    histories = small.cases("valid").histories
    assert loaded.tuning == again.tuning
    (ranker,), (same,) = loaded.rankers["sft_blend"], again.rankers["sft_blend"]
    assert np.array_equal(ranker.scorer.scores(histories), same.scorer.scores(histories))


def test_the_blend_is_a_row_of_the_evaluation(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "code_version", lambda: "a commit")
    evaluate.main(["--run_dir", str(run_dir), "--models", "sft", "sft_blend", "popularity", "item_knn"])
    folder = run_dir / "evaluation"
    comparison = json.loads((folder / "comparison.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert comparison["models"] == ["sft", "sft_blend", "popularity", "item_knn"]
    assert comparison["best_baseline"] in ("popularity", "item_knn")
    tuned = comparison["tuning"]["sft_blend"]
    assert tuned["valid_ndcg@10"][tuned["chosen"]] == max(tuned["valid_ndcg@10"])
    assert metrics["sft_blend"]["valid"]["masked"]["ndcg@10"] == pytest.approx(max(tuned["valid_ndcg@10"]))
    pairs = {(row["model"], row["against"]) for row in comparison["paired_tests"]}
    assert pairs == {
        (ours, other) for ours in ("sft", "sft_blend") for other in ("popularity", "item_knn")
    } | {("sft_blend", "sft")}  # fmt: skip
    assert list(comparison["list_checks"]) == ["sft"]
    lists = pl.read_parquet(folder / "lists.parquet").filter(pl.col("model") == "sft_blend")
    ranks = pl.read_parquet(folder / "ranks.parquet").filter(
        (pl.col("model") == "sft_blend") & (pl.col("split") == "test") & pl.col("masked")
    )
    for items, target, rank in zip(lists["items"].to_list(), ranks["target"], ranks["rank"], strict=True):
        assert (items.index(target) if target in items else 10) == min(rank, 10)
    written = (folder / "table.md").read_text()
    assert "sft_blend: best of 7 settings by valid NDCG@10, seen items masked" in written
    assert "sft_blend − sft, test recall@10" in written
    assert "sft_blend" in (folder / "report.html").read_text()


def test_a_blend_is_made_with_the_baselines_that_are_asked_for(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*flags: str) -> dict:
        # models and baselines as they are without flags: an earlier evaluation's settings would be gone on with
        defaults = ["--models", "sft_blend", "slit", "--blend_with", "item_knn"]
        evaluate.main(["--run_dir", str(run_dir), *defaults, "--overwrite", "true", *flags])
        return json.loads((run_dir / "evaluation" / "comparison.json").read_text())

    def tried(comparison: dict) -> list[str]:
        return list(dict.fromkeys(setting["with"] for setting in comparison["tuning"]["sft_blend"]["grid"]))

    both = run("--blend_with", "slit", "item_knn")
    assert tried(both) == ["item_knn", "slit"]
    assert both["best_baseline"] == "slit"
    assert len(both["tuning"]["slit"]["grid"]) == 32
    assert re.search(
        r"sft_blend: best of 14 settings .*: with (item_knn|slit), weight \d",
        (run_dir / "evaluation" / "table.md").read_text(),
    )
    assert tried(run("--blend_with", "slit")) == ["slit"]
    assert tried(run()) == ["item_knn"]
    for names, words in ((["markov"], r"\['markov'\]"), ([], "nothing")):
        with pytest.raises(InputError, match=f"--blend_with has {words}; give one or both of item_knn slit"):
            EvaluateConfig(run_dir, blend_with=names)
    monkeypatch.setitem(BASELINES, "slit", replace(BASELINES["slit"], matrices=10**9))
    for flags in (["--blend_with", "item_knn"], ["--blend_with", "slit", "--models", "sft_blend"]):
        with pytest.raises(
            InputError,
            match=r"slit holds .* take 14400\.0 GB for the 60 items of .* GB of memory are free; leave it out",
        ):
            run(*flags)
    run("--models", "sft_blend")


def test_a_blend_without_its_model_is_named(run_dir: Path) -> None:
    with pytest.raises(InputError, match=r"rl/grpo\.py.*leave rl_blend out of --models"):
        evaluate.main(["--run_dir", str(run_dir), "--models", "rl_blend", "popularity"])


def test_an_ensemble_adds_the_mean_log_probability(sft: Recommender, dataset: Dataset) -> None:
    """Of the model and of one with other weights: against a sum, and the weight is that of the two together."""
    torch.manual_seed(5)
    other = replace(sft, model=copy.deepcopy(sft.model))
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    valid = dataset.cases("valid")
    knn = Memory.of(tune_item_knn(dataset, valid)[0])
    blends, tuning = tune_blend("sft_ensemble", [sft, other], [knn], valid, N_ITEMS, seed=0)
    (ensemble,) = blends
    log_pi, others = (log_probs(one, valid.histories, N_ITEMS) for one in (sft, other))
    assert np.abs(log_pi - others).max() > 0.1
    wanted = (log_pi + others) / 2 + ensemble.weight * knn.gains(valid.histories, exclude_seen=False).toarray()
    assert ensemble.scores(valid.histories) == pytest.approx(wanted, abs=1e-5)
    assert max(tuning.values) == pytest.approx(float(ndcg_at(masked_ranks(ensemble, valid), 10).mean()))


def test_an_ensemble_is_one_row_of_all_runs(run_dir: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for copied in (run, other):
        shutil.copytree(run_dir, copied, ignore=shutil.ignore_patterns("evaluation"))
    command = ["--run_dir", str(run), "--models", "sft_blend", "sft_ensemble"]
    with pytest.raises(InputError, match="--other_runs names no run to put together"):
        evaluate.main(command)
    evaluate.main([*command, "--other_runs", str(other), "--valid_cases", "7"])
    ranks = pl.read_parquet(run / "evaluation" / "ranks.parquet")
    repeats = ranks.group_by("model").agg(pl.col("repeat").n_unique()).rows()
    assert dict(repeats) == {"sft_blend": 2, "sft_ensemble": 1}
    assert ranks.filter(pl.col("split") == "valid")["user_id"].n_unique() == 7
    assert ranks.filter(pl.col("split") == "test")["user_id"].n_unique() > 7
    one, both = (
        ranks.filter((pl.col("model") == name) & (pl.col("repeat") == 0)) for name in ("sft_blend", "sft_ensemble")
    )
    assert one["rank"].to_list() == both["rank"].to_list(), "the two runs hold the same model"


def test_blends_that_are_measured_together_score_a_case_once(
    sft: Recommender, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(recommender: Recommender, histories: list[np.ndarray], n_items: int) -> np.ndarray:
        asked.append(len(histories))
        return log_probs(recommender, histories, n_items)

    monkeypatch.setattr(blend, "log_probs", counted)
    knn = Memory.of(tune_item_knn(dataset, dataset.cases("valid"))[0])
    cases, latest = dataset.cases("test"), LatestLogProbs()
    blends = [Blend([sft], knn, N_ITEMS, weight, "sft_blend", latest) for weight in (0.0, 2.0)]
    together = rank_each([BlendRanker(one) for one in blends], cases, "both", Screen("test", quiet=True))
    assert sum(asked) == len(cases)
    for blended, ranked in zip(blends, together, strict=True):
        alone = replace(blended, latest=LatestLogProbs())
        assert ranked.ranks[True].tolist() == masked_ranks(alone, cases).tolist()
    assert together[0].ranks[True].tolist() != together[1].ranks[True].tolist()
