"""The table's command: what it runs, that it goes on where it was stopped, and that the figures are of rows chosen on valid.

Stages are not run here: what each of them would be called with is parsed by the code that takes it, and ranks are made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_dirs import ROOT, small_dataset, stage_configs

from benchmarks import results
from benchmarks.harness import Cost, name_of, prepare_flags
from benchmarks.our_models import OURS, PLANS, training_commands
from benchmarks.results import BASELINES, PIECES, ResultsConfig, models_of
from sidrec.baselines.blend import ENSEMBLES
from sidrec.data.settings import PrepareConfig
from sidrec.evaluation.evaluate import EvaluateConfig
from sidrec.evaluation.statistics import holm, paired_test
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.stage import Stage
from sidrec.rl import grpo
from sidrec.sft import train
from sidrec.tokenizer.config import TokenizerConfig

USERS = 200
TAKERS = {
    "tokenize": (TokenizerConfig,),
    "sft/train.py": train.CONFIGS,
    "rl/grpo.py": grpo.CONFIGS,
}
SOURCES = {"text": ["text"], "collaborative": ["collaborative"]}
# share of hits in the first ten: valid, test
QUALITY = {"text": (0.6, 0.3), "both": (0.5, 0.5), "item_knn": (0.4, 0.1), "markov": (0.3, 0.2)}


def made_up_ranks(model: str, repeat: int, run: str) -> pl.DataFrame:
    """As evaluation writes them; the first repeat of `sft` hits as often as QUALITY says, all others seldom."""
    rng = np.random.default_rng([len(model), repeat, *run.encode()])
    frames = []
    for place, split in enumerate(("valid", "test")):
        for masked in (True, False):
            share = QUALITY.get(run, (0.1, 0.1))[place] if model in ("sft", run) and masked else 0.1
            rank = np.where(rng.permutation(USERS) < share * USERS, rng.integers(0, 10, USERS), 30)
            columns = {"user_id": [f"u{i}" for i in range(USERS)], "target": 0, "rank": rank.astype(np.int64)}
            labels = (
                pl.lit(value).alias(name) for name, value in (("model", model), ("split", split), ("masked", masked))
            )
            frames.append(pl.DataFrame(columns).select(*labels, *columns, pl.lit(repeat).alias("repeat")))
    return pl.concat(frames)


class Stages:
    """In the place of `run_stage`: keeps what was asked for; data are the small ones; evaluation makes ranks up."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.stop_at: Callable[[str, list[str]], bool] = lambda run, command: False

    def __call__(self, command: list[str], run_dir: Path, threads: int) -> float:
        self.calls.append((run_dir.name, command))
        if self.stop_at(run_dir.name, command):
            raise KeyboardInterrupt
        if name_of(command) == "prepare":
            stage = Stage(run_dir, "data", {})
            if not stage.is_finished():
                with stage.building() as folder:
                    small_dataset().save(folder)
        elif name_of(command) == "evaluate":
            assert (run_dir / "data" / "interactions.parquet").exists()
            asked = parse_config(EvaluateConfig, [*command[3:], "--run_dir", str(run_dir)])
            trainings = 1 + len(asked.other_runs) if asked.other_runs else asked.seeds
            run = run_dir.name.partition("-seed")[0]
            repeats = {name: 1 if name in ENSEMBLES else trainings for name in asked.models}
            frames = [made_up_ranks(name, repeat, run) for name in asked.models for repeat in range(repeats[name])]
            (run_dir / "evaluation").mkdir(exist_ok=True)
            pl.concat(frames).write_parquet(run_dir / "evaluation" / "ranks.parquet")
            write_json(run_dir / "evaluation" / "comparison.json", {"repeats": {asked.models[0]: [0.1, 0.3]}})
        elif name_of(command) == "sft/train.py":
            (run_dir / "sft").mkdir(exist_ok=True)
            spent = {"training_cpu_seconds": 30.0, "validation_cpu_seconds": 4.0, "peak_gib": 0.5, "step": 9}
            (run_dir / "sft" / "log.txt").write_text(f"2026-01-01 00:00:00 {json.dumps(spent)}\nended\n")
        return 0.0

    def cost(self, command: list[str], run_dir: Path, threads: int) -> Cost:
        """In the place of `cost_of_stage`."""
        return Cost(self(command, run_dir, threads) + 12.0, 0.25)

    def pop_calls(self) -> list[tuple[str, str]]:
        """(run directory, stage) of the calls since the last time."""
        calls = [(run, name_of(command)) for run, command in self.calls]
        self.calls = []
        return calls


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    fake = Stages()
    monkeypatch.setattr(results, "run_stage", fake)
    monkeypatch.setattr(results, "cost_of_stage", fake.cost)
    monkeypatch.setattr(results, "code_version", lambda: "a commit")
    return fake


