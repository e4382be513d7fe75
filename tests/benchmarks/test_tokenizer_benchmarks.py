"""The benchmarks of the tokenizer, on small data; what they measure with is tested where it lives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_dirs import finished_sft_run

from benchmarks import harness, tokenizer_downstream, tokenizer_quality
from benchmarks.case_ranks import mean_gains, save_ranks
from benchmarks.finished_rows import FinishedRows, markdown
from benchmarks.harness import name_of
from benchmarks.item_texts import ItemTextsConfig, read_texts
from benchmarks.item_texts import main as make_item_texts
from benchmarks.quantizers import (
    QUANTIZERS,
    RESIDUAL_FSQ_LEVELS,
    check_names,
    flags_of,
    read_items,
    read_settings,
)
from benchmarks.tokenizer_downstream import DownstreamConfig, in_words, summarise, to_repeat
from benchmarks.tokenizer_quality import QualityConfig, figures_of_bars, measure, verdicts
from sidrec.data.metrics import recall_at
from sidrec.pipeline.errors import InputError
from sidrec.tokenizer import quantizers


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_of_the_tables_can_be_asked_for(name: str) -> None:
    kind, sizes = read_settings(name, [256, 256, 256])
    assert type(kind) in quantizers.QUANTIZERS.values()
    assert len(sizes) == 3
    assert all(size in (256, 243, 240) for size in sizes)
    assert "--level_sizes" in flags_of(name, [256, 256, 256])


def test_changes_win_over_the_file() -> None:
    plus: Any = read_settings("rqkmeans_plus_published", [256, 256])[0]
    assert (plus.decoder, plus.commitment_levels, plus.learning_rate) == ("mlp", "first", 1e-4)
    assert plus.commitment_weight == 0.25
    ema, rqvae = (vars(read_settings(name, [256, 256])[0]) for name in ("ema_reset", "rqvae"))
    assert (ema["codebook_init"], ema["codebook_update"], ema["reset_every"] > 0) == ("random", "ema", True)
    assert (rqvae["codebook_init"], rqvae["codebook_update"]) == ("random", "gradient")


def test_the_tables_hold_every_quantizer_but_vq_and_given() -> None:
    """VQ has one level, so that it cannot tell the items of a catalogue apart; given codes are the user's own."""
    of_tables = {type(read_settings(name, [256] * 3)[0]) for name in QUANTIZERS}
    assert of_tables == {kind for name, kind in quantizers.QUANTIZERS.items() if name not in ("vq", "given")}


def test_fsq_takes_its_own_nearest_sizes() -> None:
    assert all(0.9 * size < np.prod(fsq_levels) <= size for size, fsq_levels in RESIDUAL_FSQ_LEVELS.items())
    kind: Any
    kind, sizes = read_settings("fsq", [256, 256])
    assert (kind.fsq_levels, kind.fsq_tokens, sizes) == ([8, 6, 5], 2, [240, 240])
    kind, sizes = read_settings("rqkmeans_fsq", [64, 64, 64])
    assert (kind.fsq_levels, sizes) == ([8, 8], [64, 64, 64])
    kind, sizes = read_settings("fsq_residual", [256, 256, 256])
    assert (kind.fsq_form, kind.fsq_levels, sizes) == ("residual", [3] * 5, [243] * 3)
    kind, sizes = read_settings("rqkmeans_fsq", [256, 250])
    assert sizes == [256, 240]


def test_names_that_are_no_quantizer_are_refused() -> None:
    with pytest.raises(InputError, match="nosuch"):
        check_names(["rqkmeans", "nosuch"])
    with pytest.raises(InputError, match="nothing"):
        check_names([])


def test_a_row_is_found_again_only_when_made_from_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = FinishedRows(path).keep("a", {"sizes": (2, 3), "seed": 0}, {"error": 0.5, "folder": tmp_path})
    again = FinishedRows(path)
    assert again.find("a", {"seed": 0, "sizes": [2, 3]}) == row == again.rows["a"]
    assert row["error"] == 0.5
    assert row["folder"] == str(tmp_path)
    assert again.find("a", {"sizes": (2, 3), "seed": 1}) is None
    assert again.find("b", {"sizes": (2, 3), "seed": 0}) is None
    again.keep("b", {}, {"error": 1.0})
    assert set(FinishedRows(path).rows) == {"a", "b"}


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[1]")
    with pytest.raises(InputError, match=r"rows\.json is not a table"):
        FinishedRows(tmp_path / "rows.json")


