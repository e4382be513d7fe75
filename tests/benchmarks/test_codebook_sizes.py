"""The benchmark of codebook sizes, on small data: its rows are the settings that it says, their figures those of the definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.codebook_sizes import SizesConfig, main, measure, of_bits, of_sizes
from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors


def items() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(20, 8))[rng.integers(20, size=200)] + 0.4 * rng.normal(size=(200, 8))).astype(np.float32)


def config_of(**changed: Any) -> SizesConfig:
    return SizesConfig(Path("x.npy"), **{"training_steps": 4, "e_dim": 4} | changed)


def test_the_rows_of_sizes_are_fsq_and_vq_with_one_cure_after_another() -> None:
    rows: dict[str, Any] = of_sizes(config_of(sizes=[16, 256]))
    assert [sizes for _, sizes in rows.values()] == [[15], *[[16]] * 4, [240], *[[256]] * 4]
    cures = [(kind.codebook_update, kind.reset_every > 0, kind.rotation_trick) for kind, _ in list(rows.values())[1:5]]
    assert cures == [("gradient", False, False), ("ema", False, False), ("ema", True, False), ("ema", True, True)]
    assert {kind.codebook_init for kind, _ in list(rows.values())[1:5]} == {"random"}


def test_flat_and_residual_rows_have_equal_bits() -> None:
    rows: dict[str, Any] = of_bits(config_of(bits=[9, 14], depths=[1, 2, 3]))
    assert {name: (sizes, kind.shared_codebook) for name, (kind, sizes) in rows.items()} == {
        "9 bits: 1 x 512": ([512], False),
        "9 bits: 3 x 8": ([8] * 3, False),
        "9 bits: 3 x 8, shared": ([8] * 3, True),
        "14 bits: 1 x 16,384": ([16384], False),
        "14 bits: 2 x 128": ([128] * 2, False),
        "14 bits: 2 x 128, shared": ([128] * 2, True),
        "512 codes": ([512], False),
        "512 codes, shared by 2": ([512] * 2, True),
        "512 codes, shared by 3": ([512] * 3, True),
    }
    for name, (_, sizes) in rows.items():
        if "bits" in name:
            assert np.prod(sizes) == 2 ** int(name.split()[0])


def test_the_figures_are_those_of_the_definitions() -> None:
    unit = items() / np.linalg.norm(items(), axis=1, keepdims=True)
    vectors = ItemVectors([items()], [1.0])
    kind, sizes = of_bits(config_of(bits=[6], depths=[2]))["6 bits: 2 x 8"]
    row = measure(kind, vectors, sizes, seed=0)
    quantizer = kind.fit(vectors, sizes, 0)
    codes = quantizer.encode(vectors)
    _, counts = np.unique(codes, axis=0, return_counts=True)
    assert row["entropy"] == pytest.approx(-(counts / 200 * np.log2(counts / 200)).sum(), rel=1e-6)
    assert row["usage"] == [len(np.unique(level)) / 8 for level in codes.T]
    assert row["error"] == pytest.approx(((unit - quantizer.reconstruct(codes)) ** 2).sum(1).mean(), rel=1e-4)
    assert row["bits"] == 6


def test_the_table_leaves_out_what_cannot_be_and_goes_on_where_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", items())
    flags = ["--embeddings", tmp_path / "a.npy", "--out", tmp_path / "out.json", "--sizes", 16, "--bits", 6, 14]
    flags += ["--depths", 1, 2, "--shared_size", 16, "--e_dim", 4, "--training_steps", 3]
    main([str(flag) for flag in flags])
    printed = capfd.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    assert set(figures["sizes"]) == {
        "FSQ, 16",
        "VQ, 16",
        "VQ, EMA, 16",
        "VQ, EMA, reset, 16",
        "VQ, EMA, reset, rotation, 16",
    }
    assert "14 bits: 1 x 16,384 is left out: 16,384 codes, but 200 items" in printed
    assert set(figures["equal bits"]) == {
        "6 bits: 1 x 64",
        "6 bits: 2 x 8",
        "6 bits: 2 x 8, shared",
        "14 bits: 2 x 128",
        "14 bits: 2 x 128, shared",
        "16 codes",
        "16 codes, shared by 2",
    }
    main([str(flag) for flag in flags])
    again = capfd.readouterr().out
    assert "16: error" in printed
    assert "16: error" not in again
    assert json.loads(again.splitlines()[-1]) == figures


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": [100]}, r"--sizes has \[100\]"),
        ({"bits": [17]}, "--bits must lie between 1 and 16"),
        ({"depths": [0]}, "--depths must be at least 1"),
        ({"shared_size": 1}, "--shared_size is 1; it must be at least 2"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(**changed)
