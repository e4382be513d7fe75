"""`sidrec bundle`: one folder that recommends as the run does, wherever it is copied to, and says when it is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_dirs import N_ITEMS, assert_one_sentence, exit_code, finished_sft_run

from sidrec.baselines.blend import load_blend
from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.files import sha256
from sidrec.pipeline.hashes import FileHashes
from sidrec.pipeline.stage import write_manifest
from sidrec.serving.bundle import MEMORY, Bundle
from sidrec.tokenizer.semantic_ids import SemanticIds

BUNDLE, RECOMMEND, EVALUATE = "serving/make_bundle.py", "serving/recommend.py", "evaluation/evaluate.py"


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What the last command said to a mistake."""
    said = capsys.readouterr().err
    assert_one_sentence(said)
    return said


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an evaluation of a blend."""
    run = tmp_path_factory.mktemp("bundled") / "run"
    shutil.copytree(finished_sft_run(tmp_path_factory), run)
    models = ["--models", "sft_blend", "popularity", "--blend_with", "item_knn"]
    assert exit_code(EVALUATE, "--run_dir", run, *models, "--overwrite", "true") == 0
    return run


@pytest.fixture(scope="module", params=["sft", "sft_blend"])
def bundle(run_dir: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model's name and a copy of its bundle, far from the run."""
    assert exit_code(BUNDLE, "--run_dir", run_dir, "--model", request.param, "--overwrite", "true") == 0
    copied = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(run_dir / "bundle", copied)
    return request.param, copied


def test_a_copied_bundle_gives_the_runs_lists(run_dir: Path, bundle: tuple[str, Path]) -> None:
    name, folder = bundle
    loaded, dataset = Bundle.load(folder), Dataset.load(run_dir)
    in_run = load_blend(run_dir, name) if name == "sft_blend" else Recommender.load(run_dir, name)
    histories = dataset.cases("test").histories
    ours, theirs = (model.recommend(histories, 10, exclude_seen=True) for model in (loaded.recommender, in_run))
    assert np.array_equal(ours.items, theirs.items)
    assert np.array_equal(ours.log_probs, theirs.log_probs)
    assert (folder / MEMORY).exists() == (name == "sft_blend")
    assert loaded.name == name
    assert loaded.items.equals(dataset.items)
    assert np.array_equal(loaded.sids.codes, SemanticIds.load(run_dir).codes)
    assert (
        loaded.training_counts.tolist()
        == np.bincount(np.concatenate(dataset.train_sequences), minlength=N_ITEMS).tolist()
    )


def test_the_manifest_names_every_file_with_its_sha256(bundle: tuple[str, Path]) -> None:
    folder = bundle[1]
    listed = json.loads((folder / "manifest.json").read_text())["outputs"]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "README.md" in names
    assert listed.keys() == names - {"manifest.json"}
    assert all(sha256(folder / name) == described["sha256"] for name, described in listed.items())


def test_the_memory_is_at_most_a_kilobyte_an_item(bundle: tuple[str, Path]) -> None:
    name, folder = bundle
    if name == "sft_blend":
        assert (folder / MEMORY).stat().st_size <= 1024 * N_ITEMS


def test_the_catalogue_of_a_bundle_may_change(run_dir: Path, bundle: tuple[str, Path]) -> None:
    recommender, histories = Bundle.load(bundle[1]).recommender, Dataset.load(run_dir).cases("test").histories[:4]
    first = recommender.recommend(histories, 1, exclude_seen=True).items[:, 0]
    recommender.catalogue.remove(np.unique(first))
    assert not np.isin(recommender.recommend(histories, 10, exclude_seen=True).items, first).any()


def test_the_command_shows_what_the_run_shows(
    run_dir: Path, bundle: tuple[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    name, folder = bundle
    capsys.readouterr()
    assert exit_code(RECOMMEND, "--bundle", folder, "--history", "red lamp", "red boot") == 0
    shown = capsys.readouterr().out
    assert exit_code(RECOMMEND, "--run_dir", run_dir, "--history", "red lamp", "red boot", "--model", name) == 0
    assert shown == capsys.readouterr().out
    assert f"{name} model" in shown


def test_a_finished_bundle_is_not_made_again_and_another_model_not_taken_for_it(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(BUNDLE, "--run_dir", run_dir, "--model", "sft", "--overwrite", "true") == 0
    before = (run_dir / "bundle" / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    assert exit_code(BUNDLE, "--run_dir", run_dir) == 0
    assert "finished already" in capsys.readouterr().out
    assert (run_dir / "bundle" / "manifest.json").stat().st_mtime_ns == before
    assert exit_code(BUNDLE, "--run_dir", run_dir, "--model", "sft_blend") == 2
    assert "was made with model='sft', not 'sft_blend'" in sentence(capsys)


def test_what_is_damaged_or_missing_is_named(
    run_dir: Path, bundle: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ["--history", "red lamp"]
    for file in ("items.parquet", "model.safetensors", "semantic_ids/codes_all.npy", "bundle.json", "README.md"):
        damaged = tmp_path / file.replace("/", "-")
        shutil.copytree(bundle[1], damaged)
        content = bytearray((damaged / file).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / file).write_bytes(content)
        assert exit_code(RECOMMEND, "--bundle", damaged, *question) == 2
        assert f"{damaged / file} is not the file" in sentence(capsys)
    for folder in (run_dir / "sft", tmp_path / "nowhere"):
        assert exit_code(RECOMMEND, "--bundle", folder, *question) == 2
        assert f"{folder} holds no finished 'bundle' stage" in sentence(capsys)
    assert exit_code("serving/serve.py", run_dir, "--store", tmp_path / "store.db") == 2
    assert f"{run_dir} is a run directory, and no bundle; name its bundle, {run_dir / 'bundle'}." in sentence(capsys)
    (tmp_path / "run" / "data").mkdir(parents=True)
    assert exit_code(RECOMMEND, "--bundle", tmp_path / "run", *question) == 2
    assert f"run `sidrec bundle --run_dir {tmp_path / 'run'}`" in sentence(capsys)
    assert exit_code(RECOMMEND, "--bundle", bundle[1], "--user", "u1") == 2
    assert "a bundle holds no log: --user needs --log FILE" in sentence(capsys)
    assert exit_code(BUNDLE, "--run_dir", run_dir, "--model", "rl_blend", "--overwrite", "true") == 2
    assert "has no rl_blend" in sentence(capsys)
    manifest = json.loads((run_dir / "bundle" / "manifest.json").read_text())
    assert manifest["finished"], "the bundle that was there is still whole"


def test_a_bundle_of_an_earlier_format_is_refused(
    bundle: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = shutil.copytree(bundle[1], tmp_path / "older")
    about = json.loads((older / "bundle.json").read_text())
    (older / "bundle.json").write_text(json.dumps({"model": about["model"], "weight": about["weight"]}))
    (older / "training_counts.npy").unlink()
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["outputs"]["training_counts.npy"]
    manifest["outputs"]["bundle.json"] = FileHashes(older).described(older / "bundle.json")
    write_manifest(older / "manifest.json", manifest)
    assert exit_code(RECOMMEND, "--bundle", older, "--history", "red lamp") == 2
    assert "bundle.json has format 1, this version reads 2; run `sidrec bundle" in sentence(capsys)
