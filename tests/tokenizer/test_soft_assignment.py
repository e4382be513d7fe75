"""Soft assignment: the weights' formula, its two limits, its invariance, and where gradients go."""

import numpy as np
import pytest
import torch

from sidrec.tokenizer.autoencoders.soft_assignment import SoftAssignment, nearest_gaps
from sidrec.tokenizer.kmeans.nearest import distances


def rows_and_codes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(30, 5, generator=generator), torch.randn(8, 5, generator=generator)


def at(temperature: float, top_k: int | None = None) -> SoftAssignment:
    """With weights by distance, at one temperature."""
    return SoftAssignment(top_k, temperature, temperature)


def written(rows: torch.Tensor, vectors: torch.Tensor, temperature: float, top_k: int | None) -> np.ndarray:
    """softmax(-d / (T g)) over the nearest top_k, in numpy, from full squared distances."""
    d = ((rows.double().numpy()[:, None] - vectors.double().numpy()) ** 2).sum(-1)
    ordered = np.sort(d, axis=1)
    gap = (ordered[:, 1] - ordered[:, 0]).mean()
    weights = np.exp(-(d - ordered[:, :1]) / (temperature * gap))
    weights[d > ordered[:, [(top_k or d.shape[1]) - 1]]] = 0
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("top_k", [None, 1, 3, 8])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_weights_equal_the_written_formula(top_k: int | None, temperature: float) -> None:
    rows, vectors = rows_and_codes()
    weights = at(temperature, top_k).weights(rows, vectors, 0.3)
    np.testing.assert_allclose(weights.numpy(), written(rows, vectors, temperature, top_k), atol=1e-5)
    assert int((weights > 0).sum(1).max()) <= (top_k or 8)


@pytest.mark.parametrize("top_k", [None, 4])
def test_the_limits_are_the_nearest_code_and_the_plain_mean(top_k: int | None) -> None:
    rows, vectors = rows_and_codes()
    nearest = torch.cdist(rows, vectors).topk(top_k or 8, largest=False).indices
    cold, hot = (at(temperature, top_k).weights(rows, vectors, 0.3) @ vectors for temperature in (1e-6, 1e6))
    torch.testing.assert_close(cold, vectors[nearest[:, 0]])
    torch.testing.assert_close(hot, vectors[nearest].mean(1), atol=1e-4, rtol=0)


def test_weights_do_not_depend_on_the_scale_of_the_data() -> None:
    rows, vectors = rows_and_codes()
    for form in ("softmax", "sinkhorn"):
        soft = SoftAssignment(None, 1.0, 0.01, form)
        large = soft.weights(1000 * rows, 1000 * vectors, 0.2)
        torch.testing.assert_close(large, soft.weights(rows, vectors, 0.2), atol=1e-4, rtol=0)


def test_gradients_reach_the_codes_with_the_weights_as_constants_and_the_rows_not_at_all() -> None:
    """d/dC ||Q C - r||^2 = 2 Q^T (Q C - r)."""
    rows, vectors = rows_and_codes()
    rows.requires_grad_()
    vectors.requires_grad_()
    mixture = at(0.7).weights(rows, vectors, 0.3) @ vectors
    (mixture - rows.detach()).square().sum().backward()
    assert rows.grad is None
    weights = torch.from_numpy(written(rows.detach(), vectors.detach(), 0.7, None)).float()
    torch.testing.assert_close(vectors.grad, 2 * weights.T @ (weights @ vectors - rows).detach(), atol=1e-4, rtol=1e-4)


