"""The table of levers: what each one changes, that trainings are kept, and the comparison with the config on the same cases of valid."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from run_dirs import ROOT, small_dataset

from benchmarks import case_ranks, levers, our_models
from benchmarks.case_ranks import save_ranks
from benchmarks.harness import name_of
from benchmarks.levers import CONFIG, NAMES, SIZES, SWITCHES, LeversConfig, lever_of, levers_of, stages_of, summarise
from benchmarks.our_models import PLANS
from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import ndcg_at
from sidrec.evaluation.statistics import holm, paired_test
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage
from sidrec.sft import recipe, train
from sidrec.sft.recipe import settings_by_size
from sidrec.tokenizer.config import parse_arguments

READ = {
    "tokenize": lambda flags: parse_arguments(flags, stage="sid"),
    "sft/train.py": lambda flags: parse_configs(train.CONFIGS, flags, suited=settings_by_size),
}


def settings(dataset: str, name: str, run_dir: Path) -> dict[str, object]:
    """Every setting of a lever's stages, as the stages themselves read it."""
    every: dict[str, object] = {}
    for command in stages_of(dataset, levers_of(dataset)[name], seed=3):
        stage = name_of(command)
        flags = command[command.index(stage) + 1 :]
        for part in READ[stage]([*flags, "--run_dir", str(run_dir)]):
            every |= {f"{stage} {key}": value for key, value in vars(part).items() if not key.startswith("_")}
    return every


@pytest.mark.parametrize("dataset", PLANS)
def test_a_lever_changes_one_thing(dataset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the stages read their flags."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(recipe, "order_of", lambda run_dir: None)
    assert set(SIZES) == set(PLANS)
    (tmp_path / "data").mkdir()
    train = {"ml-1m": 200_000}.get(dataset, 50_000)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"counts": {"items": 1000, "train": train}}))
    base = settings(dataset, CONFIG, tmp_path)
    assert base["sft/train.py seed"] == 3
    for name in (*NAMES[1:], *SWITCHES):
        with_lever = settings(dataset, name, tmp_path)
        shared = [key for key in base.keys() & with_lever.keys() if "logging_dir" not in key]
        changed = {key for key in shared if str(base[key]) != str(with_lever[key])}
        if "tokenize quantizer" not in changed:  # another kind has settings of its own
            changed |= base.keys() ^ with_lever.keys()
        changed = {key.split()[1] for key in changed}
        assert len(changed) <= 2, (name, changed)
        assert changed, name


class Stages:
    """In the place of `run_stage` and of the measuring: keeps what was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, command: list[str], run_dir: Path, threads: int) -> float:
        self.calls.append((run_dir.name, name_of(command)))
        if name_of(command) == "prepare":
            stage = Stage(run_dir, "data", {})
            if not stage.is_finished():
                with stage.building() as folder:
                    small_dataset().save(folder)
        return 1.0


def test_trainings_are_kept_and_compared_with_the_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, ranks_of = Stages(), {}

    def load(run_dir: Path, stage: str) -> SimpleNamespace:
        assert (run_dir / "data" / "interactions.parquet").exists()
        return SimpleNamespace(trie=SimpleNamespace(n_items=60))

    def ranked(
        recommender: SimpleNamespace, cases: EvalCases, n_items: int, masked: bool, label: str
    ) -> tuple[np.ndarray]:
        assert masked
        hits = 0.8 if label.startswith("text") else 0.4
        rng = np.random.default_rng(len(ranks_of))
        ranks_of[label] = np.where(rng.random(len(cases)) < hits, rng.integers(0, 10, len(cases)), 50)
        return (ranks_of[label],)

    monkeypatch.setattr(our_models, "run_stage", stages)
    monkeypatch.setattr(levers, "run_stage", stages)
    monkeypatch.setattr(levers.Recommender, "load", load)
    monkeypatch.setattr(case_ranks, "rank_recommender", ranked)
    flags = ["--dataset", "ml-100k", "--work_dir", str(tmp_path), "--seeds", "0", "1"]
    levers.main([*flags, "--levers", "text alone"])
    trained = ["tokenize", "sft/train.py"]
    runs = [f"{name}_seed_{seed}" for name in ("as_configured", "text_alone") for seed in (0, 1)]
    assert stages.calls == [("base", "prepare"), *((run, stage) for run in runs for stage in trained)]
    stages.calls = []
    capsys.readouterr()
    levers.main([*flags, "--levers", "text alone", "random codes"])
    assert {run for run, _ in stages.calls} == {"base", "random_codes_seed_0", "random_codes_seed_1"}

    rows = {row["lever"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    gains = {
        name: np.mean(
            [ndcg_at(ranks_of[f"{name.replace(' ', '_')}_seed_{seed}: valid"], 10) for seed in (0, 1)], axis=0
        )
        for name in rows
    }
    tests = [paired_test(gains[name], gains[CONFIG], seed=0) for name in ("text alone", "random codes")]
    assert rows["text alone"]["less"] == pytest.approx(vars(tests[0]))
    assert rows["text alone"]["less"]["difference"] > 0
    assert [rows[name]["p"] for name in ("text alone", "random codes")] == pytest.approx(
        holm([each.p for each in tests])
    )
    assert rows["text alone"]["valid"]["ndcg@10"] == pytest.approx(gains["text alone"].mean())
    assert rows[CONFIG]["less"] is None
    assert {row["seeds"] for row in rows.values()} == {2}
    assert rows[CONFIG]["seconds"] == pytest.approx(2, abs=0.5)


def test_several_levers_at_once() -> None:
    both = lever_of("ml-100k", "text alone + dropout 0.3 + three shared codes")
    parts = [levers_of("ml-100k")[name] for name in ("text alone", "dropout 0.3", "three shared codes")]
    assert both.tokenizer == f"{parts[0].tokenizer} {parts[2].tokenizer}"
    assert both.sft == parts[1].sft == "--dropout 0.3"


def test_the_difference_is_on_valid(tmp_path: Path) -> None:
    """A lever that is better on test alone has no difference."""
    rows = []
    for name, test in ((CONFIG, 50), ("text alone", 0)):
        (tmp_path / name).mkdir()
        ranks = {"valid": np.arange(20), "test": np.full(20, test)}
        rows.append(save_ranks(tmp_path / name, ranks) | {"lever": name, "run_dir": name, "seconds": 1.0})  # type: ignore[arg-type]
    line = summarise(rows, tmp_path)[1]
    assert line["less"].difference == 0
    assert "test" not in line


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    for wrong, words in (({"levers": ["luck"]}, "--levers has 'luck'; give any of 'residual k-means"), ({"seeds": [1, 1]}, "--seeds"),
                         ({"cases": 0}, "--cases is 0"), ({"threads": 0}, "--threads is 0")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            LeversConfig("ml-100k", tmp_path, **wrong)  # type: ignore[arg-type]
