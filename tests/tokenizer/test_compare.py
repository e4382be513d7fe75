"""Sets of semantic IDs side by side: the entry point on small files, and MiniOneRec's own index where it is at hand."""

import json
import os
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer import compare
from sidrec.tokenizer.compare import default_names
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.interchange import write_codes
from sidrec.tokenizer.kmeans.residual_kmeans import fit
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.report.comparison import SidSet, measure_set, read_set, rows
from sidrec.tokenizer.semantic_ids import SemanticIds
from sidrec.tokenizer.unique_sids import make_unique

N_ITEMS = 90


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """run/sid (k-means of the vectors), other.index.json (random codes), vectors.npy, items.parquet."""
    rng = np.random.default_rng(0)
    vectors = (
        rng.standard_normal((6, 5))[rng.integers(0, 6, N_ITEMS)] + 0.2 * rng.standard_normal((N_ITEMS, 5))
    ).astype("f4")
    np.save(tmp_path / "vectors.npy", vectors)
    unit = ItemVectors([vectors], [1.0])[:]
    quantizer = Quantizer(fit(unit, [8, 8], seed=0))
    raw = quantizer.encode(unit)
    codes = np.concatenate([make_unique(unit[:60], raw[:60], quantizer.codebooks), raw[60:]])
    SemanticIds(codes, raw, quantizer.codebooks.books, quantizer).save(tmp_path / "run" / "sid")
    write_codes(tmp_path / "other.index.json", rng.integers(0, 8, (N_ITEMS, 2)))
    pl.DataFrame({"genres": ["War, Drama" if item % 2 else "Comedy" for item in range(N_ITEMS)]}).write_parquet(
        tmp_path / "items.parquet"
    )
    return tmp_path


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["compare", *flags])
    compare.main()


BOTH = ("--sids", "run/sid", "other.index.json", "--vectors", "vectors.npy")


def test_a_run_beside_an_index_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, monkeypatch, *BOTH, "--items", "items.parquet", "--out", "out/here")
    written = json.loads((folder / "out/here/compare.json").read_text())
    assert (written["items"], written["order"]) == (N_ITEMS, ["run", "other"])
    ours, other = written["sets"]["run"], written["sets"]["other"]
    assert ours["neighbours"]["preserved"] > other["neighbours"]["preserved"]
    assert ours["levels"][0]["variance_explained"] > other["levels"][0]["variance_explained"]
    codes = np.array(
        [[int(token[3:-1]) for token in tokens] for tokens in json.loads(Path("other.index.json").read_text()).values()]
    )
    unique = len(np.unique(codes, axis=0))
    assert other["collisions"]["rate"] == pytest.approx(1 - unique / N_ITEMS, abs=1e-6)
    assert ours["categories"]["categories"] == 2
    page = (folder / "out/here/compare.html").read_text()
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 4  # variance, error against collisions, use of two levels
    for plot in plots:
        ElementTree.fromstring(plot)
    assert not re.findall(r"<(?:script|link|iframe)|src=", page)
    assert f"{ours['neighbours']['preserved']:.1%}" in capsys.readouterr().out
    assert f"{ours['neighbours']['preserved']:.1%}" in page
    run(folder, monkeypatch, *BOTH, "--items", "items.parquet", "--out", "again")
    for name in ("compare.json", "compare.html"):
        assert (folder / "again" / name).read_bytes() == (folder / "out/here" / name).read_bytes()


def test_every_set_is_measured_alike(folder: Path) -> None:
    """A set with a quantizer gets the same figures as its codes alone, and its own error beside them."""
    sids = SemanticIds.read(folder / "run" / "sid")
    vectors = ItemVectors([np.load(folder / "vectors.npy")], [1.0])
    ours = measure_set(vectors, SidSet.of("run", sids), 0, None)
    alone = measure_set(vectors, SidSet("codes", sids.codes_raw, sids.codes_raw, [8, 8], None), 0, None)
    assert ours["levels"] == alone["levels"]
    assert sids.quantizer is not None
    error = ((vectors[:] - sids.quantizer.reconstruct(sids.codes)) ** 2).sum(1).mean()
    assert ours["own_mean_squared_error"] == pytest.approx(error, rel=1e-4)
    assert alone["own_mean_squared_error"] is None
    left = vectors[:].astype(np.float64)
    for level, book in enumerate(sids.quantizer.codebooks.books):
        d = np.sort(np.linalg.norm(left[:, None] - book, axis=2), axis=1)
        assert ours["own_margins"][level] == pytest.approx(np.median((d[:, 1] - d[:, 0]) / d[:, 0]), rel=1e-3)
        left -= book[sids.codes_raw[:, level]]
    assert alone["own_margins"] is None
    cells = {row[0]: row[1:] for row in rows({"run": ours, "codes": alone})}
    assert cells["MSE by its own quantizer"] == (f"{error:.4f}", "–")
    assert cells["perplexity"][0] == cells["perplexity"][1]
    medians = " / ".join(f"{median:.2f}" for median in ours["own_margins"])
    assert cells["margin of its own quantizer, median"] == (medians, "–")