def run(work_dir: Path, *flags: str) -> None:
    results.main(["--dataset", "ml-100k", "--work_dir", str(work_dir), *flags])


@pytest.mark.parametrize("dataset", PLANS)
def test_every_stage_takes_its_flags(dataset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    for piece, ours in OURS.items():
        commands = training_commands(PLANS[dataset], ours, ours.models, seed=3)
        assert ("rl/grpo.py" in {command[0] for command in commands}) == (piece == "both")
        for command in commands:
            name = name_of(command)
            flags = command[command.index(name) + 1 :]
            configs = stage_configs(TAKERS[name], [*flags, "--run_dir", str(tmp_path)])
            if name == "tokenize":
                assert (configs[0].seed, configs[0].level_sizes, configs[0].unique) == (3, [], "by_size")
                assert (configs[0].quantizer == "random") == (piece == "random")
                assert configs[0].sources == SOURCES.get(piece, ["text", "collaborative"])
            else:
                assert configs[-1].seed == 3
    assert not parse_config(PrepareConfig, [*prepare_flags(dataset, None), "--run_dir", "x"]).interactions
    (tmp_path / "interactions.parquet").touch()
    from_files = parse_config(PrepareConfig, [*prepare_flags(dataset, tmp_path), "--run_dir", "x"])
    assert (from_files.dataset, from_files.k_user, from_files.k_item, from_files.protocol) == (
        "own",
        1,
        1,
        "leave_one_out",
    )
    assert from_files.items == tmp_path.resolve() / "items.csv"


def test_the_pieces_are_all_rows_of_the_table() -> None:
    assert sorted(PIECES) == sorted([*BASELINES, *OURS])
    assert set(OURS["both"].models) == {"sft", "rl", "sft_blend", "rl_blend", "sft_ensemble", "rl_ensemble"}
    names = [name for ours in OURS.values() for name in ours.models.values()]
    assert len(set(names)) == len(names) == 9


def test_a_piece_is_prepared_trained_and_measured_once(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = ["tokenize", "sft/train.py"]
    run(tmp_path, "--seeds", "2", "--pieces", "text", "markov")
    expected = [("base", "prepare"), ("markov", "evaluate")]
    expected += [(f"text-seed{seed}", stage) for seed in (0, 1) for stage in trained]
    assert stages.pop_calls() == [*expected, ("text-seed0", "evaluate")]
    run(tmp_path, "--seeds", "2", "--pieces", "markov", "text")
    assert stages.pop_calls() == []
    # a further seed asks for the earlier stages, which find themselves finished, and measures anew
    run(tmp_path, "--seeds", "3", "--pieces", "both")
    calls = stages.calls
    assert [run for run, command in calls if command[0] == "rl/grpo.py"] == [f"both-seed{seed}" for seed in range(3)]
    evaluated = parse_config(EvaluateConfig, calls[-1][1][3:])
    assert evaluated.other_runs == [(tmp_path / "runs" / f"both-seed{seed}").resolve() for seed in (1, 2)]
    assert evaluated.overwrite
    assert evaluated.models == ["sft", "rl", "sft_blend", "rl_blend", "sft_ensemble", "rl_ensemble"]
    assert evaluated.blend_with == ["item_knn", "slit"]
    assert evaluated.valid_cases == PLANS["ml-100k"].valid_cases


def test_what_a_single_seed_cannot_have_and_rl_when_it_is_not_wanted_are_left_out() -> None:
    def models(*flags: str) -> list[str]:
        return list(models_of("both", parse_config(ResultsConfig, ["--dataset", "ml-1m", "--seeds", *flags])))

    assert models("1") == ["sft", "rl", "sft_blend", "rl_blend"]
    assert models("2") == [*models("1"), "sft_ensemble", "rl_ensemble"]
    assert models("2", "--rl", "false") == ["sft", "sft_blend", "sft_ensemble"]


def test_a_stopped_run_goes_on(stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.stop_at = lambda run, command: run == "text-seed1" and command[0] == "sft/train.py"
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(results.time, "perf_counter", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--seeds", "2", "--pieces", "popularity", "text")
    assert stages.pop_calls()[1][0] == "popularity"
    stages.stop_at = lambda run, command: False
    run(tmp_path, "--seeds", "2", "--pieces", "popularity", "text")
    assert {run for run, _ in stages.pop_calls()} == {"text-seed0", "text-seed1"}
    row = json.loads((tmp_path / "rows" / "text.json").read_text())["rows"]["text"]
    assert row["seconds"] == 14, "both attempts count"


def test_the_figures_are_of_the_rows_that_are_best_on_valid(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--seeds", "2", "--pieces", "item_knn", "markov", "text", "both", "--json")
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert figures["best_row"] == "SFT, text", "although another one is better on test"
    assert figures["best_baseline"] == "item_knn", "although another one is better on test"
    assert (figures["recall10"], figures["best_baseline_recall10"]) == (0.3, 0.1)
    assert (figures["seeds"], figures["baselines"]) == (2, 2)
    assert (figures["alone_recall10"], figures["blend_recall10"], figures["ensemble_recall10"]) == (0.5, 0.1, 0.1)
    assert all(0 < figures[f"{kind}_ndcg10"] < figures[f"{kind}_recall10"] for kind in ("alone", "blend", "ensemble"))
    assert [figures[name] for name in ("cpu_seconds", "validation_cpu_seconds", "peak_gib")] == [30, 4, 0.5]
    hits = {}
    for name, path in [("sft", "text-seed0"), ("item_knn", "item_knn"), ("markov", "markov")]:
        frame = pl.read_parquet(tmp_path / "runs" / path / "evaluation" / "ranks.parquet")
        of_test = frame.filter((pl.col("model") == name) & (pl.col("split") == "test") & pl.col("masked"))
        hits[name] = (of_test["rank"].to_numpy().reshape(2, USERS) < 10).mean(axis=0)
    ps = [paired_test(hits["sft"], hits[name], seed=0).p for name in ("item_knn", "markov")]
    assert ps[0] < 0.01
    assert holm(ps)[0] < figures["paired_p"] < 14 * max(ps[0], 1e-4) + 1e-9, "corrected for the 7 × 2 pairs"
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == ["| item_knn", "| markov", "| SFT, text", *(
        f"| {name}" for name in OURS["both"].models.values()
    )]  # fmt: skip
    assert [row.split(" | ")[1] for row in rows] == [*"2222222", "1", "1"], "an ensemble is one row of all seeds"
    assert [row.split(" | ")[-3:-1] for row in rows[:4]] == [["12.0", "0.25"]] * 2 + [["30.0", "0.5"]] * 2
    text = "\n".join(lines)
    assert "Code: a commit. sha256 of interactions.parquet: " in text
    assert "Command: python -m benchmarks.results --dataset ml-100k --work_dir" in text
    assert "text: sft: mean of 2 trainings" in text
    assert "NOT FINISHED: popularity recent_popularity markov_decay slit collaborative random sasrec_bce" in text


def test_a_rival_with_a_memory_is_a_row_and_no_baseline(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--seeds", "1", "--pieces", "sasrec", "both", "--json")
    asked = next(command for run, command in stages.calls if run == "sasrec" and "--models" in command)
    evaluated = parse_config(EvaluateConfig, asked[3:])
    assert (evaluated.models, evaluated.blend_with) == (["sasrec_blend", "sasrec"], ["item_knn", "slit"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:]
    assert rows[:2] == ["| sasrec", "| sasrec_blend"]
    assert json.loads(lines[-1])["baselines"] == 1
    assert any(line.startswith("* SFT, blended, less sasrec_blend: Recall@10 ") for line in lines)


def test_what_is_not_finished_has_no_figure(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--seeds", "1", "--pieces", "markov", "--json")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["recall10"], figures["paired_p"], figures["best_baseline_recall10"]) == (None, None, 0.2)
    run(tmp_path, "--seeds", "2", "--pieces", "text", "--json")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["recall10"], figures["best_baseline_recall10"]) == (0.3, 0.2), "markov is the same for all seeds"


def test_neural_baselines_may_have_fewer_seeds(stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "--seeds", "2", "--baseline_seeds", "1", "--pieces", "sasrec", "text")
    asked = {run: parse_config(EvaluateConfig, command[3:]) for run, command in stages.calls if "--models" in command}
    assert asked["sasrec"].seeds == 1
    assert len(asked["text-seed0"].other_runs) == 1


def test_only_what_is_trained_depends_on_how(stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = ["--pieces", "markov", "sasrec"]
    run(tmp_path, *pieces)
    stages.calls = []
    for flags in (["--tune_baselines", "false"], ["--baseline_seeds", "1"], ["--seeds", "2"]):
        run(tmp_path, *pieces, *flags)
        assert stages.pop_calls() == [("sasrec", "evaluate")]


def test_bad_settings_are_refused() -> None:
    for flags, word in (
        [["--pieces", "bert4rec"], "bert4rec"],
        [["--seeds", "0"], "seeds"],
        [["--baseline_seeds", "-1"], "baseline_seeds"],
    ):
        with pytest.raises(InputError, match=word):
            parse_config(ResultsConfig, ["--dataset", "ml-1m", *flags])
    assert parse_config(ResultsConfig, ["--dataset", "ml-1m", "--json"]).json
    assert parse_config(ResultsConfig, ["--dataset", "ml-1m"]).folder == Path("outputs/results-ml-1m")
