"""`sidrec update`: the new model beside the old one, which stays as it is, and takes its place only where it is not worse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from run_dirs import (
    N_ITEMS,
    assert_one_sentence,
    exit_code,
    finished_rq_run,
    finished_sft_run,
    run_stage,
    start,
    weights,
)
from safetensors.torch import load_file, save_file

from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import ndcg_at, ranks_in_lists, recall_at
from sidrec.data.new_events import UNTRAINED
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.statistics import paired_test
from sidrec.pipeline.files import read_json, sha256
from sidrec.pipeline.stage import Stage
from sidrec.rl import grpo
from sidrec.serving import update
from sidrec.serving.model_comparison import compared, lines
from sidrec.sft import fine_tuning
from sidrec.tokenizer.embeddings.encoders import ENCODER_FILES

UPDATE, RECOMMEND, BUNDLE = "serving/update.py", "serving/recommend.py", "serving/make_bundle.py"
COMPARE = "serving/compare_models.py"


def write_events(file: Path, first_time: int = 20, seed: int = 0, users: int = 200) -> Path:
    """New steps of users along their rings, some of items that nobody knows."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        ring, place = rng.integers(6), rng.integers(10)
        for step in range(4):
            time_of_step = first_time + 5 * step + int(rng.integers(5))
            rows.append((f"u{user}", f"i{10 * ring + (place + step) % 10}", time_of_step))
    rows += [("u3", f"i{N_ITEMS + 5}", first_time), ("u4", f"i{N_ITEMS + 9}", first_time)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(file)
    return file


def files_of(run_dir: Path) -> dict[str, str]:
    """The sha256 of every file of a run but for its updates, hidden ones left out."""
    paths = (path for path in run_dir.rglob("*") if path.is_file() and "updates" not in path.parts)
    return {str(path): sha256(path) for path in paths if not any(part.startswith(".") for part in path.parts)}


def updated(run_dir: Path, events: Path, *flags: str) -> int:
    return exit_code(UPDATE, "--run_dir", run_dir, "--interactions", events, *flags)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one accepted update."""
    run = tmp_path_factory.mktemp("updated") / "run"
    shutil.copytree(finished_sft_run(tmp_path_factory), run)
    with Stage(run, "embeddings", {}, (run / "data" / "interactions.parquet",)).building() as folder:
        for name in ENCODER_FILES:
            (folder / name).write_text("as they were fitted", encoding="utf-8")
    before = files_of(run)
    assert updated(run, write_events(run.parent / "new.csv")) == 0
    assert files_of(run) == before
    return run


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """Of the run as it was before its update, beside the same events."""
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True, ignore=shutil.ignore_patterns("updates"))
    shutil.copyfile(run_dir.parent / "new.csv", tmp_path / "new.csv")
    return tmp_path / "run"


def test_an_update_is_a_run_with_the_same_semantic_ids(run_dir: Path, tmp_path: Path) -> None:
    latest = run_dir / "updates" / "latest"
    assert latest.resolve() == (run_dir / "updates" / "0001").resolve()
    for name in ("codes_all.npy", "codebooks.npz", "sid.json"):
        assert (latest / "sid" / name).read_bytes() == (run_dir / "sid" / name).read_bytes()
    items = "data/items.parquet"
    assert (latest / items).read_bytes() == (run_dir / items).read_bytes()
    assert weights(latest / "sft") != weights(run_dir / "sft")
    assert exit_code(RECOMMEND, "--run_dir", latest, "--user", "u170") == 0  # who is new
    assert exit_code(BUNDLE, "--run_dir", latest) == 0
    assert (latest / "bundle" / ENCODER_FILES[0]).read_text(encoding="utf-8") == "as they were fitted"
    shutil.rmtree(latest / "bundle")


def test_the_verdict_is_a_paired_test_on_the_newest_events(run_dir: Path) -> None:
    latest = run_dir / "updates" / "latest"
    verdict = read_json(latest / "update" / "update.json")
    cases = Dataset.load(latest).cases("test")
    ranks = [
        ranks_in_lists(Recommender.load(run, "sft").recommend(cases.histories, 50, True).items, cases.targets)
        for run in (latest, run_dir)
    ]
    for name, metric in (("recall@10", recall_at), ("ndcg@10", ndcg_at)):
        new, old = (metric(rank, 10) for rank in ranks)
        test = paired_test(new, old, 0, users=np.array(cases.user_ids))
        assert verdict[name] == {"first": old.mean(), "second": new.mean(), **vars(test)}
    assert verdict["accepted"] == (verdict["ndcg@10"]["high"] >= 0)
    assert verdict["cases"] == len(cases)


def test_the_same_again_has_nothing_to_do_and_the_next_goes_on(
    run_dir: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir / "updates", copy / "updates", symlinks=True)
    assert updated(copy, copy.parent / "new.csv") == 0
    assert "nothing is new to" in capsys.readouterr().out
    newer = write_events(copy.parent / "newer.csv", first_time=60, seed=1)
    assert updated(copy, newer) in (0, 3)
    second, first = copy / "updates" / "0002", copy / "updates" / "0001"
    log = Dataset.load(second).interactions
    assert log.filter(pl.col(UNTRAINED) & (pl.col("timestamp") < 60)).height == sum(
        len(Dataset.load(first).interactions.filter(split=name)) for name in ("valid", "test")
    )
    manifests = [read_json(run / "sft" / "manifest.json")["fingerprint"] for run in (copy, first, second)]
    assert [each["learning_rate"] / manifests[0]["learning_rate"] for each in manifests[1:]] == [0.5, 0.5]
    assert manifests[2]["model_name_or_path"] == str(first / "sft")


def test_a_worse_model_is_refused_and_the_old_one_stays(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, finish = files_of(copy), fine_tuning.finish

    def damage(folder: Path, *rest: object, **named: object) -> None:
        finish(folder, *rest, **named)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        torch.manual_seed(0)
        save_file({name: torch.randn_like(value) for name, value in tensors.items()}, file, {"format": "pt"})

    monkeypatch.setattr(fine_tuning, "finish", damage)
    for _ in range(2):  # the second time it is only said again
        assert updated(copy, copy.parent / "new.csv") == 3
        said = capsys.readouterr().out
        assert "the new model is worse, so the old one stays" in said
        assert (copy / "updates" / "latest").resolve() == copy.resolve()
    assert sorted(path.name for path in (copy / "updates").iterdir()) == ["0001", "latest"]
    assert not read_json(copy / "updates" / "0001" / "update" / "update.json")["accepted"]
    assert files_of(copy) == before
    monkeypatch.undo()
    assert updated(copy, copy.parent / "new.csv", "--passes", "1") in (0, 3)  # another training is another update
    assert (copy / "updates" / "0002" / "update" / "update.json").is_file()


def test_the_semantic_ids_of_the_run_cannot_be_overwritten_through_an_update(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latest, before = run_dir / "updates" / "latest", files_of(run_dir)
    vectors = ["--sources", "text", "--weights", "1.0", "--overwrite", "true"]
    assert exit_code("tokenizer/embed.py", "--run_dir", latest, *vectors) == 2
    assert "is a link to the folder of another run" in capsys.readouterr().err
    assert files_of(run_dir) == before


def test_few_cases_are_told() -> None:
    """By the number of test events, whatever came of them."""
    rng = np.random.default_rng(0)
    for n, is_told in ((1, True), (199, True), (200, False)):
        cases = EvalCases([f"u{row}" for row in range(n)], [np.array([0])] * n, np.zeros(n, dtype=np.int64))
        told = lines(compared(*rng.integers(0, 20, (2, n)), cases, seed=0), "old", "new")
        assert told[0].startswith(f"new − old, {n} cases of {n} users")
        assert len(told) == 3 + is_told
        assert not is_told or told[3].startswith(f"{n} case{'' if n == 1 else 's'}, fewer than 200, say little")


def test_it_goes_on_from_rl_where_that_is_the_last(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_rq_run(tmp_path_factory), run)
    run_stage(grpo, run)
    assert updated(run, write_events(tmp_path / "new.csv")) in (0, 3)
    made = run / "updates" / "0001"
    assert read_json(made / "update" / "update.json")["stage"] == "rl"
    assert read_json(made / "sft" / "manifest.json")["fingerprint"]["model_name_or_path"] == str(run / "rl")
    assert not (made / "sft" / "english.json").exists()


@pytest.mark.slow
def test_a_killed_update_goes_on_to_the_same_bytes(run_dir: Path, copy: Path) -> None:
    command = (sys.executable, UPDATE, "--run_dir", copy, "--interactions", copy.parent / "new.csv")
    before, process = files_of(copy), start(*command)
    checkpoints = copy / "updates" / "0001" / "sft" / "checkpoints"
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end and not list(checkpoints.glob("checkpoint-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert not (copy / "updates" / "0001" / "update").exists()
    assert files_of(copy) == before
    Recommender.load(copy, "sft")
    assert updated(copy, copy.parent / "new.csv") == 0
    assert weights(copy / "updates" / "latest" / "sft") == weights(run_dir / "updates" / "latest" / "sft")


def test_a_half_done_update_of_other_events_is_begun_anew(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sidrec.sft.fine_tuning.fine_tune", stopped)
        assert updated(copy, copy.parent / "new.csv") == 130
    assert (copy / "updates" / "0001" / "data").is_dir()
    newer = write_events(copy.parent / "newer.csv", seed=2)
    assert updated(copy, newer) in (0, 3)
    assert sorted(path.name for path in (copy / "updates").iterdir()) == ["0001", "latest"]
    assert len(read_json(copy / "updates" / "0001" / "data" / "manifest.json")["outside_inputs"]) == 2


def test_a_folder_of_ones_own_and_what_is_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, events = tmp_path / "out", copy.parent / "new.csv"
    assert updated(copy, events, "--out", str(out), "--replay", "0", "--passes", "1") in (0, 3)
    assert not (copy / "updates").exists()
    assert os.path.realpath(out / "sid") == os.path.realpath(copy / "sid")
    assert "2 events are left out, since the catalogue lacks their 2 items (i65, i69)" in capsys.readouterr().out
    for flags, sentence in (
        (["--out", str(copy)], "is the run directory itself"),
        (["--rate", "0"], "--rate is 0; it must be above 0 and finite"),
        (["--overwrite", "true"], "--overwrite is of --out"),
    ):
        assert updated(copy, events, *flags) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert_one_sentence(error)
    unknown = tmp_path / "unknown.csv"
    unknown.write_text(f"user_id,item_id,timestamp\nu3,i{N_ITEMS + 5},20\n")
    assert updated(copy, unknown) == 2
    error = capsys.readouterr().err
    assert "1 events are left out, since the catalogue lacks their 1 items" in error
    assert_one_sentence(error)


def test_what_stands_in_the_place_of_the_newest_update_is_named(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy that follows links has a folder there, and a copy of a part of the updates a link that leads nowhere."""
    latest = copy / "updates" / "latest"
    latest.parent.mkdir()
    latest.symlink_to("0007", target_is_directory=True)
    assert updated(copy, copy.parent / "new.csv") == 2
    error = capsys.readouterr().err
    assert_one_sentence(error)
    assert f"{latest} leads to {latest.parent / '0007'}, which is not there" in error
    latest.unlink()
    latest.mkdir()
    assert updated(copy, copy.parent / "new.csv") == 2
    error = capsys.readouterr().err
    assert_one_sentence(error)
    assert f"{latest} is no link any more" in error
    assert [path.name for path in latest.parent.iterdir()] == ["latest"]


def test_compare_gives_the_verdict_again_and_takes_a_log(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latest, file = run_dir / "updates" / "latest", tmp_path / "compared.json"
    assert exit_code(COMPARE, run_dir, latest, "--output", file) == 0
    verdict, compared = read_json(latest / "update" / "update.json"), read_json(file)
    for metric in ("recall@10", "ndcg@10"):
        assert compared[metric]["difference"] == verdict[metric]["difference"]
        assert compared[metric]["first"] == verdict[metric]["first"]
        assert compared[metric]["p"] == verdict[metric]["p"]
    later = write_events(tmp_path / "later.csv", first_time=90, seed=5)
    assert exit_code(COMPARE, f"{run_dir}:sft", latest, "--log", later, "--newest", "0.5", "--output", file) == 0
    events = pl.read_csv(later, glob=False).sort("timestamp", maintain_order=True)
    newest = set(range(len(events) - -(-len(events) // 2), len(events)))
    cases, histories = [], {}
    for row, (user, item, _) in enumerate(events.rows()):
        if int(item[1:]) >= N_ITEMS:
            continue
        history = histories.setdefault(user, [])
        if row in newest and history:
            cases.append((user, [int(name[1:]) for name in history], int(item[1:])))
        history.append(item)
    cases.sort(key=lambda case: list(histories).index(case[0]))
    lists = Recommender.load(run_dir, "sft").recommend([np.array(history) for _, history, _ in cases], 50, True)
    recall = recall_at(ranks_in_lists(lists.items, np.array([target for *_, target in cases])), 10)
    assert json.loads(file.read_text())["cases"] == len(cases)
    assert json.loads(file.read_text())["recall@10"]["first"] == recall.mean()
    capsys.readouterr()
    assert exit_code(COMPARE, run_dir, tmp_path / "nothing") == 2
    assert_one_sentence(capsys.readouterr().err)


def test_what_was_trained_on_is_not_asked(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        exit_code(
            COMPARE, run_dir, run_dir / "updates" / "latest", "--log", run_dir.parent / "new.csv", "--newest", "1"
        )
        == 0
    )
    log = Dataset.load(run_dir / "updates" / "latest").interactions.filter(pl.col("timestamp") >= 20)
    trained = log.filter(split="train").height
    assert f"{trained:,} of them were trained on" in capsys.readouterr().out
    assert update.latest_run(run_dir).resolve() == (run_dir / "updates" / "0001").resolve()
