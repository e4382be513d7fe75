"""The value model: its regressions against brute force, whose events judge whom, and the line at the end."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from valued_logs import USERS, N, valued_dataset

from sidrec.baselines import value_model
from sidrec.baselines.value_model import (
    BIAS_RIDGE,
    FACTOR_RIDGE,
    FOLDS,
    event_matrices,
    fit_items,
    fit_value_model,
    fold_of,
    predict_newest,
    ridge_regressions,
    rising_line,
    with_one,
)
from sidrec.data.build import build, find_inputs
from sidrec.data.dataset import Dataset
from sidrec.data.settings import PrepareConfig
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen


def test_a_ridge_regression_is_the_least_squares_of_stacked_rows() -> None:
    rng = np.random.default_rng(1)
    features, offsets = with_one(rng.normal(size=(N, 3))), rng.normal(size=N)
    histories = [rng.integers(0, N, size=n) for n in (7, 1, 0, 12)]  # items may come again
    values = [rng.normal(size=len(history)) for history in histories]
    values[0][2] = np.nan
    counts, sums = event_matrices(histories, values, N, mean=0.5, deviation=2.0)
    weights = ridge_regressions(counts, sums, features, offsets)
    penalty = np.diag(np.sqrt([BIAS_RIDGE, *[FACTOR_RIDGE] * 3]))
    for row, history, value in zip(weights, histories, values, strict=True):
        known = ~np.isnan(value)
        wanted = (value[known] - 0.5) / 2.0 - offsets[history[known]]
        stacked = np.concatenate([features[history[known]], penalty]), np.concatenate([wanted, np.zeros(4)])
        assert row == pytest.approx(np.linalg.lstsq(*stacked, rcond=None)[0])
    assert not weights[2].any(), "an empty history says nothing"


def test_the_items_are_where_the_objective_is_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Central differences of the objective, written out event by event, in the items' biases and factors; and it falls with the sweeps."""
    monkeypatch.setattr(value_model, "FACTORS", 2)
    small = valued_dataset(gaps=True)
    sequences, values = small.train_sequences, small.train_values("rating")

    def objective(biases: np.ndarray, factors: np.ndarray, users: np.ndarray) -> float:
        total = 0.0
        for user, items, known in zip(users, sequences, values, strict=True):
            for item, value in zip(items, known, strict=True):
                if not np.isnan(value):
                    z = (value - fitted.mean) / fitted.deviation
                    total += (z - user[0] - biases[item] - user[1:] @ factors[item]) ** 2
        squares = BIAS_RIDGE * ((users[:, 0] ** 2).sum() + (biases**2).sum())
        return total + squares + FACTOR_RIDGE * ((users[:, 1:] ** 2).sum() + (factors**2).sum())

    reached = []
    for sweeps in (1, 3, 200):
        fitted = fit_items(sequences, values, N, seed=0, sweeps=sweeps)
        users = fitted.folded_in(sequences, values)
        reached.append(objective(fitted.biases, fitted.factors, users))
    assert reached == sorted(reached, reverse=True)
    step = 1e-5
    for item in (0, 7, N - 1):
        for change in np.eye(3):
            moved = [
                objective(
                    fitted.biases + sign * step * change[0] * (np.arange(N) == item),
                    fitted.factors + sign * step * change[1:] * (np.arange(N) == item)[:, None],
                    users,
                )
                for sign in (1, -1)
            ]
            assert abs(moved[0] - moved[1]) / (2 * step) < 1e-3 * reached[-1]


def test_nothing_of_a_user_is_in_what_judges_it() -> None:
    before, after = valued_dataset(), valued_dataset(change={"u3": 2.5})
    first, second = fit_value_model(before, "rating"), fit_value_model(after, "rating")
    fold = fold_of("u3", FOLDS, 0)
    for place in range(FOLDS):
        same = np.array_equal(first.folds[place].factors, second.folds[place].factors)
        assert same == (place == fold), "the user's own fold, and no other, does not know the user"
    assert np.array_equal(first.folds[fold].biases, second.folds[fold].biases)
    assert first.folds[fold].mean == second.folds[fold].mean


def test_values_come_from_the_history_that_is_given_and_nothing_else() -> None:
    small = valued_dataset()
    model = fit_value_model(small, "rating")
    cases = small.cases("test", "rating")
    assert cases.history_values is not None
    log = small.interactions
    later = pl.when(pl.col("split") == "train").then("rating").otherwise(-50.0)
    other = fit_value_model(Dataset(small.items, log.with_columns(rating=later), small.info), "rating")
    values = model.values(cases.user_ids, cases.histories, cases.history_values)
    assert np.array_equal(values, other.values(cases.user_ids, cases.histories, cases.history_values))
    assert values.dtype == np.float32
    assert values.shape == (USERS, N)
    for case in (0, 9):  # alone as among others
        alone = [part[case : case + 1] for part in (cases.user_ids, cases.histories, cases.history_values)]
        assert model.values(*alone)[0] == pytest.approx(values[case], rel=1e-6)
    raised = [values_of_user + 1.0 for values_of_user in cases.history_values]
    assert (model.values(cases.user_ids, cases.histories, raised).mean(1) > values.mean(1)).all()
    nothing = [np.empty(0, dtype=np.int64)] * 2, [np.empty(0)] * 2
    strangers = model.values(["nobody", "nobody"], *nothing)
    assert np.array_equal(strangers[0], strangers[1])
    unknown = [np.full(len(history), np.nan) for history in cases.histories[:2]]
    assert np.array_equal(model.values(["nobody", "nobody"], cases.histories[:2], unknown), strangers)


