"""Soft k-means and the Gaussian mixture of one width: EM step by step, the likelihood, scikit-learn's step, the limit, the start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from sidrec.tokenizer.autoencoders.fitting import start_codebooks
from sidrec.tokenizer.kmeans import residual_kmeans
from sidrec.tokenizer.kmeans.soft_kmeans import fit, soft_kmeans
from sidrec.tokenizer.quantizers import QUANTIZERS


def cloud(n: int = 300, d: int = 4, seed: int = 0, noise: float = 0.7) -> np.ndarray:
    """[n, d] around eight centres, some with many more rows than others."""
    rng = np.random.default_rng(seed)
    which = rng.choice(8, n, p=np.arange(1, 9) / 36)
    return (2 * rng.standard_normal((8, d))[which] + noise * rng.standard_normal((n, d))).astype(np.float32)


def em(rows: np.ndarray, centres: np.ndarray, iterations: int, learn_shares: bool) -> tuple[np.ndarray, list[float]]:
    """Centres, and the log-likelihood of each iteration's mixture: densities of Gaussians written out, rows in a loop."""
    n, d = rows.shape
    shares = np.full(len(centres), 1 / len(centres))
    width = ((rows[:, None] - centres) ** 2).sum(2).min(1).mean() / d
    likelihoods = []
    for _ in range(iterations):
        density = np.stack([
            shares * np.exp(-((row - centres) ** 2).sum(1) / (2 * width)) / (2 * np.pi * width) ** (d / 2) for row in rows
        ])  # fmt: skip
        likelihoods.append(float(np.log(density.sum(1)).sum()))
        q = density / density.sum(1, keepdims=True)
        centres = np.stack([(q[:, [k]] * rows).sum(0) / q[:, k].sum() for k in range(len(centres))])
        width = sum((q[:, k] * ((rows - centres[k]) ** 2).sum(1)).sum() for k in range(len(centres))) / (n * d)
        shares = q.mean(0) if learn_shares else shares
    return centres, likelihoods


@pytest.mark.parametrize("learn_shares", [False, True])
def test_every_iteration_is_em_and_the_likelihood_never_falls(learn_shares: bool) -> None:
    rows, start = cloud(), cloud(6, seed=1)
    for iterations in (1, 2, 15):
        wanted, likelihoods = em(rows.astype(np.float64), start.astype(np.float64), iterations, learn_shares)
        measured = soft_kmeans(torch.from_numpy(rows), torch.from_numpy(start), iterations, learn_shares)
        np.testing.assert_allclose(measured.numpy(), wanted, atol=1e-4)
    assert (np.diff(likelihoods) > -1e-9).all()
    assert likelihoods[-1] > likelihoods[0] + 10


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_one_iteration_is_scikit_learns() -> None:
    rows, start = cloud(), cloud(6, seed=1)
    width = ((rows[:, None] - start) ** 2).sum(2).min(1).mean() / 4
    mixture = GaussianMixture(
        6, covariance_type="spherical", means_init=start, weights_init=np.full(6, 1 / 6), max_iter=1, reg_covar=0.0,
        precisions_init=np.full(6, 1 / width), init_params="random_from_data", random_state=0,
    ).fit(rows.astype(np.float64))  # fmt: skip
    measured = soft_kmeans(torch.from_numpy(rows), torch.from_numpy(start), 1, True)
    np.testing.assert_allclose(measured.numpy(), mixture.means_, atol=1e-4)


def test_far_apart_it_is_kmeans() -> None:
    rows = cloud(noise=0.01)
    (book,) = residual_kmeans.fit(rows, [8], 0).books
    soft = soft_kmeans(torch.from_numpy(rows), torch.from_numpy(book), 10, False).numpy()
    codes = ((rows[:, None] - soft) ** 2).sum(2).argmin(1)
    for k in np.unique(codes):
        np.testing.assert_allclose(soft[k], rows[codes == k].mean(0), atol=1e-2)


def test_a_code_without_rows_stays_and_equal_rows_give_finite_codes() -> None:
    rows = torch.from_numpy(cloud(noise=0.1))
    start = torch.cat([rows[:3], torch.full((1, 4), 1e4)])
    assert torch.equal(soft_kmeans(rows, start, 5, True)[3], start[3])
    assert soft_kmeans(torch.ones(9, 3), torch.ones(2, 3), 5, True).isfinite().all()


def test_levels_are_of_the_residuals_of_the_nearest_codes() -> None:
    rows = cloud()
    first, second = fit(rows, [8, 5], 3).books
    left = rows - first[((rows[:, None] - first) ** 2).sum(2).argmin(1)]
    start = residual_kmeans.fit(left, [5], 4).books[0]
    wanted = soft_kmeans(torch.from_numpy(left), torch.from_numpy(start), 10, False)
    np.testing.assert_allclose(second, wanted.numpy(), atol=1e-4)
    assert np.array_equal(fit(rows, [8, 5], 3).books[1], second)


@pytest.mark.parametrize("init", ["soft_kmeans", "gmm"])
@pytest.mark.parametrize("changed", [{}, {"shared_codebook": True}, {"groups": 2}], ids=str)
def test_codebooks_start_from_it(init: str, changed: dict[str, Any]) -> None:
    books = {}
    for name in (init, "kmeans"):
        chosen = QUANTIZERS["rqvae"](e_dim=4, hidden_sizes=[8], codebook_init=name, **changed)  # type: ignore[call-arg]
        model = chosen.build(cloud(), [8, 8], 0)  # type: ignore[attr-defined]
        start_codebooks(model, chosen, cloud(), [8, 8], 0)  # type: ignore[arg-type]
        books[name] = model.quantizer().codebooks.books
        latents = model.quantizer().latents(cloud())[:]
    if not changed:
        wanted = fit(latents, [8, 8], 0, chosen, learn_shares=init == "gmm").books  # type: ignore[arg-type]
        for book, of_fit in zip(books[init], wanted, strict=True):
            np.testing.assert_array_equal(book, of_fit)
    assert not any(np.allclose(book, hard, atol=1e-4) for book, hard in zip(*books.values(), strict=True))
