"""`sidrec compare`: the figures are those of the table, files hold what runs hold, and what cannot be compared is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_dirs import assert_one_sentence, exit_code
from safetensors.numpy import save_file

from sidrec.evaluation import table
from sidrec.evaluation.rank_file import BEYOND, RankFile
from sidrec.evaluation.statistics import paired_test
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.stage import Stage

COMPARE, USERS = "evaluation/compare.py", 300


def ranks_of(models: dict[str, int], targets: int = 0) -> pl.DataFrame:
    """Made-up rows of ranks.parquet: two repeats of each model, ranks from 0 up to the number given."""
    frames = []
    for seed, (model, most) in enumerate(models.items()):
        for repeat in (0, 1):
            for masked in (True, False):
                rank = np.random.default_rng([seed, repeat, masked]).integers(0, most, USERS)
                columns = {"user_id": [f"u{i // 2}" for i in range(USERS)], "target": targets, "rank": rank}
                labels = {"model": model, "split": "test", "masked": masked, "repeat": repeat}
                frames.append(pl.DataFrame(columns).with_columns(**{k: pl.lit(v) for k, v in labels.items()}))
    return pl.concat(frames)


def evaluated(run_dir: Path, frame: pl.DataFrame) -> Path:
    with Stage(run_dir, "evaluation", {}).building() as folder:
        frame.write_parquet(folder / "ranks.parquet")
        write_json(folder / "comparison.json", {"models": frame["model"].unique(maintain_order=True).to_list()})
    return run_dir


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return evaluated(tmp_path / "run", ranks_of({"sft": 20, "slit": 400}))


def test_the_figures_are_those_of_the_table(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(COMPARE, "--ranks", f"{run_dir}:slit", f"{run_dir}:sft") == 0
    out = capsys.readouterr().out
    frame = pl.read_parquet(run_dir / "evaluation" / "ranks.parquet")
    expected = {(row["seen"], row["metric"]): row for row in table.compare_pairs(frame, [("sft", "slit")], seed=0)}
    for metric, name in (("recall@10", "Recall@10"), ("ndcg@10", "NDCG@10")):
        row = expected["masked", metric]
        low, high = row["interval"]
        (line,) = (line for line in out.splitlines() if line.startswith(name))
        assert f"= {row['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}), p ≤ " in line
    assert "of this one pair; correct it (Holm) where you compare several" in out


def test_a_written_file_compares_as_the_run_does_and_is_small(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{run_dir}:sft", f"{run_dir}:slit"]
    assert exit_code(COMPARE, "--ranks", *rows, "--write", tmp_path / "logs") == 0
    of_runs = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("written")]
    files = [tmp_path / "logs" / f"{name}.ranks" for name in ("sft", "slit")]
    assert exit_code(COMPARE, "ranks", *files) == 0
    assert capsys.readouterr().out.splitlines() == of_runs
    assert all(file.stat().st_size < 8 * USERS + 1000 for file in files)
    alone = RankFile.of(
        ranks_of({"sft": 9}).with_columns(user_id=pl.Series([f"u{i % USERS}" for i in range(4 * USERS)])), "sft"
    )
    alone.save(tmp_path / "alone.ranks")
    assert (tmp_path / "alone.ranks").stat().st_size < 2 * USERS + 1000
    assert len(set(RankFile.read(str(tmp_path / "alone.ranks")).users)) == USERS
    stored = RankFile.read(str(files[1]))
    whole = table.ranks_by_repeat(pl.read_parquet(run_dir / "evaluation" / "ranks.parquet"), "slit", "test", True)
    assert np.array_equal(stored.ranks, np.minimum(whole, BEYOND))
    values = [(ranks < 10).mean(axis=0) for ranks in (stored.ranks, whole)]
    assert paired_test(*values, seed=0, users=stored.users).difference == 0


def test_what_cannot_be_compared_is_refused(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = evaluated(tmp_path / "other", ranks_of({"sft": 20}, targets=1))
    broken = tmp_path / "broken.ranks"
    broken.write_bytes(b"no safetensors")
    foreign = tmp_path / "foreign.ranks"
    save_file({"x": np.zeros(2)}, foreign, metadata={"about": json.dumps({"format": 1})})
    row = f"{run_dir}:sft"
    for flags, words in (
        ([row, f"{other}:sft"], "are of other test cases, 300 and 300"),
        ([row], "--ranks has 1 rows; give two"),
        ([row, f"{run_dir}:bert"], "has no row 'bert'; it has sft, slit"),
        ([row, str(tmp_path / "nothing.ranks")], "is no file, and not of the form RUN:MODEL"),
        ([row, f"{tmp_path}:sft"], "holds no finished 'evaluation' stage"),
        ([row, str(broken)], "cannot be read as a file of ranks"),
        ([row, str(foreign)], "cannot be read as a file of ranks"),
    ):
        assert exit_code(COMPARE, "--ranks", *flags) == 2
        said = capsys.readouterr().err
        assert_one_sentence(said)
        assert words in said


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        ({"name": "../../a"}, {}),
        ({"name": 3}, {}),
        ({"masked": "yes"}, {}),
        ({"cases": None}, {}),
        ({}, {"ranks": np.zeros(4, np.uint8)}),
        ({}, {"ranks": np.full((1, 4), np.nan)}),
        ({}, {"ranks": np.zeros((0, 4), np.uint8)}),
        ({}, {"users": np.zeros(3, np.uint32)}),
        ({}, {"users": np.zeros(4)}),
    ],
)
def test_a_file_of_ranks_that_something_else_wrote_is_refused(tmp_path: Path, about: dict, tensors: dict) -> None:
    """One whose name leads elsewhere would be written there."""
    path = tmp_path / "a.ranks"
    whole = {"format": 1, "name": "a", "masked": True, "cases": "x"}
    arrays = {"ranks": np.zeros((1, 4), np.uint8), "users": np.zeros(4, np.uint32)}
    save_file(arrays, path, metadata={"about": json.dumps(whole)})
    assert RankFile.read(str(path)).name == "a"
    save_file(arrays | tensors, path, metadata={"about": json.dumps(whole | about)})
    with pytest.raises(InputError, match="holds other things than ranks"):
        RankFile.read(str(path))


def test_a_file_of_another_format_is_refused(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.ranks"
    RankFile.read(f"{run_dir}:sft").save(path)
    content = path.read_bytes()
    changed = content.replace(json.dumps({"format": 1})[1:-1].replace('"', '\\"').encode(), b'\\"format\\": 9')
    assert changed != content
    path.write_bytes(changed)
    assert exit_code(COMPARE, "--ranks", path, path) == 2
