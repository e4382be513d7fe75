"""InfoNCE between sources: the written formula, its gradient by finite differences, and what it rewards."""

import math

import pytest
import torch

from sidrec.tokenizer.autoencoders.alignment import SHARPNESS, alignment_loss, info_nce


def latents(seed: int, n: int = 6, e: int = 4) -> torch.Tensor:
    return torch.randn(n, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written(first: torch.Tensor, second: torch.Tensor) -> float:
    """-log softmax at the own partner, both ways, row by row."""

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    total, n = 0.0, len(first)
    for anchors, partners in ((first, second), (second, first)):
        for i in range(n):
            scores = [math.exp(cosine(anchors[i], partners[j]) / SHARPNESS) for j in range(n)]
            total -= math.log(scores[i] / sum(scores))
    return total / (2 * n)


def test_it_equals_the_written_formula() -> None:
    assert float(info_nce(latents(0), latents(1))) == pytest.approx(written(latents(0), latents(1)), rel=1e-9)


def test_its_gradient_is_that_of_finite_differences() -> None:
    first, second = latents(0).requires_grad_(), latents(1).requires_grad_()
    assert torch.autograd.gradcheck(info_nce, (first, second))


def test_partners_that_agree_cost_less_than_partners_of_other_items() -> None:
    first = latents(2)
    assert float(info_nce(first, 3 * first)) < 0.1 < 2 < float(info_nce(first, first.roll(1, 0)))


def test_three_sources_are_the_mean_of_three_pairs() -> None:
    a, b, c = latents(0), latents(1), latents(2)
    expected = (written(a, b) + written(a, c) + written(b, c)) / 3
    assert float(alignment_loss(torch.cat([a, b, c], 1), [4, 4, 4])) == pytest.approx(expected, rel=1e-9)
