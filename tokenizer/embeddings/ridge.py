"""Ridge regression in closed form: vectors of one kind from vectors of another, such as who takes an item from what its text says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg
from threadpoolctl import threadpool_limits

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-6, 7))  # .001 … 1000, of rows of length 1
FEWEST_ROWS = 3  # from which a line may be drawn, and one left out


@dataclass(frozen=True)
class Ridge:
    """y = intercept + x @ weights. weights: float64 [D, E]. intercept: float64 [E]. penalty: which of PENALTIES was chosen. explained: the
    share of the variance that rows left out are predicted with; 0 says no more than their mean, and it may be below."""

    weights: np.ndarray
    intercept: np.ndarray
    penalty: float
    explained: float

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray) -> Ridge:
        """The weights W that minimise |y - ȳ - (x - x̄) W|² + penalty · |W|², the intercept left free.

        x: [n, D]. y: [n, E]. The penalty is the one of PENALTIES with the least squared error of leaving one row out, which the diagonal of
        the hat matrix gives without another fit: (y - ŷ) / (1 - h). One thread: several would sum in another order.
        """
        assert len(x) == len(y) >= FEWEST_ROWS, f"{len(x)} and {len(y)} rows"
        x, y = x.astype(np.float64), y.astype(np.float64)
        x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
        centred, rest = x - x_mean, y - y_mean
        with threadpool_limits(1):
            squares, axes = linalg.eigh(centred.T @ centred)
            along, errors = centred @ axes, []  # [n, D]
            targets = along.T @ rest
            for penalty in PENALTIES:
                shrunk = 1 / (squares.clip(min=0) + penalty)
                leverage = (along**2 @ shrunk + 1 / len(x)).clip(max=1 - 1e-9)
                errors.append(
                    float((((rest - along @ (shrunk[:, None] * targets)) / (1 - leverage)[:, None]) ** 2).sum())
                )
            best = int(np.argmin(errors))
            weights = axes @ (targets / (squares.clip(min=0) + PENALTIES[best])[:, None])
            intercept = y_mean - x_mean @ weights
        of_mean = float(((rest * len(x) / (len(x) - 1)) ** 2).sum())
        return cls(weights, intercept, PENALTIES[best], 1 - errors[best] / max(of_mean, 1e-300))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """float64 [n, E]. x: [n, D]."""
        with threadpool_limits(1):
            predicted: np.ndarray = self.intercept + x.astype(np.float64) @ self.weights
        return predicted
