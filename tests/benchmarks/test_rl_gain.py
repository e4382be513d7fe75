"""benchmarks/rl_gain.py: a table from small runs, whose differences are those of the ranks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from run_dirs import finished_rq_run

from benchmarks import rl_gain, rl_runs
from benchmarks.rl_gain import CONTROL, OURS, SFT
from sidrec.data.dataset import Dataset
from sidrec.data.metrics import ndcg_at, ranks_in_lists
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.errors import InputError
from sidrec.rl import grpo


def in_this_process(command: list[str], run_dir, _threads: int) -> float:
    """In the place of `run_stage`: the same work without another start of Python."""
    assert command[0] == "rl/grpo.py"
    grpo.main([*command[1:], "--run_dir", str(run_dir), "--batch_items", "60", "--use_cpu", "true"])
    return 1.0


@pytest.fixture
def run_dir(tmp_path_factory, tmp_path):
    """Two seeds, of one model: what differs is RL's order of batches."""
    first = shutil.copytree(finished_rq_run(tmp_path_factory), tmp_path / "run")
    shutil.copytree(first, first / "seeds" / "1", ignore=shutil.ignore_patterns("seeds"))
    return first


def test_the_table_is_made_once_and_its_differences_are_the_ranks(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rl_runs, "run_stage", in_this_process)
    work = tmp_path / "work"
    arguments = ["--dataset", "ml-100k", "--run_dir", str(run_dir), "--work_dir", str(work), "--json", "true"]
    arguments += ["--seeds", "2", "--settings", "hit@5", OURS]
    rl_gain.main(arguments)
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = json.loads((work / "rows.json").read_text())["rows"]
    assert set(rows) == {"hit@5 seed 0", *(f"{name} seed {seed}" for name in (SFT, CONTROL, OURS) for seed in (0, 1))}
    cases = Dataset.load(run_dir).cases("test")
    gains = {}
    for name in (SFT, CONTROL, OURS):
        stage = "sft" if name == SFT else "rl"
        each = []
        for seed in (0, 1):
            recommender = Recommender.load(work / rows[f"{name} seed {seed}"]["run_dir"], stage)
            lists = recommender.recommend(cases.histories, 50, exclude_seen=True).items
            each.append(ndcg_at(ranks_in_lists(lists, cases.targets), 10))
        gains[name] = np.mean(each, axis=0)
    assert first["ndcg10_gain"] == pytest.approx(gains[OURS].mean() / gains[CONTROL].mean() - 1)
    assert first["control_gain"] == pytest.approx(gains[CONTROL].mean() / gains[SFT].mean() - 1)
    assert first["low"] <= first["ndcg10_gain"] <= first["high"]
    assert first["rows"][OURS]["seeds"] == 2

    def refuse(*_):
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr(rl_gain, "train", refuse)
    rl_gain.main(arguments)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first


def test_a_seed_that_was_not_trained_is_named(run_dir, tmp_path):
    arguments = ["--dataset", "ml-100k", "--run_dir", str(run_dir), "--work_dir", str(tmp_path), "--seeds", "3"]
    with pytest.raises(InputError, match=r"seeds/2/sft holds no finished 'sft' stage; run `.* --seeds 3`"):
        rl_gain.main(arguments)