def test_markdown() -> None:
    assert markdown(["a", "b"], [["x", "1"], ["y", "2"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 2 |"


def test_texts_are_read_from_every_kind_of_catalogue(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('item_id,title,categories\n1,red boot,"Boots, Red"\n2,blue tea,\n')
    items = {"1": {"title": "blue tea", "brand": ""}, "0": {"title": "red boot", "brand": "acme"}}
    (tmp_path / "x.item.json").write_text(json.dumps(items))
    columns = ["title", "brand", "categories"]
    assert read_texts(tmp_path / "items.csv", columns) == ["red boot Boots, Red", "blue tea"]
    assert read_texts(tmp_path / "x.item.json", columns) == ["red boot acme", "blue tea"]
    with pytest.raises(InputError, match="none of the columns description"):
        read_texts(tmp_path / "items.csv", ["description"])
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(tmp_path / "absent.csv", columns)
    (tmp_path / "gap.json").write_text(json.dumps({"0": {"title": "a"}, "2": {"title": "b"}}))
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(tmp_path / "gap.json", columns)
    with pytest.raises(InputError, match=r"\.npy"):
        ItemTextsConfig(items=tmp_path / "items.csv", out=tmp_path / "x.txt")


def test_item_texts_writes_unit_rows_in_the_catalogues_order(tmp_path: Path) -> None:
    titles = ["red boot", "blue boot", "red tea", "blue tea", "red boot"]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "\n".join(f"{i},{title}" for i, title in enumerate(titles)))
    out = tmp_path / "new" / "vectors.npy"
    flags = ["--items", str(tmp_path / "items.csv"), "--out", str(out), "--dimensions", "3"]
    make_item_texts(flags)
    vectors = np.load(out)
    assert vectors.shape == (5, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[0], vectors[4], atol=1e-6)
    assert vectors[0] @ vectors[3] < 0.5 < vectors[0] @ vectors[1] + vectors[0] @ vectors[2]


def clustered(n_items: int = 120, seed: int = 0) -> np.ndarray:
    """Vectors of 12 clusters, rows of different lengths, no two equal."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, 8))
    return ((centres[rng.integers(12, size=n_items)] + 0.3 * rng.normal(size=(n_items, 8))) * 3).astype(np.float32)


def test_a_quality_row_against_its_definitions() -> None:
    source, sizes = clustered(), [8, 8, 8]
    settings, _ = read_settings("rqkmeans", sizes)
    row = measure(settings, source, sizes, seed=1, held_out=0.25)
    unit = source / np.linalg.norm(source, axis=1, keepdims=True)
    quantizer = settings.fit(unit, sizes, 1)
    codes = quantizer.encode(unit)
    error = float(((unit - quantizer.reconstruct(codes)) ** 2).sum(1).mean())
    assert row["error"] == pytest.approx(error, rel=1e-4)
    assert row["error_by_level"][-1] == row["error"] < row["error_by_level"][0]
    assert row["variance_explained"] == pytest.approx(1 - error / unit.var(axis=0).sum(), rel=1e-4)
    assert row["cost_of_uniqueness"] == pytest.approx(row["error_unique"] / error - 1, abs=1e-4)
    assert row["collisions_raw"] == pytest.approx(1 - len(np.unique(codes, axis=0)) / 120, abs=1e-6)
    assert row["collisions"] == 0
    counts = np.bincount(codes[:, 0], minlength=8)
    shares = counts[counts > 0] / 120
    assert row["perplexity"][0] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert row["usage"][0] == pytest.approx((counts > 0).mean())
    assert set(row["cpu_seconds"]) == {"learn", "unique"}

    held = np.sort(np.random.default_rng(1).permutation(120)[:30])
    learnt = np.setdiff1d(np.arange(120), held)
    without = settings.fit(unit[learnt], sizes, 1)
    expected = float(((unit[held] - without.reconstruct(without.encode(unit[held]))) ** 2).sum(1).mean())
    assert row["error_held_out"] == pytest.approx(expected, rel=1e-3)
    assert row["error_held_out"] > row["error"]


def test_random_codes_are_measured_as_they_are_not_the_nearest_of_their_vectors() -> None:
    """Random codes say nothing: almost all of the variance is left, where the nearest of so many vectors would explain much of it."""
    settings, _ = read_settings("random", [12, 12])
    row = measure(settings, clustered(), [12, 12], seed=0, held_out=0.1)
    assert row["collisions_raw"] == row["collisions"] == row["cost_of_uniqueness"] == 0
    assert row["variance_explained"] < 0.35
    assert measure(read_settings("rqkmeans", [12, 12])[0], clustered(), [12, 12], 0, 0.1)["variance_explained"] > 0.6


def test_figures_of_the_bars(tmp_path: Path) -> None:
    finished = FinishedRows(tmp_path / "rows.json")
    rows: dict[str, dict[str, Any]] = {
        "rqkmeans_plain": {"error": 0.4},
        "rqkmeans": {"error": 0.3, "perplexity": [250.0, 245.0, 241.0]},
        "rqkmeans_plus": {"error": 0.24, "error_of_start": 0.3, "cost_of_uniqueness": 0.02},
    }
    for name, row in rows.items():
        finished.keep(f"books/{name}", {}, {"cost_of_uniqueness": 0.01, "collisions": 0.0} | row)
    finished.keep("others/ema_reset", {}, {"usage": [0.5, 1.0], "cost_of_uniqueness": 0.5, "collisions": 0.1})
    assert figures_of_bars("books", finished) == {
        "kmeans_gain": pytest.approx(0.25),
        "min_perplexity": 241.0,
        "plus_gain": pytest.approx(0.2),
        "ema_usage": None,
        "worst_cost_of_uniqueness": 0.02,
        "collisions": 0.0,
    }
    assert figures_of_bars("others", finished)["ema_usage"] == 0.5


def test_verdicts_compare_with_the_bars_in_the_right_direction() -> None:
    met = {"kmeans_gain": 0.07, "min_perplexity": 240.0, "plus_gain": 0.2, "ema_usage": 1.0}
    met |= {"worst_cost_of_uniqueness": 0.03, "collisions": 0.0}
    assert all(words.endswith("met") for words in verdicts(met))
    missed = {"kmeans_gain": 0.069, "min_perplexity": 239.0, "plus_gain": -0.2, "ema_usage": 0.99}
    missed |= {"worst_cost_of_uniqueness": 0.031, "collisions": 0.001}
    assert all(words.endswith("MISSED") for words in verdicts(missed))
    assert verdicts({"plus_gain": None}) == ["plus_gain ≥ 0.1: not measured"]


def run_quality(*flags: object) -> None:
    tokenizer_quality.main([str(flag) for flag in flags])


def test_the_quality_table_goes_on_where_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", clustered())
    out = tmp_path / "out.json"
    flags = ["--embeddings", tmp_path / "a.npy", "--out", out, "--level_sizes", 12, 12, "--quantizers"]
    run_quality(*flags, "rqkmeans_plain")
    first = out.read_text()
    capfd.readouterr()
    run_quality(*flags, "rqkmeans_plain", "rqkmeans")
    printed = capfd.readouterr().out
    assert "a/rqkmeans_plain: error" not in printed
    assert "a/rqkmeans: error" in printed
    assert "| rqkmeans_plain |" in printed
    rows = json.loads(out.read_text())["rows"]
    assert rows["a/rqkmeans_plain"] == json.loads(first)["rows"]["a/rqkmeans_plain"]
    figures = json.loads(printed.splitlines()[-1])
    assert figures["a"]["kmeans_gain"] == pytest.approx(
        1 - rows["a/rqkmeans"]["error"] / rows["a/rqkmeans_plain"]["error"]
    )
    assert figures["a"]["plus_gain"] is None

    np.save(tmp_path / "a.npy", clustered(seed=5))
    run_quality(*flags, "rqkmeans_plain")
    assert json.loads(out.read_text())["rows"]["a/rqkmeans_plain"]["error"] != rows["a/rqkmeans_plain"]["error"]


def test_bad_input_of_the_quality_benchmark(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", clustered(20))
    with pytest.raises(InputError, match="20 items"):
        read_items(tmp_path / "a.npy", [256, 256])
    with pytest.raises(InputError, match="does not exist"):
        read_items(tmp_path / "b.npy", [2])
    with pytest.raises(InputError, match="two files of one name"):
        QualityConfig([tmp_path / "a.npy", tmp_path / "x" / "a.npy"])
    with pytest.raises(InputError, match="held_out"):
        QualityConfig([tmp_path / "a.npy"], held_out=1.0)


def a_row(name: str, valid: float, seed: int = 0, run_dir: Path = Path("x"), sizes: tuple[int, ...] = (4, 4)) -> dict:
    metrics = {"valid": {"recall@10": valid, "ndcg@10": valid / 2}}
    about = {
        "quantizer": name,
        "level_sizes": list(sizes),
        "seed": seed,
        "run_dir": str(run_dir),
        "seconds": {"sft": 2},
    }
    return about | metrics


def test_the_best_two_on_valid_and_plain_kmeans_are_repeated() -> None:
    scores = {"random": 0.9, "rqkmeans_plain": 0.5, "rqkmeans": 0.1, "fsq": 0.3, "rqvae": 0.2}
    rows = [a_row(name, valid) for name, valid in scores.items()] + [a_row("(popularity)", 0.8, sizes=())]
    assert to_repeat(rows) == ["fsq", "rqvae", "rqkmeans_plain"]
    assert to_repeat(rows[2:]) == ["fsq", "rqvae"]


def test_a_summary_is_the_mean_over_seeds_and_a_paired_difference(tmp_path: Path) -> None:
    """Of four cases plain k-means hits one, then two; the other, with one seed, three."""
    miss = 50
    valid_ranks = {
        ("rqkmeans_plain", 0): [0, miss, miss, 10],
        ("rqkmeans_plain", 1): [0, 9, miss, miss],
        ("fsq", 0): [0, 1, 2, miss],
    }
    rows = []
    for (name, seed), ranks in valid_ranks.items():
        run_dir = tmp_path / f"{name}{seed}"
        run_dir.mkdir()
        figures = save_ranks(run_dir, {"valid": np.array(ranks)})
        rows.append(a_row(name, 0, seed, Path(run_dir.name)) | figures)
    assert rows[2]["valid"]["recall@10"] == 0.75
    assert rows[2]["valid"]["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / 2) / 4)
    np.testing.assert_array_equal(mean_gains(rows[:2], tmp_path, "valid", recall_at), [1, 0.5, 0, 0])
    plain, fsq = summarise(rows, tmp_path)
    assert (plain["seeds"], plain["valid"]["recall@10"], plain["range"]) == (2, 0.375, [0.25, 0.5])
    assert plain["minus_plain"] is None
    assert fsq["minus_plain"]["difference"] == 0.5  # against the first seed only, which both have
    assert in_words(plain)[3] == "0.3750 (0.2500–0.5000)"
    assert in_words(fsq)[5].startswith("+0.5000 (")


def test_a_downstream_row_from_vectors_to_recall(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The stages themselves are tested elsewhere: here their work lies ready, and only the last step, the measuring, is in earnest."""
    ready, called = finished_sft_run(tmp_path_factory), []

    def stage(command: list[str], run_dir: Path, threads: int) -> float:
        called.append([*command, str(threads)])
        if name_of(command) == "prepare":
            shutil.copytree(ready, run_dir, dirs_exist_ok=True)
        return 1.0

    monkeypatch.setattr(tokenizer_downstream, "run_stage", stage)
    flags = ["--dataset", "ml-100k", "--raw_dir", "raw", "--work_dir", str(tmp_path), "--quantizers", "rqkmeans_plain"]
    flags += ["--seeds", "3", "--threads", "2", "--cases", "50"]
    tokenizer_downstream.main(flags)
    printed = capfd.readouterr().out.splitlines()
    assert [name_of(call) for call in called] == ["prepare", "sidrec.tokenizer.embed", "tokenize", "sft/train.py"]
    assert called[2][called[2].index("--clusters") + 1] == "plain"
    assert all(call[-3:] == ["--seed", "3", "2"] for call in called[2:])
    result = json.loads(printed[-1])
    popularity, row = result["rows"]
    assert (popularity["quantizer"], row["quantizer"], row["level_sizes"]) == (
        "(popularity)",
        "rqkmeans_plain",
        "64x64",
    )
    assert row["valid"]["recall@10"] > popularity["valid"]["recall@10"] > 0
    with np.load(tmp_path / "runs" / "rqkmeans_plain_64x64_seed_3" / "ranks.npz") as ranks:
        assert ranks.files == ["valid"]
        assert len(ranks["valid"]) == 50
        assert (ranks["valid"] < 10).mean() == pytest.approx(row["valid"]["recall@10"])

    called.clear()
    tokenizer_downstream.main(flags)
    assert len(called) == 2  # data and embeddings, which skip themselves
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == result


def test_a_stage_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    program = "import sys; print('begun'); sys.exit(print('no space for that') or 3)"
    with pytest.raises(InputError, match=r"code 3 \(no space for that\); see .*log\.txt"):
        harness.run_stage(["-c", program], tmp_path, 1)
    assert "begun" in (tmp_path / "log.txt").read_text()


def test_bad_input_of_the_downstream_benchmark(tmp_path: Path) -> None:
    for changed, words in (({"seeds": [1, 1]}, "seeds"), ({"cases": 0}, "cases"), ({"threads": 0}, "threads")):
        with pytest.raises(InputError, match=words):
            DownstreamConfig("ml-100k", tmp_path, tmp_path, **changed)
