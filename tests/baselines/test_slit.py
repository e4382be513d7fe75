"""SLIT: its matrices and its solution against loops and dense algebra, its tuning, its limits."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from sidrec.baselines import slit
from sidrec.baselines.scorer import rank_cases
from sidrec.baselines.slit import fit_slit, moments, ridge_inverse, times, tune_slit
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import recall_at

N = 7
SEQUENCES = st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=9).map(np.array), min_size=1, max_size=6)


def rows_by_a_loop(
    sequences: list[np.ndarray], past: float, future: float, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """S and T, dense, position after position."""
    before, after = [np.zeros((0, N))], [np.zeros((0, N))]
    for sequence in sequences:
        for cut in range(1, len(sequence)):
            s, t = np.zeros((1, N)), np.zeros((1, N))
            for age, item in enumerate(sequence[:cut][::-1][:reach]):
                s[0, item] += past**age
            for age, item in enumerate(sequence[cut:][:reach]):
                t[0, item] += future**age
            before.append(s)
            after.append(t)
    return np.concatenate(before), np.concatenate(after)


@given(sequences=SEQUENCES, past=st.sampled_from([0.0, 0.6, 1.0]), future=st.sampled_from([0.0, 0.6, 1.0]))
@settings(deadline=None)
def test_moments_against_a_loop(sequences: list[np.ndarray], past: float, future: float) -> None:
    before, after = rows_by_a_loop(sequences, past, future, slit.REACH)
    squares, products = moments(sequences, N, past, future)
    assert squares.toarray() == pytest.approx(before.T @ before, abs=1e-4)
    assert products.toarray() == pytest.approx(before.T @ after, abs=1e-4)


def test_blocks_of_positions_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, N, rng.integers(1, 12)) for _ in range(20)]
    whole = moments(sequences, N, 0.7, 0.5)
    monkeypatch.setattr(slit, "ROWS_TOGETHER", 8)
    for moment, expected in zip(moments(sequences, N, 0.7, 0.5), whole, strict=True):
        assert moment.toarray() == pytest.approx(expected.toarray(), rel=1e-5)


def test_no_item_beyond_the_reach_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slit, "REACH", 2)
    before, after = rows_by_a_loop([np.arange(6)], 1.0, 1.0, reach=2)
    squares, products = moments([np.arange(6)], N, 1.0, 1.0)
    assert squares.toarray() == pytest.approx(before.T @ before)
    assert products.toarray() == pytest.approx(before.T @ after)


def test_the_weights_are_the_minimum_of_the_objective() -> None:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, N, 8) for _ in range(15)]
    before, after = rows_by_a_loop(sequences, 0.7, 0.5, slit.REACH)
    weights = fit_slit(sequences, N, past=0.7, future=0.5, ridge=3.0, decay=0.7).weights
    gradient = 2 * before.T @ (before @ weights - after) + 2 * 3.0 * weights
    assert gradient == pytest.approx(np.zeros((N, N)), abs=1e-3)
    assert weights == pytest.approx(np.linalg.solve(before.T @ before + 3.0 * np.eye(N), before.T @ after), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_sparse_and_dense_products_are_the_same(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slit, "DENSE", share)
    rng = np.random.default_rng(2)
    root = rng.random((N, N), dtype=np.float32)
    squares, products = sparse.csr_array(root @ root.T), sparse.random_array((N, N), density=0.3, rng=rng)
    products = products.tocsr().astype(np.float32)
    weights = times(ridge_inverse(squares, 2.0), products)
    assert weights == pytest.approx(np.linalg.solve(squares.toarray() + 2 * np.eye(N), products.toarray()), abs=1e-4)
    assert weights.flags.c_contiguous


def test_a_history_is_scored_by_its_items_the_newest_most() -> None:
    sequences = [np.array([0, 1, 2]), np.array([3, 1, 4]), np.array([5, 6])]
    model = fit_slit(sequences, N, 0.7, 0.5, ridge=0.1, decay=0.5)
    scores = model.scores([np.array([5, 0, 3]), np.array([1])])
    expected = 0.25 * model.weights[5] + 0.5 * model.weights[0] + model.weights[3]
    assert scores[0] == pytest.approx(expected, abs=1e-5)
    assert scores[1] == pytest.approx(model.weights[1], abs=1e-5)
    assert scores[0].argmax() == 1


def test_tuning_finds_the_best_of_the_whole_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    users = [(start + np.cumsum(rng.integers(1, 4, 8))) % 40 for start in rng.integers(0, 40, 60)]
    valid = EvalCases(
        [str(i) for i in range(60)], [user[:-1] for user in users], np.array([user[-1] for user in users])
    )
    log = pl.DataFrame({"user_id": pl.Series([], dtype=pl.String)})
    data = Dataset(pl.DataFrame({"item_index": range(40)}), log, {})
    data.__dict__["train_sequences"] = [user[:-1] for user in users]
    best, tuning = tune_slit(data, valid)
    assert len(tuning.grid) == len(tuning.values) == 32
    assert len(set(tuning.values)) > 3
    again = fit_slit(data.train_sequences, 40, **tuning.grid[tuning.chosen])
    for model in (best, again):
        assert recall_at(rank_cases(model, valid, masked=True), 10).mean() == max(tuning.values)
    monkeypatch.setattr(slit, "MOST_CASES", 7)
    best, tuning = tune_slit(data, valid)
    few = valid.first_of_shuffle(7, seed=0)
    assert recall_at(rank_cases(best, few, masked=True), 10).mean() == max(tuning.values)
    assert all(value in np.arange(8) / 7 for value in tuning.values)