def test_a_quantizer_of_other_vectors_is_left_out(folder: Path) -> None:
    sids = SemanticIds.read(folder / "run" / "sid")
    wider = ItemVectors([np.random.default_rng(0).standard_normal((N_ITEMS, 7))], [1.0])
    assert measure_set(wider, SidSet.of("run", sids), 0, None)["own_mean_squared_error"] is None


def test_an_extra_token_is_a_level_without_vectors(tmp_path: Path) -> None:
    index = tmp_path / "x.index.json"
    index.write_text(
        json.dumps({"0": ["<a_3>", "<b_1>", "<c_1>"], "1": ["<a_3>", "<b_1>", "<c_2>"], "2": ["<a_0>", "<b_7>"]})
    )
    one = read_set("x", index, None)
    assert one.raw.tolist() == [[3, 1], [3, 1], [0, 7]]
    assert one.codes[:, 2].tolist() == [1, 2, 0]
    assert one.level_sizes == [8, 8, 3]
    figures = measure_set(np.eye(3, dtype=np.float32), one, 0, None)
    assert figures["collisions_raw"]["share_of_items"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["collisions"]["share_of_items"] == 0
    assert read_set("x", index, 16).level_sizes[:2] == [16, 16]


def test_names_come_from_the_paths() -> None:
    assert default_names(
        [Path("outputs/a/sid"), Path("x/Industrial.index.json"), Path("codes.npy"), Path("b/sids")]
    ) == [
        "a",
        "Industrial",
        "codes",
        "sids",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sids", "run/sid", "nowhere", "--vectors", "vectors.npy"), "nowhere is no folder with codes_all.npy"),
        (("--sids", "run", "--vectors", "vectors.npy"), r"run/codes_all.npy is missing"),
        (("--sids", "items.parquet", "--vectors", "vectors.npy"), "items.parquet is no folder"),
        (("--sids", "run/sid", "run/sid", "--vectors", "vectors.npy"), "two sets are called 'run'"),
        ((*BOTH, "--names", "one"), "names has 1 names for 2 sets"),
        (("--sids", "run/sid", "short.npy", "--vectors", "vectors.npy"), "short.npy has 3 items, but run/sid has 90"),
        (("--sids", "run/sid", "--vectors", "gone.npy"), "gone.npy does not exist; correct --vectors"),
        (("--sids", "run/sid", "--vectors", "short.npy"), "one row for each of the 90 items"),
        ((*BOTH, "--weights", "1", "2"), r"weights \[1.0, 2.0\] must be one number"),
        ((*BOTH, "--codes_per_level", "4"), "beyond the 4 of --codes_per_level"),
        ((*BOTH, "--items", "gone.parquet"), "gone.parquet does not exist; correct --items"),
        ((*BOTH, "--items", "plain.parquet"), "plain.parquet has no column genres"),
        ((*BOTH, "--items", "few.parquet"), "few.parquet has 2 items, but the SIDs are of 90"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], message: str
) -> None:
    np.save(folder / "short.npy", np.array([[0, 1], [1, 0], [2, 2]]))
    pl.DataFrame({"title": ["a"] * N_ITEMS}).write_parquet(folder / "plain.parquet")
    pl.DataFrame({"genres": ["a", "b"]}).write_parquet(folder / "few.parquet")
    with pytest.raises(InputError, match=message):
        run(folder, monkeypatch, *flags, "--out", "out")
    assert not (folder / "out").exists()


def test_minionerec_shipped_index_uses_48_first_codes() -> None:
    root = os.environ.get("SIDREC_DATASETS")
    path = Path(root or "") / "minionerec-industrial/index/Industrial_and_Scientific.index.json"
    if root is None or not path.exists():
        pytest.skip("SIDREC_DATASETS does not point at a folder with minionerec-industrial")
    one = read_set("minionerec", path, None)
    vectors = np.random.default_rng(0).standard_normal((len(one.codes), 4)).astype(np.float32)
    figures = measure_set(vectors, one, 0, None)
    first = figures["levels"][0]
    assert (first["codes"], first["codes_used"]) == (256, 48)
    assert first["perplexity"] == pytest.approx(40.72, abs=0.01)
    assert figures["prefix_tree"][-1]["prefixes"] == 3670
    assert figures["collisions"]["rate"] == pytest.approx(16 / 3686, abs=1e-6)
