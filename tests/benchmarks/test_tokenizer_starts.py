"""The benchmark of RQ-Kmeans+'s starts, on small data: its rows against what the settings mean, its picture, its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.tokenizer_starts import ENCODERS, STARTS, StartsConfig, first_below, main, settings_of
from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.kmeans import residual_kmeans
from sidrec.tokenizer.quantizer import Quantizer


def items() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(20, 8))[rng.integers(20, size=200)] + 0.4 * rng.normal(size=(200, 8))).astype(np.float32)


def test_the_rows_are_the_nine_settings_and_begin_where_their_starts_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", items())
    flags = ["--embeddings", tmp_path / "a.npy", "--level_sizes", 16, 16, "--epochs", 6, "--measurements", 3]
    main([str(flag) for flag in [*flags, "--batch_size", 50, "--picture", tmp_path / "curves.svg"]])
    printed = capfd.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    unit = items() / np.linalg.norm(items(), axis=1, keepdims=True)
    books = residual_kmeans.fit(unit, [16, 16], 0)
    of_kmeans = Quantizer(books).mean_squared_errors(unit, books.encode(unit))[-1]
    assert figures["distortion_of_kmeans"] == pytest.approx(of_kmeans, rel=1e-5)
    rows: dict[tuple[str, str], Any] = {(row["encoder"], row["start"]): row for row in figures["rows"]}
    assert set(rows) == {(encoder, start) for encoder in ENCODERS for start in STARTS}
    assert all(row["epochs"] == [0, 2, 4, 6] for row in rows.values())
    for start in ("warm", "kmeans"):
        assert rows["skip, zero", start]["distortion"][0] == pytest.approx(of_kmeans, rel=1e-4)
    for encoder in ("skip", "no skip"):
        warm, by_kmeans = (rows[encoder, start] for start in ("warm", "kmeans"))
        assert warm["distortion"][0] > 1.02 * of_kmeans
        assert warm["loss"] != by_kmeans["loss"]
    best = rows["skip, zero", "warm"]
    assert best["epochs_to_kmeans"] == first_below(best["epochs"], best["distortion"], of_kmeans) is not None
    assert printed.count("| skip, zero; warm |") == 2
    drawing = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert drawing.count("<svg") == 1


def test_the_settings_of_a_row() -> None:
    config = StartsConfig(Path("x.npy"), epochs=10, measurements=4, batch_size=30)
    kinds = {encoder: settings_of(config, 100, encoder, "random") for encoder in ENCODERS}
    assert [(kind.encoder, kind.zero_start) for kind in kinds.values()] == [
        ("residual", True),
        ("residual", False),
        ("mlp", True),
    ]
    assert {(kind.training_steps, kind.evaluate_every, kind.codebook_init) for kind in kinds.values()} == {
        (34, 9, "random")
    }
    assert first_below([0.0, 1.0, 2.0], [3.0, 2.0, 1.0], 2.5) == 1.0
    assert first_below([0.0, 1.0], [3.0, 3.0], 3.0) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"picture": Path("a.txt")}, "must end in .svg or .png"), ({"epochs": 0}, "--epochs is 0")],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StartsConfig(Path("x.npy"), **changed)
