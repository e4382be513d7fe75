"""Vectors that are one for most items are refused before anything is learnt from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage
from sidrec.tokenizer import embed, quantize
from sidrec.tokenizer.embeddings.collapse import MOST, MOST_LOOKED_AT, evenly_spaced, share_of_one
from sidrec.tokenizer.semantic_ids import SemanticIds

N_ITEMS = 24
SMALL = ["--level_sizes", "4", "8", "--text_dim", "8", "--collaborative_dim", "8"]
VARIED = [f"{['red', 'blue', 'green'][n % 3]} {['tea', 'lamp', 'boot', 'drum'][n // 6]} {n}" for n in range(N_ITEMS)]


def write_data(run_dir: Path, texts: list[str], n_users: int = 20) -> None:
    """Items with these texts; users who each take 6 neighbouring ones, in a ring."""
    n = len(texts)
    columns = {"item_id": [f"i{item}" for item in range(n)], "item_index": range(n), "title": texts, "text": texts}
    taken_at = [
        (f"u{u:02}", (5 * u + t) % n, t, "train" if t < 4 else "test") for u in range(n_users) for t in range(6)
    ]
    log = pl.DataFrame(taken_at, schema=["user_id", "item_index", "timestamp", "split"], orient="row")
    with Stage(run_dir, "data", {"texts": texts}).building(overwrite=True) as folder:
        Dataset(pl.DataFrame(columns), log, {"name": "small"}).save(folder)


def tokenize(run_dir: Path, *flags: str) -> None:
    for stage in (embed, quantize):
        stage.main(["--run_dir", str(run_dir), *SMALL, *flags])


def test_one_text_for_all_items_is_refused_and_the_cure_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, ["The thing"] * N_ITEMS)
    with pytest.raises(
        InputError, match=r"the source text has the same vector for every item; .*another column.*--text_encoder"
    ):
        tokenize(tmp_path)
    assert "Warning: 100.0% of the items have the same text vector" in capsys.readouterr().out
    assert not (tmp_path / "sid").exists()
    with pytest.raises(InputError, match=r"or take other sources, such as --sources collaborative --weights 1\.$"):
        tokenize(tmp_path, "--sources", "text", "--weights", "1", "--overwrite", "true")
    tokenize(tmp_path, "--sources", "collaborative", "--weights", "1", "--overwrite", "true")
    assert SemanticIds.load(tmp_path).n_items == N_ITEMS


@pytest.mark.parametrize("n_same", [12, 13, 20])
def test_one_text_for_most_items_is_refused_where_nothing_else_tells_them_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n_same: int
) -> None:
    write_data(tmp_path, ["The thing"] * n_same + VARIED[n_same:])
    alone = ["--sources", "text", "--weights", "1"]
    if n_same > MOST * N_ITEMS:
        with pytest.raises(InputError, match=rf"^{n_same / N_ITEMS:.1%} of the 24 items have the same vector"):
            tokenize(tmp_path, *alone)
    else:
        tokenize(tmp_path, *alone)
    capsys.readouterr()
    tokenize(tmp_path, "--sources", "text", "collaborative", "--weights", "1", "1", "--overwrite", "true")
    printed = capsys.readouterr().out
    assert ("of the items have the same text vector" in printed) == (n_same > MOST * N_ITEMS)
    assert SemanticIds.load(tmp_path).n_items == N_ITEMS


def test_a_file_of_ones_own_and_kinds_that_ask_nothing_of_vectors(tmp_path: Path) -> None:
    write_data(tmp_path, VARIED)
    rows = np.random.default_rng(0).standard_normal((N_ITEMS, 3)).astype(np.float32)
    rows[4:] = rows[4]
    np.save(tmp_path / "images.npy", rows)
    alone = ["--sources", str(tmp_path / "images.npy"), "--weights", "1"]
    with pytest.raises(
        InputError, match=r"83.3% of the 24 items .*make the file again, or .* --sources text --weights 1\.$"
    ):
        tokenize(tmp_path, *alone)
    tokenize(tmp_path, *alone, "--quantizer", "random", "--overwrite", "true")
    assert SemanticIds.load(tmp_path).n_items == N_ITEMS


def test_one_item_is_refused_before_any_vector(tmp_path: Path) -> None:
    write_data(tmp_path, ["The thing"])
    with pytest.raises(InputError, match=r"data holds one item only, so there is nothing to choose from"):
        tokenize(tmp_path)


@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 5), st.integers(0, 99))
def test_the_share_against_counting(n: int, n_same: int, width: int, seed: int) -> None:
    """Rows that differ are drawn far apart; the same one with the noise that another order of summing gives."""
    n_same = min(n_same, n)
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, width)) + 10 * np.arange(n)[:, None]
    rows[:n_same] = rows[n // 2] + 1e-7 * rng.standard_normal((n_same, width))
    rows = rows[rng.permutation(n)]
    counted = max(int((np.linalg.norm(rows - row, axis=1) < 1e-3).sum()) for row in rows)
    if counted > n / 2:
        assert share_of_one(rows) == counted / n
    else:
        assert share_of_one(rows) <= 0.5


@given(st.integers(1, 3 * MOST_LOOKED_AT))
def test_the_items_looked_at_are_evenly_spaced(n_items: int) -> None:
    places = evenly_spaced(n_items)
    assert len(places) == min(n_items, MOST_LOOKED_AT)
    assert places[0] == 0
    assert places[-1] == n_items - 1
    gaps = np.diff(places)
    assert n_items == 1 or gaps.max() - gaps.min() <= 1
