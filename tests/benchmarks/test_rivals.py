"""benchmarks/rivals.py: the keys of its last line, the training that is kept, and one rival from files to figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rivals
from benchmarks.foreign_files import write_foreign
from benchmarks.rivals import RivalsConfig, best_curve, figures_of
from sidrec.evaluation.rank_file import RankFile
from sidrec.pipeline.errors import InputError


def row(valid: float, test: float) -> dict[str, object]:
    figures = {"valid_recall10": valid, "valid_ndcg10": valid / 2, "test_recall10": test, "test_ndcg10": test / 2}
    return figures | {"valid_by_pass": [valid], "seconds": 1.0}


def test_the_better_sasrec_is_chosen_on_valid() -> None:
    figures = figures_of({"bsarec": row(0.3, 0.2), "sasrec": row(0.2, 0.9), "sasrec_sampled": row(0.4, 0.1)})
    assert (figures["bsarec_recall10"], figures["bsarec_ndcg10"]) == (0.2, 0.1)
    assert (figures["sasrec_kind"], figures["sasrec_recall10"]) == ("sasrec_sampled", 0.1)
    assert figures_of({"bsarec": row(0.3, 0.2)})["sasrec_recall10"] is None


def test_the_curve_is_that_of_the_best_training(tmp_path: Path) -> None:
    for name, curve in (("a", [0.1, 0.2]), ("b", [0.15, 0.3, 0.1])):
        (tmp_path / "baselines" / name).mkdir(parents=True)
        (tmp_path / "baselines" / name / "valid_recall.json").write_text(json.dumps(curve), encoding="utf-8")
    (tmp_path / "baselines" / "cut short").mkdir()
    assert best_curve(tmp_path) == [0.15, 0.3, 0.1]


def test_an_unknown_rival_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nobody.*bsarec"):
        RivalsConfig("ml-100k", tmp_path, rivals=["nobody"])


@pytest.mark.slow
def test_a_rival_from_files_to_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, work, logs = tmp_path / "raw", tmp_path / "work", tmp_path / "logs"
    raw.mkdir()
    write_foreign(raw)
    arguments = (
        f"--dataset ml-100k --raw_dir {raw} --work_dir {work} --rivals sasrec_sampled --epochs 12 --write {logs} --json"
    )
    rivals.main(arguments.split())
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    ranks = RankFile.read(str(logs / "sasrec_sampled.ranks")).ranks
    assert figures["sasrec_recall10"] == pytest.approx((ranks < 10).mean())
    curve = json.loads((logs / "sasrec_sampled-valid.json").read_text(encoding="utf-8"))
    assert curve == figures["valid_by_pass"]["sasrec_sampled"]
    assert len(curve) <= 12
    assert figures["bsarec_recall10"] is None
