"""benchmarks/row_starts.py on a small run directory, and its figures against their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_dirs import make_run_dir

from benchmarks import row_starts
from benchmarks.row_starts import ROW_STARTS, RowStartsConfig, effective_rank, in_words, spread, text_model, with_shares
from sidrec.pipeline.errors import InputError
from sidrec.sft.backbone import load_backbone
from sidrec.sft.settings import BackboneConfig

SMALL = ["--steps", "20", "--text_steps", "30", "--measure_every", "10", "--cases", "20", "--batch_size", "8"]
SMALL += ["--max_items", "8", "--hidden_size", "16", "--layers", "1", "--words", "300"]


def run(*flags: object) -> None:
    row_starts.main([str(flag) for flag in flags])


def test_every_method_is_trained_alike_on_both_models(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run_dir(tmp_path / "rings")
    flags = ["--run_dirs", run_dir, "--work_dir", tmp_path / "work", *SMALL]
    run(*flags)
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    rows = result["tables"]["rings"]
    assert [(row["kind"], row["row_start"]) for row in rows] == [
        (kind, name) for kind in ("scratch", "pretrained") for name in ROW_STARTS
    ]
    for row in rows:
        losses = row["losses"]
        assert list(losses) == ["0", "10", "20"]
        assert losses["20"] < losses["0"] - 0.02, "nothing was learnt"
        assert 1 <= row["effective_rank"] <= 13
        mean = row["row_start"] == "mean"
        assert (row["spread"] < 1e-3) == mean
        assert row["share"] in ((0.5, 1) if mean else (0, 0.5, 1, None))
    # where all rows are alike, a history says nothing yet: every code that may come is equally likely
    means = [row["losses"]["0"] for row in rows if row["row_start"] == "mean"]
    assert means[0] == pytest.approx(means[1], abs=1e-3)

    rows_before = (tmp_path / "work" / "rows.json").read_text()
    run(*flags, "--row_starts", "mean", "text")
    printed = capfd.readouterr().out
    assert "at the start" not in printed, "finished rows are run again"
    assert "| pretrained | text |" in printed
    run(*flags, "--row_starts", "codebook", "--overwrite", "true")
    assert (tmp_path / "work" / "rows.json").read_text() == rows_before, "two runs differ"


def test_the_text_model_has_learnt_the_texts(tmp_path: Path) -> None:
    config = RowStartsConfig([make_run_dir(tmp_path / "rings")], tmp_path / "work", hidden_size=32, layers=1, words=300)
    config.text_steps = 150
    small_run = row_starts.read_run(config.run_dirs[0], config)
    folder = text_model(small_run, config)
    model, tokenizer = load_backbone(BackboneConfig(model_name_or_path=str(folder)), seed=0)
    assert tokenizer.decode(tokenizer(small_run.texts[3])["input_ids"]) == small_run.texts[3]
    ids = torch.tensor([tokenizer("<eos>The blue lamp")["input_ids"]])
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    assert loss < 0.6 * np.log(len(tokenizer))
    assert text_model(small_run, config) == folder
    config.text_steps = 1
    assert text_model(small_run, config) != folder


def test_spread_and_effective_rank() -> None:
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    cosines = [
        float(torch.nn.functional.cosine_similarity(rows[i], rows[j], dim=0))
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    assert spread(rows) == pytest.approx(1 - np.mean(cosines), abs=1e-6)
    shares = np.linalg.svd(rows.numpy(), compute_uv=False)
    shares = shares / shares.sum()
    assert effective_rank(rows) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(6, 3)) == pytest.approx(1)
    assert spread(torch.ones(6, 3)) == pytest.approx(0, abs=1e-12)


def test_the_share_is_that_of_the_first_step_where_mean_ends() -> None:
    losses = {"mean": [3.0, 2.0, 1.0, 1.5], "text": [3.0, 1.5, 1.6, 1.4], "codebook": [4.0, 3.0, 2.0, 1.6]}
    rows = [
        {"row_start": name, "losses": dict(zip(("0", "10", "20", "40"), values, strict=True))}
        for name, values in losses.items()
    ]
    assert [row["share"] for row in with_shares(rows, 40)] == [0.5, 0.25, None]
    assert [row["share"] for row in with_shares(rows[1:], 40)] == [None, None]
    words = in_words(with_shares(rows, 40)[1] | {"kind": "scratch", "spread": 1.0, "effective_rank": 3.0})
    assert words == ["scratch", "text", "1.000", "3.0", "3.0000", "", "1.4000", "0.25"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="words"):
        RowStartsConfig([tmp_path], row_starts=["words"])
    with pytest.raises(InputError, match="--steps is 0"):
        RowStartsConfig([tmp_path], steps=0)
    one, two = make_run_dir(tmp_path / "a" / "x"), make_run_dir(tmp_path / "b" / "x")
    with pytest.raises(InputError, match="two folders of one name"):
        run("--run_dirs", one, two, "--work_dir", tmp_path / "work")
    with pytest.raises(InputError, match="no finished 'data' stage"):
        run("--run_dirs", tmp_path, "--work_dir", tmp_path / "work")
