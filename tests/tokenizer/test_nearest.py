"""The nearest code, in float32 and through bfloat16: the same codes, for scores of any size."""

import numpy as np
import pytest
import torch

from sidrec.tokenizer.kmeans import nearest
from sidrec.tokenizer.kmeans.nearest import NearestThroughBf16, bf16_is_faster, distances, nearest_codes, nearest_in


def exact(rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None = None) -> torch.Tensor:
    """Distances of every pair in float64, [n, K]."""
    squared = torch.cdist(rows.double(), codebook.double()).square()
    return squared if prices is None else squared + prices.double()


def clusters(n_rows: int, n_codes: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows, every one about as near to one code as to another."""
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(n_codes, width, generator=generator)
    near, other = torch.randint(0, n_codes, (2, n_rows), generator=generator)
    share = 1 + 0.02 * torch.randn(n_rows, 1, generator=generator)
    rows = codebook[near] + share * codebook[other] + 0.5 * torch.randn(n_rows, width, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True), 0.7 * codebook / codebook.norm(dim=1, keepdim=True)


def test_distances_are_squared_distances_less_the_length_of_the_row() -> None:
    rows, codebook = clusters(20, 6, 5, seed=0)
    prices = torch.arange(6.0)
    expected = exact(rows, codebook, prices) - rows.double().square().sum(1, keepdim=True)
    torch.testing.assert_close(distances(rows, codebook, prices).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_rows", [0, 1, 2047, 2048, 5000])
def test_nearest_is_the_argmin_whatever_the_number_of_rows(n_rows: int) -> None:
    rows, codebook = clusters(5000, 12, 8, seed=1)
    expected = exact(rows[:n_rows], codebook).argmin(1)
    assert torch.equal(nearest_codes(rows[:n_rows], codebook), expected)


def chosen_costs(
    rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """What the code found through bfloat16 costs, and what the best one costs."""
    every = exact(rows, codebook, prices)
    nearest = NearestThroughBf16(codebook, prices)(rows)
    return every[torch.arange(len(rows)), nearest].numpy(), every.min(1).values.numpy()


@pytest.mark.parametrize(("n_codes", "width"), [(256, 64), (256, 384), (300, 128), (2, 64), (1, 64)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_codes_through_bf16_are_those_of_float32(n_codes: int, width: int, scale: float) -> None:
    """Equal but for ties within the error of float32; rounding alone would change some codes."""
    rows, codebook = (scale * tensor for tensor in clusters(3000, n_codes, width, seed=n_codes))
    costs, best = chosen_costs(rows, codebook, None)
    np.testing.assert_allclose(costs, best, rtol=0, atol=4e-6 * scale**2)
    if n_codes > 1:
        rounded = (codebook.square().sum(1) + rows.bfloat16() @ (-2 * codebook).bfloat16().T).argmin(1)
        assert int((rounded != exact(rows, codebook).argmin(1)).sum()) > 0


def test_rows_and_codes_of_very_different_lengths() -> None:
    """Items about which nothing is known lie near the origin; a residual's codebook has short and long codes."""
    rows, codebook = clusters(3000, 256, 128, seed=2)
    rows[::3] *= 1e-4
    rows[1] = 0
    codebook[::2] *= 0.01
    costs, best = chosen_costs(rows, codebook, None)
    np.testing.assert_allclose(costs, best, rtol=0, atol=2e-6)


@pytest.mark.parametrize("offset", [0.0, -3.0, 5.0])
def test_prices_count_through_bf16(offset: float) -> None:
    rows, codebook = clusters(3000, 256, 128, seed=3)
    prices = offset + 0.3 * torch.rand(256, generator=torch.Generator().manual_seed(0))
    prices[7] = 1e9  # a code that nothing may take
    costs, best = chosen_costs(rows, codebook, prices)
    np.testing.assert_allclose(costs, best, rtol=0, atol=4e-6)
    assert not torch.equal(NearestThroughBf16(codebook, prices)(rows), NearestThroughBf16(codebook, None)(rows))


def test_equal_codes_give_the_lowest_index() -> None:
    rows, codebook = clusters(3000, 128, 64, seed=4)
    twice = torch.cat([codebook, codebook])
    assert int(NearestThroughBf16(twice, None)(rows).max()) < 128
    assert int(nearest_codes(rows, twice).max()) < 128


def test_bf16_is_for_large_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo and MovieLens are far below the limit, so that their codes are those of float32 bit for bit."""
    monkeypatch.setattr(nearest, "bf16_is_faster", lambda: True)
    through = [
        isinstance(nearest_in(torch.zeros(shape)), NearestThroughBf16) for shape in ((128, 128), (256, 256), (4096, 32))
    ]
    assert through == [False, True, False]


def test_bf16_needs_the_instructions_and_a_clearly_faster_product(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.bfloat16: 1.0, torch.float32: 2.0}
    monkeypatch.setattr(nearest, "_seconds_of_product", lambda dtype: seconds[dtype])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    answers = []
    for instructions, float32 in ((True, 2.0), (True, 1.2), (False, 2.0)):
        seconds[torch.float32] = float32
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_them=instructions: has_them)
        bf16_is_faster.cache_clear()
        answers.append(bf16_is_faster())
    bf16_is_faster.cache_clear()
    assert answers == [True, False, False]
