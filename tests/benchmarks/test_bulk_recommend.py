"""benchmarks/bulk_recommend.py on a small random catalogue and on a run: both ways give the same lists."""

from __future__ import annotations

import json

import pytest
from run_dirs import finished_rq_run

from benchmarks import bulk_recommend
from sidrec.pipeline.errors import InputError


def test_both_ways_give_the_same_lists(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    random = ["--n_items", "150", "--n_users", "40", "--mean_items", "8", "--calls", "12"]
    for flags, users in ((random, 40), (["--run_dir", str(finished_rq_run(tmp_path_factory)), "--calls", "5"], 60)):
        bulk_recommend.main(flags)
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures["users"] == users
        assert figures["same_lists"] == 1.0
        assert figures["ratio"] == pytest.approx(figures["users_per_s"] / figures["users_per_s_alone"], rel=0.01)


def test_too_small_a_catalogue_is_refused() -> None:
    with pytest.raises(InputError, match="smallest random catalogue"):
        bulk_recommend.main(["--n_items", "5"])
