"""The speed benchmark at a small size, and its own figures against direct computations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tokenizer_speed
from benchmarks.tokenizer_speed import SpeedConfig, distortion, in_turns, means, peak_gib, write_rows
from sidrec.pipeline.errors import InputError

SMALL = {"rows": 3000, "balanced_rows": 512, "dim": 16, "codes": 16}


def test_rows_are_unit_rows_in_groups_and_the_same_for_a_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_rows(tmp_path / f"{name}.npy", SpeedConfig(**SMALL, seed=seed))
    first, same, other = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert (first.shape, first.dtype) == ((3000, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    similar = first[:500] @ first[:500].T
    assert np.quantile(similar, 0.999) > 0.9 > 0.2 > abs(np.median(similar))


def test_distortion_and_means_are_those_of_the_clusters() -> None:
    rng = np.random.default_rng(0)
    vectors, codes = rng.standard_normal((200, 4)).astype(np.float32), rng.integers(0, 5, 200)
    centroids = means(vectors, codes, 5)
    np.testing.assert_allclose(
        centroids, [vectors[codes == code].mean(axis=0) for code in range(5)], rtol=1e-4, atol=1e-6
    )
    expected = np.mean([((vectors[i] - centroids[codes[i]]) ** 2).sum() for i in range(200)])
    assert distortion(vectors, centroids, codes) == pytest.approx(expected, rel=1e-5)


def test_turns_are_taken_and_the_least_time_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 5, 10, 11, 20, 22, 30, 33, 40, 44, 50, 52])  # first: 5, 2, 4; second: 1, 3, 2
    monkeypatch.setattr(tokenizer_speed.time, "process_time", lambda: next(ticks))
    order: list[str] = []
    turns = in_turns(lambda: order.append("first"), lambda: order.append("second"))
    assert order == ["first", "second"] * 3
    assert [seconds for _, seconds in turns] == [2, 1]


def test_the_peak_of_memory_does_not_fall() -> None:
    before = peak_gib()
    assert np.ones(2**23).sum() == 2**23  # 64 MiB
    assert peak_gib() >= before > 0.05


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"codes": 600}, {"balanced_rows": 4000}, {"rows": 5000}])
def test_sizes_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        SpeedConfig(**(SMALL | wrong))


def test_missing_rivals_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_speed, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"faiss-cpu and k-means-constrained are not installed; run `pip install -e "):
        tokenizer_speed.require_rivals()


def test_the_last_line_is_one_json_object(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: nothing to compare with")
    pytest.importorskip("k_means_constrained", reason="k-means-constrained is not installed: nothing to compare with")
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    tokenizer_speed.main(flags)
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    keys = {
        "faiss_ratio",
        "distortion_delta",
        "balanced_ratio",
        "million_seconds",
        "million_peak_gib",
        "million_unique",
    }
    assert keys <= set(figures)
    assert figures["million_unique"] == SMALL["rows"]
    assert abs(figures["distortion_delta"]) < 0.1
    assert abs(figures["balanced_distortion_delta"]) < 0.1
    assert 0 < figures["million_peak_gib"] < 6
