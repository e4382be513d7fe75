"""The leading singular vectors of a sparse matrix, the same bytes whatever the number of threads."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

SMALLEST_SINGULAR_VALUE = 1e-6  # relative to the largest; below it a component is rounding noise


def truncated_svd(matrix: sparse.csr_array, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """U [N, D] and S [D] of the largest singular values of `matrix` [N, M]; D is `dim`, or less where its size or rank is less.

    The dense parts (of N by dim + 10 numbers) run on one thread: several would sum in another order, and change last bits.
    """
    with threadpool_limits(1):
        left, singular, _ = randomized_svd(matrix, min(dim, *matrix.shape), n_iter=7, random_state=seed)
    large = singular > SMALLEST_SINGULAR_VALUE * singular[0]
    return left[:, large], singular[large]
