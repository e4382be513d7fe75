"""`sidrec.tokenizer.quantize` with quantizers that are trained: what the stage's folder holds, and what a kill leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tokenizer_stage import N_ITEMS, small_dataset, write_data_stage

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.tokenizer import quantize
from sidrec.tokenizer.autoencoders.training import CHECKPOINT, Training
from sidrec.tokenizer.report import page
from sidrec.tokenizer.semantic_ids import SemanticIds

SHORT = ["--hidden_sizes", "8", "--training_steps", "20", "--warmup_steps", "2", "--evaluate_every", "5"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_data_stage(tmp_path / "run", small_dataset())
    np.save(tmp_path / "own.npy", np.random.default_rng(0).standard_normal((N_ITEMS, 12)))
    return tmp_path / "run"


@pytest.fixture
def command(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(page, "render", lambda *_: "a page takes seconds and is tested elsewhere")

    def call(*flags: str, folder: Path = run_dir) -> None:
        file = str(run_dir.parent / "own.npy")
        quantize.main(["--run_dir", str(folder), "--sources", file, "--level_sizes", "8", "8", *SHORT, *flags])

    return call


@pytest.mark.parametrize("flags", [["--quantizer", "rqkmeans_plus"], ["--quantizer", "rqvae", "--e_dim", "4"]])
def test_the_folder_is_whole_and_holds_no_checkpoints(run_dir: Path, command: Any, flags: list[str]) -> None:
    command(*flags)
    sids = SemanticIds.load(run_dir)
    assert len(np.unique(sids.codes, axis=0)) == N_ITEMS
    folder = run_dir / "sid"
    assert not (folder / CHECKPOINT.parent).exists()
    outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
    assert outputs["training.json"]["sha256"] == sha256(folder / "training.json")
    assert len(json.loads((folder / "training.json").read_text())["rows"]) == 5
    assert sids.quantizer is not None
    vectors = np.load(run_dir.parent / "own.npy")
    rows = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_array_equal(sids.quantizer.encode(rows), sids.codes_raw)


def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(
    run_dir: Path, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = ["--quantizer", "rqvae", "--e_dim", "4", "--reset_every", "3", "--reset_to", "kmeans"]
    flags += ["--assignment", "topk", "--soft_weights", "learnt"]
    step, begun = Training._step, []

    def ctrl_c(self: Training, number: int) -> Any:
        begun.append(number)
        if number == 12 and begun.count(12) == 1:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Training, "_step", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        command(*flags)
    assert (run_dir / "sid" / CHECKPOINT).exists()
    with pytest.raises(InputError, match=r"sid was made with commitment_weight=0.25, not 0.5"):
        command(*flags, "--commitment_weight", "0.5")
    command(*flags)
    assert begun == [*range(1, 13), *range(11, 21)]
    write_data_stage(tmp_path / "other", small_dataset())
    command(*flags, folder=tmp_path / "other")
    names = sorted(path.name for path in (run_dir / "sid").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "other" / "sid").iterdir())
    for name in set(names) - {"log.txt"}:  # which tells the time
        assert sha256(run_dir / "sid" / name) == sha256(tmp_path / "other" / "sid" / name), name


def test_bad_settings_cost_no_finished_stage(run_dir: Path, command: Any) -> None:
    command("--quantizer", "rqvae", "--e_dim", "4")
    before = sha256(run_dir / "sid")
    with pytest.raises(InputError, match="--e_dim is not a setting"):
        command("--quantizer", "rqkmeans_plus", "--e_dim", "4", "--overwrite", "true")
    with pytest.raises(InputError, match="vector quantization has one level"):
        command("--quantizer", "vq", "--overwrite", "true")
    assert sha256(run_dir / "sid") == before


def test_another_file_of_codebooks_is_noticed(run_dir: Path, command: Any, tmp_path: Path) -> None:
    books = {f"codebook_{level}": np.random.default_rng(level).normal(size=(8, 12)) for level in range(2)}
    np.savez(tmp_path / "books.npz", **books)
    flags = ["--quantizer", "rqkmeans_plus", "--codebook_init", str(tmp_path / "books.npz")]
    command(*flags)
    np.savez(tmp_path / "books.npz", **{key: book + 1 for key, book in books.items()})
    with pytest.raises(InputError, match=r"made from another .*books.npz"):
        command(*flags)
