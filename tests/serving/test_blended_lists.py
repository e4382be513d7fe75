"""Recommending with a blend of the table: the same lists as were measured, as probabilities, and what is said where there is none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_dirs import N_ITEMS, assert_one_sentence, exit_code, finished_sft_run

from sidrec.baselines.blend import Blend, load_blend
from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.models import load_models
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen

EVALUATE, RECOMMEND = "evaluation/evaluate.py", "serving/recommend.py"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an evaluation of a blend and of an ensemble."""
    folder = tmp_path_factory.mktemp("blended")
    run, other = folder / "run", folder / "other"
    for copied in (run, other):
        shutil.copytree(finished_sft_run(tmp_path_factory), copied)
    models = ["--models", "sft_blend", "sft_ensemble", "popularity", "--blend_with", "item_knn", "slit"]
    assert exit_code(EVALUATE, "--run_dir", run, *models, "--other_runs", other, "--overwrite", "true") == 0
    return run


@pytest.mark.parametrize("name", ["sft_blend", "sft_ensemble"])
def test_the_lists_are_those_that_were_measured(run_dir: Path, name: str) -> None:
    loaded, cases = load_blend(run_dir, name), Dataset.load(run_dir).cases("test")
    assert isinstance(loaded, Blend if name == "sft_ensemble" else Recommender)
    recommended = loaded.recommend(cases.histories, 10, exclude_seen=True)
    lists = pl.read_parquet(run_dir / "evaluation" / "lists.parquet").filter(pl.col("model") == name)
    assert recommended.items.tolist() == lists["items"].to_list()


@pytest.mark.parametrize("expert", ["item_knn", "slit"])
def test_the_stored_memory_is_the_one_that_was_chosen(run_dir: Path, tmp_path: Path, expert: str) -> None:
    dataset, copied = Dataset.load(run_dir), tmp_path / "run"
    shutil.copytree(run_dir, copied)
    models = ["--models", "sft_blend", "--blend_with", expert, "--overwrite", "true"]
    assert exit_code(EVALUATE, "--run_dir", copied, *models) == 0
    config = EvaluateConfig(copied, models=["sft_blend"], blend_with=[expert])
    (ranker,) = load_models(dataset, config, Screen("test", quiet=True)).rankers["sft_blend"]
    tuned = ranker.scorer
    assert isinstance(tuned, Blend)
    loaded = load_blend(copied, "sft_blend").expert
    histories = dataset.cases("valid").histories
    assert (loaded.memory.name, loaded.weight) == (expert, tuned.weight)
    assert np.array_equal(loaded.memory.gains(histories).toarray(), tuned.memory.gains(histories).toarray())


def test_probabilities_are_the_softmax_over_what_may_be_recommended(run_dir: Path) -> None:
    loaded, histories = load_blend(run_dir, "sft_ensemble"), Dataset.load(run_dir).cases("test").histories[:5]
    loaded = replace(loaded, weight=3.0)
    for exclude_seen in (True, False):
        scores = loaded.scores(histories, exclude_seen).astype(np.float64)
        recommended = loaded.recommend(histories, N_ITEMS, exclude_seen)
        for row, history in enumerate(histories):
            seen = set(history.tolist()) if exclude_seen else set()
            allowed = [item for item in range(N_ITEMS) if item not in seen]
            weights = {item: np.exp(scores[row, item]) for item in allowed}
            wanted = sorted(allowed, key=lambda item: (-scores[row, item], item))
            assert recommended.reachable[row] == len(allowed)
            assert recommended.items[row].tolist() == wanted + [-1] * len(seen)
            shares = [weights[item] / sum(weights.values()) for item in wanted]
            assert np.exp(recommended.log_probs[row]) == pytest.approx(shares + [0] * len(seen), abs=1e-5)


def test_a_user_is_shown_the_blends_list(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    dataset = Dataset.load(run_dir)
    history = dataset.interactions.filter(pl.col("user_id") == "u7")["item_index"].to_numpy().copy()
    wanted = load_blend(run_dir, "sft_blend").recommend([history], 5, exclude_seen=True).items[0]
    capsys.readouterr()
    assert exit_code(RECOMMEND, "--run_dir", run_dir, "--user", "u7", "--k", "5", "--model", "sft_blend") == 0
    output = capsys.readouterr().out
    places = [output.index(dataset.titles[item], output.index("next, by the sft_blend model")) for item in wanted]
    assert places == sorted(places)


def test_what_was_not_measured_cannot_be_asked(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(RECOMMEND, "--run_dir", run_dir, "--user", "u7", "--model", "rl_blend") == 2
    error = capsys.readouterr().err
    assert_one_sentence(error)
    assert "has no rl_blend, only sft_blend, sft_ensemble, popularity; run `sidrec evaluate" in error
    blend = ("--model", "sft_blend")
    assert exit_code(RECOMMEND, "--run_dir", run_dir, "--user", "u7", "--k", "0", *blend) == 2
    copied = tmp_path / "run"
    shutil.copytree(run_dir, copied)
    comparison = copied / "evaluation" / "comparison.json"
    content = json.loads(comparison.read_text())
    del content["tuning"]["item_knn"], content["tuning"]["slit"]
    comparison.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"comparison.json is not the file that .* lists: it was changed"):
        load_blend(copied, "sft_blend")
    shutil.rmtree(copied / "evaluation")
    with pytest.raises(InputError, match=r"holds no finished 'evaluation' stage; run `sidrec evaluate"):
        load_blend(copied, "sft_blend")


def test_a_model_trained_since_the_evaluation_is_refused(run_dir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run_dir, copied)
    manifest = copied / "sft" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(InputError, match=r"was made from another .*sft/manifest.json than the one there now"):
        load_blend(copied, "sft_blend")
