"""Soft assignment: the weights' formula, its two limits, its invariance, and where gradients go."""

import numpy as np
import pytest
import torch

from sidrec.tokenizer.autoencoders.soft_assignment import SoftAssignment, nearest_gaps
from sidrec.tokenizer.kmeans.nearest import distances


def rows_and_codes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(30, 5, generator=generator), torch.randn(8, 5, generator=generator)


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
    weights = SoftAssignment(top_k, 1.0, 0.01).weights(rows, vectors, temperature)
    np.testing.assert_allclose(weights.numpy(), written(rows, vectors, temperature, top_k), atol=1e-5)
    assert int((weights > 0).sum(1).max()) <= (top_k or 8)


@pytest.mark.parametrize("top_k", [None, 4])
def test_the_limits_are_the_nearest_code_and_the_plain_mean(top_k: int | None) -> None:
    rows, vectors = rows_and_codes()
    soft = SoftAssignment(top_k, 1.0, 0.01)
    nearest = torch.cdist(rows, vectors).topk(top_k or 8, largest=False).indices
    torch.testing.assert_close(soft.mixture(rows, vectors, 1e-6), vectors[nearest[:, 0]])
    torch.testing.assert_close(soft.mixture(rows, vectors, 1e6), vectors[nearest].mean(1), atol=1e-4, rtol=0)


def test_weights_do_not_depend_on_the_scale_of_the_data() -> None:
    rows, vectors = rows_and_codes()
    soft = SoftAssignment(None, 1.0, 0.01)
    large = soft.weights(1000 * rows, 1000 * vectors, 0.5)
    torch.testing.assert_close(large, soft.weights(rows, vectors, 0.5), atol=1e-4, rtol=0)


def test_gradients_reach_the_codes_with_the_weights_as_constants_and_the_rows_not_at_all() -> None:
    """d/dC ||Q C - r||^2 = 2 Q^T (Q C - r)."""
    rows, vectors = rows_and_codes()
    rows.requires_grad_()
    vectors.requires_grad_()
    soft = SoftAssignment(None, 1.0, 0.01)
    mixture = soft.mixture(rows, vectors, 0.7)
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
    weights = SoftAssignment(None, 1.0, 0.01).weights(torch.ones(4, 3), torch.ones(5, 3), 0.1)
    torch.testing.assert_close(weights, torch.full((4, 5), 0.2))


def test_gaps() -> None:
    rows, vectors = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [-2.0], [10.0]])
    assert nearest_gaps(distances(rows, vectors)).tolist() == pytest.approx([4 - 1, 25 - 4])
