"""What an item would be worth to a user: matrix factorisation of a column of the log, such as the rating, cross-fitted over the users.

A value is the mean, plus a bias of the user, plus one of the item, plus the product of their factors, fitted by alternating ridge
regressions (on ratings still hard to beat, arXiv 1905.01395). Users are dealt into folds. The items' biases and factors that judge a
user come from the training events of the other folds' users alone, the user's own bias and factors from the history that is given: as in
double machine learning (arXiv 1608.00060), nothing is judged by what was fitted on it, and no event after the history has a part in it. A
straight line, fitted on predictions made in this way, takes them to values.

Values are measured in standard deviations while they are fitted, so the settings are the same for stars, seconds and prices. They were
chosen on the training events of MovieLens-100K, predicted out of fold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError

FOLDS = 5
FACTORS = 16  # K
SWEEPS = 10
BIAS_RIDGE, FACTOR_RIDGE = 2.0, 8.0
NEWEST = 20  # training events of a user, at most, that the line and the figures of a fit are of
ROWS_TOGETHER = 2048


@dataclass(frozen=True)
class ItemFactors:
    """What users say of the items. mean, deviation: of their values. biases: float64 [N]; factors: float64 [N, K]; both in standard
    deviations, 0 for items without a value."""

    mean: float
    deviation: float
    biases: np.ndarray
    factors: np.ndarray

    def predicted(self, histories: Sequence[np.ndarray], history_values: Sequence[np.ndarray]) -> np.ndarray:
        """Every item's value after each history, before the line: float64 [B, N]."""
        users = self.folded_in(histories, history_values)
        return self.mean + self.deviation * (self.biases + users @ with_one(self.factors).T)

    def folded_in(self, histories: Sequence[np.ndarray], history_values: Sequence[np.ndarray]) -> np.ndarray:
        """Bias and factors of the users whose histories these are, float64 [B, 1 + K]; zeros without a value."""
        counts, sums = event_matrices(histories, history_values, len(self.biases), self.mean, self.deviation)
        return ridge_regressions(counts, sums, with_one(self.factors), self.biases)


@dataclass(frozen=True)
class Fit:
    """How good predictions are. events: so many were predicted. rmse: of the model; mean_rmse: of the mean alone; both in the column's
    unit. r: correlation of predictions and values, 0 where all predictions are the same."""

    events: int
    rmse: float
    mean_rmse: float
    r: float


@dataclass(frozen=True)
class ValueModel:
    """column: what it predicts. seed: deals the users into folds. folds: the f-th judges the users of fold f. mean, deviation, least, most:
    of the column's values in training; no prediction goes beyond the last two before the line, which has this intercept and slope (0
    or more). fit: how good it is, out of fold."""

    column: str
    seed: int
    folds: tuple[ItemFactors, ...]
    mean: float
    deviation: float
    least: float
    most: float
    intercept: float
    slope: float
    fit: Fit

    def values(
        self, user_ids: Sequence[str], histories: Sequence[np.ndarray], history_values: Sequence[np.ndarray]
    ) -> np.ndarray:
        """What each item would be worth to these users after these histories, in the column's unit: float32 [B, N].

        histories: item indices, oldest first, B arrays that may be empty; history_values: their values, NaN where there is none.
        """
        assert len(user_ids) == len(histories) == len(history_values)
        fold = np.array([fold_of(user, len(self.folds), self.seed) for user in user_ids], dtype=np.int64)
        values = np.empty((len(fold), len(self.folds[0].biases)), dtype=np.float32)
        for place, items in enumerate(self.folds):
            for rows in batches(np.flatnonzero(fold == place)):
                raw = items.predicted([histories[row] for row in rows], [history_values[row] for row in rows])
                values[rows] = self.intercept + self.slope * raw.clip(self.least, self.most)
        return values