def test_the_temperature_falls_geometrically() -> None:
    soft = SoftAssignment(None, 4.0, 0.01)
    temperatures = [soft.temperature(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert temperatures[0] == pytest.approx(4.0)
    assert temperatures[-1] == pytest.approx(0.01)
    ratios = np.array(temperatures[1:]) / np.array(temperatures[:-1])
    np.testing.assert_allclose(ratios, (0.01 / 4.0) ** 0.25)


def test_equal_codes_give_equal_finite_weights() -> None:
    for form in ("softmax", "sinkhorn"):
        weights = SoftAssignment(None, 0.1, 0.1, form).weights(torch.ones(4, 3), torch.ones(5, 3), 0.1)
        torch.testing.assert_close(weights, torch.full((4, 5), 0.2))


@pytest.mark.parametrize("temperature", [0.5, 20.0])
def test_sinkhorn_weights_are_the_scaled_kernel_and_use_the_codes_alike(temperature: float) -> None:
    """exp(-d / (T g)) scaled by turns in numpy; every code has n / K rows in sum."""
    rows, vectors = rows_and_codes()
    weights = SoftAssignment(None, temperature, temperature, "sinkhorn", 500).weights(rows, vectors, 0.3)
    d = ((rows.double().numpy()[:, None] - vectors.double().numpy()) ** 2).sum(-1)
    ordered = np.sort(d, axis=1)
    kernel = np.exp(-(d - ordered[:, :1]) / (temperature * (ordered[:, 1] - ordered[:, 0]).mean()))
    for _ in range(500):
        kernel = kernel / kernel.sum(1, keepdims=True)
        kernel = kernel / kernel.sum(0, keepdims=True) * 30 / 8
    np.testing.assert_allclose(weights.numpy(), kernel / kernel.sum(1, keepdims=True), atol=1e-4)
    np.testing.assert_allclose(weights.sum(0).numpy(), np.full(8, 30 / 8), rtol=1e-3)
    assert not np.allclose(weights.numpy(), written(rows, vectors, temperature, None), atol=1e-2)
    few = SoftAssignment(3, temperature, temperature, "sinkhorn", 500).weights(rows, vectors, 0.3)
    largest = np.where(kernel >= np.sort(kernel, axis=1)[:, [-3]], kernel, 0)
    np.testing.assert_allclose(few.numpy(), largest / largest.sum(1, keepdims=True), atol=1e-4)


def test_uniform_weights_are_shared_by_the_nearest_k_and_k_falls_to_1() -> None:
    rows, vectors = rows_and_codes()
    soft = SoftAssignment(4, 1.0, 0.01, "uniform")
    order = torch.cdist(rows, vectors).argsort(1)
    for progress, k in ((0.0, 4), (0.2, 4), (0.3, 3), (0.6, 2), (0.8, 1), (1.0, 1)):
        weights = soft.weights(rows, vectors, progress)
        wanted = torch.zeros(30, 8).scatter(1, order[:, :k], 1 / k)
        torch.testing.assert_close(weights, wanted)


def test_learnt_weights_belong_to_ranks_and_learn_by_the_codebook_loss() -> None:
    """d/da of sum ||sum_j w_j c_(j) - r||^2 with w = softmax(a), by hand: w_j (h_j - sum_i w_i h_i), h_j = 2 sum (mixture - r) · c_(j)."""
    rows, vectors = rows_and_codes()
    soft, ranks = SoftAssignment(3, 1.0, 0.01, "learnt"), torch.tensor([0.5, -0.2, 0.1], requires_grad=True)
    nearest = torch.cdist(rows, vectors).argsort(1)[:, :3]
    mixture = soft.weights(rows, vectors, 0.0, ranks) @ vectors
    w = torch.softmax(ranks.detach(), 0)
    torch.testing.assert_close(mixture, (w[:, None] * vectors[nearest]).sum(1))
    (mixture - rows).square().sum().backward()
    h = 2 * ((mixture - rows).detach()[:, None] * vectors[nearest]).sum((0, 2))
    torch.testing.assert_close(ranks.grad, w * (h - (w * h).sum()), rtol=1e-4, atol=1e-4)
    last = soft.weights(rows, vectors, 1.0, ranks)
    assert torch.equal(last.argmax(1), nearest[:, 0])
    assert torch.equal(last.max(1).values, torch.ones(30))


def test_gaps() -> None:
    rows, vectors = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [-2.0], [10.0]])
    assert nearest_gaps(distances(rows, vectors)).tolist() == pytest.approx([4 - 1, 25 - 4])
