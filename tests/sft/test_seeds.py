"""Several trainings with one command: what each is, what the summary says of them, and how an evaluation takes them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_dirs import exit_code, flags, make_run_dir, run_stage, weights, write_sid_stage

from sidrec.baselines.blend import load_blend
from sidrec.data.dataset import Dataset
from sidrec.evaluation import evaluate
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import seed_runs
from sidrec.sft import train

RQ_FLAGS: dict[str, object] = {"architecture": "rq_transformer", "batch_items": 96}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run directory with three trainings, and what the command printed."""
    run_dir = make_run_dir(tmp_path_factory.mktemp("seeds") / "run")
    vectors = run_dir / "embeddings" / "collaborative.npy"  # which the semantic IDs were made from, as by the tokenizer
    vectors.parent.mkdir()
    np.save(vectors, np.zeros(3))
    write_sid_stage(run_dir, vectors=(vectors,))
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("sidrec.pipeline.screen.Screen.say", lambda _, line: lines.append(line))
        train.main(flags(train, run_dir, **RQ_FLAGS, seeds=3))
    return run_dir, "\n".join(lines)


def test_each_is_the_training_of_its_seed(trained: tuple[Path, str], tmp_path: Path) -> None:
    run_dir, _ = trained
    runs = [run_dir, *seed_runs(run_dir, "sft")]
    assert [run.name for run in runs[1:]] == ["1", "2"]
    for seed, run in enumerate(runs):
        alone = make_run_dir(tmp_path / str(seed))
        run_stage(train, alone, **RQ_FLAGS, seed=seed)
        assert weights(alone / "sft") == weights(run / "sft")


def test_the_summary_says_mean_spread_and_ensemble(trained: tuple[Path, str]) -> None:
    run_dir, text = trained
    runs = [run_dir, *seed_runs(run_dir, "sft")]
    best = [
        max(json.loads((run / "sft" / "valid.json").read_text()), key=lambda row: row["eval_ndcg@10"]) for run in runs
    ]
    values = [row["eval_recall@10"] for row in best]
    assert f"3 trainings, valid Recall@10 {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in text
    cases = Dataset.load(run_dir).cases("valid")
    assert f"their ensemble on {len(cases)} valid cases" in text
    alone = float(re.search(r"the first alone (\.?0?\.\d+)", text)[1])
    assert alone == pytest.approx(values[0], abs=1e-4)


def test_an_evaluation_takes_them_all_and_the_ensemble_is_served(trained: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = tmp_path / "moved"
    shutil.copytree(trained[0], run_dir, symlinks=True)
    evaluate.main(["--run_dir", str(run_dir), "--models", "sft", "sft_ensemble", "popularity"])
    ranks = pl.read_parquet(run_dir / "evaluation" / "ranks.parquet")
    assert dict(ranks.group_by("model").agg(pl.col("repeat").n_unique()).rows()) == {
        "sft": 3,
        "sft_ensemble": 1,
        "popularity": 1,
    }
    assert len(load_blend(run_dir, "sft_ensemble").recommenders) == 3


def test_finished_ones_are_not_trained_again_and_more_can_follow(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained[0], run_dir, symlinks=True)
    shutil.rmtree(run_dir / "seeds" / "2")
    before = weights(run_dir / "seeds" / "1" / "sft")
    train.main(flags(train, run_dir, **RQ_FLAGS, seeds=3))
    assert capsys.readouterr().out.count("finished already, nothing to do") == 2
    assert weights(run_dir / "seeds" / "1" / "sft") == before
    assert weights(run_dir / "seeds" / "2" / "sft") == weights(trained[0] / "seeds" / "2" / "sft")


def test_trainings_of_other_settings_are_not_mixed(trained: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained[0], run_dir, symlinks=True)
    train.main(flags(train, run_dir, **RQ_FLAGS | {"dropout": 0.3}, overwrite=True))
    with pytest.raises(InputError, match=r"seeds/1/sft was trained with other settings or data than .*run/sft"):
        evaluate.main(["--run_dir", str(run_dir), "--models", "sft", "popularity"])


def test_no_seed_at_all_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("sft/train.py", "--run_dir", make_run_dir(tmp_path / "run"), "--seeds", "0") == 2
    assert "seeds=0 cannot be" in capsys.readouterr().err