def fit_value_model(dataset: Dataset, column: str, folds: int = FOLDS, seed: int = 0) -> ValueModel:
    """A value model of a column of the log, fitted on training events. seed: deals the users and draws what the fit begins with.

    Raises InputError where the log has no such numbers, or too few to fit anything.
    """
    sequences, values, fold = training_events(dataset, column, folds, seed)
    models, raw, wanted, means = [], [], [], []
    for place in range(folds):
        others, judged = np.flatnonzero(fold != place), np.flatnonzero(fold == place)
        items = fit_items(
            [sequences[user] for user in others], [values[user] for user in others], dataset.n_items, seed
        )
        models.append(items)
        for user in judged:
            predictions, wanted_of_user = predict_newest(items, sequences[user], values[user])
            raw.append(predictions)
            wanted.append(wanted_of_user)
            means.append(np.full(len(predictions), items.mean))
    known = without_nan(values)
    out_of_fold, targets = np.concatenate(raw).clip(known.min(), known.max()), np.concatenate(wanted)
    intercept, slope = rising_line(out_of_fold, targets)
    fit = fit_of(intercept + slope * out_of_fold, targets, np.concatenate(means))
    of_column = float(known.mean()), float(known.std()), float(known.min()), float(known.max())
    return ValueModel(column, seed, tuple(models), *of_column, intercept, slope, fit)