def test_the_newest_events_are_predicted_from_those_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_model, "NEWEST", 4)
    small = valued_dataset(gaps=True)
    items = fit_items(small.train_sequences, small.train_values("rating"), N, seed=0)
    for sequence, values in zip(small.train_sequences[:5], small.train_values("rating")[:5], strict=True):
        predictions, wanted = predict_newest(items, sequence, values)
        at = np.flatnonzero(~np.isnan(values))[1:][-4:]
        assert wanted.tolist() == values[at].tolist()
        alone = [items.predicted([sequence[:place]], [values[:place]])[0, sequence[place]] for place in at]
        assert predictions == pytest.approx(alone)


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=30))
def test_the_line_rises_and_keeps_the_mean(pairs: list[tuple[float, float]]) -> None:
    raw, values = np.array(pairs).T
    intercept, slope = rising_line(raw, values)
    assert slope >= 0
    assert (intercept + slope * raw).mean() == pytest.approx(values.mean(), abs=1e-6)
    errors = ((intercept + slope * raw - values) ** 2).mean()
    assert errors <= ((values - values.mean()) ** 2).mean() + 1e-6


@pytest.mark.parametrize(("factor", "shift"), [(0.01, 5.0), (1000.0, 0.0), (60.0, -300.0)])
def test_the_unit_of_the_column_changes_nothing_but_the_unit(factor: float, shift: float) -> None:
    small = valued_dataset()
    other = Dataset(small.items, small.interactions.with_columns(pl.col("rating") * factor + shift), small.info)
    cases = small.cases("test", "rating")
    assert cases.history_values is not None
    first, second = fit_value_model(small, "rating"), fit_value_model(other, "rating")
    rescaled = [values * factor + shift for values in cases.history_values]
    values = first.values(cases.user_ids, cases.histories, cases.history_values) * factor + shift
    scale = factor * first.deviation
    assert np.abs(second.values(cases.user_ids, cases.histories, rescaled) - values).max() < 1e-3 * scale + 1e-6 * abs(
        shift
    )


def test_two_fits_are_the_same_and_learn_something() -> None:
    small = valued_dataset()
    first, second = fit_value_model(small, "rating"), fit_value_model(small, "rating")
    assert first.fit == second.fit
    assert all(np.array_equal(a.factors, b.factors) for a, b in zip(first.folds, second.folds, strict=True))
    assert first.fit.rmse < 0.9 * first.fit.mean_rmse
    assert first.fit.r > 0.5
    assert fit_value_model(small, "rating", seed=1).fit != first.fit


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pl.lit(3.0), r"'rating' is 3 in every training row that has one, so there is nothing to predict"),
        (pl.when(pl.col("split") == "train").then(None).otherwise(1.0), "'rating' is empty in every training row"),
        (
            pl.when((pl.col("user_id") == "u1") & (pl.col("timestamp") < 2)).then(pl.col("timestamp").cast(pl.Float64)),
            r"differs in the training rows of too few users to judge each by others \(60 users in 5 folds\)",
        ),
        (pl.when(pl.col("timestamp") == 0).then("rating"), "no user has two training rows with a value"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence(values: pl.Expr, words: str) -> None:
    small = valued_dataset()
    wrong = Dataset(small.items, small.interactions.with_columns(rating=values), small.info, folder=Path("run/data"))
    with pytest.raises(InputError, match=words) as error:
        fit_value_model(wrong, "rating")
    assert str(error.value).startswith("run/data/interactions.parquet: column 'rating'")


def test_ratings_of_the_real_ml_100k() -> None:
    """Better than .93 RMSE over all training events of users that the items' factors do not know; the mean alone has 1.126."""
    if "SIDREC_DATASETS" not in os.environ:
        pytest.skip("SIDREC_DATASETS does not point at the folder with ml-100k/")
    folder = Path(os.environ["SIDREC_DATASETS"]) / "ml-100k"
    config = PrepareConfig(run_dir=Path("unused"), dataset="ml-100k", raw_dir=folder)
    real = build(config, find_inputs(config), Screen("data", quiet=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(value_model, "NEWEST", 1_000_000)
        fit = fit_value_model(real, "rating").fit
    assert fit.mean_rmse == pytest.approx(1.126, abs=0.001)
    assert 0.90 < fit.rmse < 0.93
