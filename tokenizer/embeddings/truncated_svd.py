"""The leading singular vectors of a sparse matrix, the same bytes whatever the number of threads."""

from __future__ import annotations

import time

import numpy as np
from scipy import linalg, sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from sidrec.pipeline.screen import LONG_SECONDS, Screen, duration

ITERATIONS, SPARE_COLUMNS = 7, 10  # of the power iteration; the latter is randomized_svd's own
SMALLEST_SINGULAR_VALUE = 1e-6  # relative to the largest; below it a component is rounding noise


def truncated_svd(
    matrix: sparse.csr_array, dim: int, seed: int, screen: Screen | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U [N, D], S [D] and V [M, D] of the largest singular values of `matrix` [N, M]; D is `dim`, or less where its size or rank is less.

    screen: where a line says how long it will take, if that is long.

    The dense parts (of N by dim + 10 numbers) run on one thread: several would sum in another order, and change last bits.
    """
    with threadpool_limits(1):
        if screen is not None:
            announce(matrix, dim, screen)
        left, singular, right = randomized_svd(matrix, min(dim, *matrix.shape), n_iter=ITERATIONS, random_state=seed)
    large = singular > SMALLEST_SINGULAR_VALUE * singular[0]
    return left[:, large], singular[large], right[large].T


def announce(matrix: sparse.csr_array, dim: int, screen: Screen) -> None:
    """Say how long `randomized_svd` will take, measured by one of its iterations, if that is long: it is one call without a bar."""
    start = time.monotonic()
    columns = np.ones((matrix.shape[1], min(dim + SPARE_COLUMNS, *matrix.shape)))
    rows, _ = linalg.lu(matrix @ columns, permute_l=True)
    linalg.lu(matrix.T @ rows, permute_l=True)
    seconds = (ITERATIONS + 1) * (time.monotonic() - start)
    if seconds >= LONG_SECONDS:
        screen.say(f"{screen.stage}: SVD of {matrix.shape[0]:,} x {matrix.shape[1]:,}, about {duration(seconds)} to go")