def training_events(
    dataset: Dataset, column: str, folds: int, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Each user's training items, their values, and the users' folds, int64 [users]. Raises InputError where they are too few or all
    the same."""
    users, values = dataset.train_users, dataset.train_values(column)
    where = f"{dataset.folder / 'interactions.parquet'}: column {column!r}"
    known = without_nan(values)
    if not len(known) or known.min() == known.max():
        fault = (
            f"is {known[0]:g} in every training row that has one" if len(known) else "is empty in every training row"
        )
        raise InputError(f"{where} {fault}, so there is nothing to predict; name another one.")
    if not any((~np.isnan(values_of_user)).sum() > 1 for values_of_user in values):
        raise InputError(f"{where}: no user has two training rows with a value; name another one.")
    fold = np.array([fold_of(user, folds, seed) for user in users], dtype=np.int64)
    for place in range(folds):
        known = without_nan([values[user] for user in np.flatnonzero(fold != place)])
        if not len(known) or known.min() == known.max():
            raise InputError(
                f"{where} differs in the training rows of too few users to judge each by others ({len(users)} users in {folds} folds); "
                "give a longer log."
            )
    return dataset.train_sequences, values, fold


def fold_of(user_id: str, folds: int, seed: int) -> int:
    """The fold of a user, whoever else is in the data."""
    digest = hashlib.sha256(f"{seed} {user_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % folds


def fit_items(
    sequences: Sequence[np.ndarray], values: Sequence[np.ndarray], n_items: int, seed: int, sweeps: int = SWEEPS
) -> ItemFactors:
    """Alternate between users and items; the items have the last word. sequences: of item indices; values: theirs, NaN where there is none.

    With z = (value - mean) / deviation of each event, it minimises Σ (z - b_user - b_item - p_user · q_item)² + BIAS_RIDGE (Σ b_user² +
    Σ b_item²) + FACTOR_RIDGE (Σ |p_user|² + Σ |q_item|²).
    """
    known = without_nan(values)
    mean, deviation = float(known.mean()), float(known.std())
    counts, sums = event_matrices(sequences, values, n_items, mean, deviation)
    counts_of_items, sums_of_items = counts.T.tocsr(), sums.T.tocsr()
    items = np.random.default_rng(seed).normal(scale=0.1, size=(n_items, 1 + FACTORS))
    items[:, 0] = 0
    for _ in range(sweeps):
        users = ridge_regressions(counts, sums, with_one(items[:, 1:]), items[:, 0])
        items = ridge_regressions(counts_of_items, sums_of_items, with_one(users[:, 1:]), users[:, 0])
    return ItemFactors(mean, deviation, items[:, 0], items[:, 1:])


def event_matrices(
    sequences: Sequence[np.ndarray], values: Sequence[np.ndarray], n_items: int, mean: float, deviation: float
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """How many events with a value each sequence has with each item, and the sums of their z = (value - mean) / deviation: both sparse
    float64 [B, N]."""
    rows = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    columns, flat = np.concatenate(sequences).astype(np.int64), np.concatenate(values)
    assert columns.shape == flat.shape, f"{len(columns)} items, {len(flat)} values"
    known = ~np.isnan(flat)
    places, shape = (rows[known], columns[known]), (len(sequences), n_items)
    counts = sparse.csr_array((np.ones(int(known.sum())), places), shape=shape)
    return counts, sparse.csr_array(((flat[known] - mean) / deviation, places), shape=shape)


def ridge_regressions(
    counts: sparse.csr_array, sums: sparse.csr_array, features: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """For each row, the bias and factors w that minimise Σ over its events (z - offset - w · feature)² + ridge · w²: float64 [R, 1 + K].

    counts, sums: sparse [R, M], events and sums of their z. features: float64 [M, 1 + K], the first of them 1. offsets: float64 [M].
    """
    M, D = features.shape
    assert counts.shape == sums.shape == (counts.shape[0], M), f"{counts.shape}, {sums.shape}, {features.shape}"
    right = sums @ features - counts @ (features * offsets[:, None])
    products = (features[:, :, None] * features[:, None, :]).reshape(M, D * D)
    weights = np.empty_like(right)
    for rows in batches(np.arange(len(right))):
        left = (counts[rows] @ products).reshape(-1, D, D) + ridge(D)
        weights[rows] = np.linalg.solve(left, right[rows, :, None])[..., 0]
    return weights


def predict_newest(items: ItemFactors, sequence: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A user's NEWEST events with a value, each predicted from those before it, but for the first one: predictions and values, [n]
    each."""
    known = np.flatnonzero(~np.isnan(values))
    at = np.arange(max(1, len(known) - NEWEST), len(known))
    if not len(at):
        return np.empty(0), np.empty(0)
    taken_items, wanted = sequence[known], values[known]
    features, biases = with_one(items.factors[taken_items]), items.biases[taken_items]
    z = (wanted - items.mean) / items.deviation - biases
    left = np.cumsum(features[:, :, None] * features[:, None, :], axis=0)[at - 1] + ridge(features.shape[1])
    right = np.cumsum(features * z[:, None], axis=0)[at - 1]
    users = np.linalg.solve(left, right[..., None])[..., 0]
    return items.mean + items.deviation * (biases[at] + (users * features[at]).sum(1)), wanted[at]


def rising_line(raw: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the least-squares line from raw predictions to values; where it falls, it is level, at the mean."""
    spread = float(((raw - raw.mean()) ** 2).sum())
    slope = max(0.0, float(((raw - raw.mean()) * (values - values.mean())).sum()) / spread) if spread > 0 else 0.0
    return float(values.mean()) - slope * float(raw.mean()), slope


def fit_of(predicted: np.ndarray, values: np.ndarray, means: np.ndarray) -> Fit:
    """Figures of predictions, beside those of the mean alone; all [events]."""
    varies = predicted.std() > 0 and values.std() > 0
    r = float(np.corrcoef(predicted, values)[0, 1]) if varies else 0.0
    rmse, mean_rmse = (float(np.sqrt(((guess - values) ** 2).mean())) for guess in (predicted, means))
    return Fit(len(values), rmse, mean_rmse, r)


def with_one(factors: np.ndarray) -> np.ndarray:
    """1 before the factors [M, K], which a bias is multiplied with: [M, 1 + K]."""
    return np.concatenate([np.ones((len(factors), 1)), factors], axis=1)


def ridge(D: int) -> np.ndarray:
    """The ridge of a bias and D - 1 factors, float64 [D, D]."""
    return np.diag([BIAS_RIDGE, *[FACTOR_RIDGE] * (D - 1)])


def without_nan(values: Sequence[np.ndarray]) -> np.ndarray:
    """All values that are known, one after the other."""
    flat = np.concatenate([np.empty(0), *values])
    return flat[~np.isnan(flat)]


def batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    """ROWS_TOGETHER of them at a time."""
    return (rows[start : start + ROWS_TOGETHER] for start in range(0, len(rows), ROWS_TOGETHER))
