"""benchmarks/rl_front.py: re-ranking by hand, and a front from small runs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from run_dirs import finished_rq_run

from benchmarks import rl_front, rl_runs
from benchmarks.rerankers import LENGTH, by_logit_adjustment, by_mmr, by_value, top_items
from benchmarks.rl_front import RERANKED, SFT, chosen_points
from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import Recommender
from sidrec.rl import grpo

N = 30


@pytest.fixture
def log_probs() -> np.ndarray:
    scores = np.random.default_rng(0).normal(size=(4, N)).astype(np.float32)
    scores[:, 3] = -np.inf  # seen
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def test_the_highest_scores_best_first(log_probs):
    assert top_items(log_probs, 5).tolist() == np.argsort(-log_probs, axis=1)[:, :5].tolist()


def test_by_value_and_by_popularity_are_sums(log_probs):
    values, counts = np.random.default_rng(1).normal(size=(4, N)), np.arange(N)
    assert by_value(log_probs, values, 0.3).tolist() == top_items(log_probs + 0.3 * values, LENGTH).tolist()
    adjusted = by_logit_adjustment(counts)(log_probs, values, 0.5)
    assert adjusted.tolist() == top_items(log_probs - 0.5 * np.log(counts + 1), LENGTH).tolist()
    assert not (adjusted == 3).any(), "what was seen is not listed"


def test_mmr_by_hand(log_probs):
    units = np.random.default_rng(2).normal(size=(N, 3)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    lists = by_mmr(units)(log_probs, np.zeros((4, N)), 2.0)
    for row, items in zip(log_probs, lists, strict=True):
        chosen: list[int] = []
        for _ in range(LENGTH):
            best = max(
                (item for item in range(N) if item not in chosen),
                key=lambda item: row[item] - 2 * max([0.0, *(units[item] @ units[other] for other in chosen)]),
            )
            chosen.append(best)
        assert items.tolist() == chosen
    assert by_mmr(units)(log_probs, np.zeros((4, N)), 0.0).tolist() == top_items(log_probs, LENGTH).tolist()


def test_a_weight_is_chosen_on_valid_where_recall_is_kept():
    def point(recall: float, value: float) -> dict:
        figures = {"recall": np.array([recall]), "value": np.array([value])}
        return {"valid": figures, "test": {name: -one for name, one in figures.items()}}

    points = {(SFT, 0.0): point(0.5, 3.0), ("a", 1.0): point(0.5, 3.1), ("a", 2.0): point(0.49, 3.2)}
    points |= {("a", 3.0): point(0.4, 4.0), ("b", 1.0): point(0.1, 9.0)}
    assert chosen_points(points, margin=0.03) == {("a", "value"): 2.0}


@pytest.fixture
def run_dir(tmp_path_factory, tmp_path):
    return shutil.copytree(finished_rq_run(tmp_path_factory), tmp_path / "run")


def test_a_front_from_small_runs(run_dir, tmp_path, monkeypatch, capsys):
    def in_this_process(command: list[str], run_dir, _threads: int) -> float:
        grpo.main([*command[1:], "--run_dir", str(run_dir), "--batch_items", "60", "--use_cpu", "true"])
        return 1.0

    monkeypatch.setattr(rl_runs, "run_stage", in_this_process)
    work, page = tmp_path / "work", tmp_path / "page"
    arguments = ["--dataset", "ml-100k", "--run_dir", str(run_dir), "--work_dir", str(work), "--seeds", "1"]
    arguments += ["--families", "RL for coverage", *RERANKED, "--margin", "0.5", "--page", str(page), "--json", "true"]
    rl_front.main(arguments)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"recall10_low", "coverage_gain", "gini_gain", "best_reranker_coverage_gain"} <= set(figures)
    assert "value_gain" not in figures, "the log has no ratings"
    assert (page / "front.png").stat().st_size > 1000
    assert "log π - log popularity" in (page / "front.html").read_text()
    cases = Dataset.load(run_dir).cases("test")
    lists = np.load(work / "runs" / "SFT_0_seed_0" / "test.npy")
    served = Recommender.load(run_dir, "sft").recommend(cases.histories, LENGTH, exclude_seen=True).items
    assert lists.tolist() == served.tolist()

    def refuse(*_):
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr(rl_front, "make_lists", refuse)
    rl_front.main(arguments)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
