"""The nearest code of every row, the inner loop of every quantizer.

Where the processor is fast in bfloat16 and there is enough to do, products are made in it, and the rows whose two best codes are too
close to tell apart in it are scored again in float32: the codes are those of float32, in half the time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from sidrec.pipeline.precision import has_bf16

BLOCK = 2048  # rows scored at once: their scores stay in the cache; a power of two
FEWEST_PRODUCTS = 2**27  # multiplications in a block; bfloat16 gains nothing on fewer
LEAST_WIDTH = 64  # dimensions; the roundings of fewer do not average out
CLEARLY_FASTER = 1.3  # times; processors with the instructions reach 2 to 5
ROUNDING = 2.0**-8  # largest relative error of a number rounded to bfloat16
INPUT_ROUNDING = (
    0.04  # 6 standard deviations of the error that rounded rows and codes give two products, times sqrt(dimensions)
)


def distances(
    rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """||c||^2 - 2 r·c (+ price) for rows [n, e] and a codebook [K, e]: [n, K], the squared distance less ||r||^2.

    ||r||^2 is the same for all codes, so that argmin over k is the nearest code. out: where to write them.
    """
    assert rows.shape[1] == codebook.shape[1], f"rows {tuple(rows.shape)} and codebook {tuple(codebook.shape)} differ"
    bias = codebook.square().sum(1)
    return torch.addmm(bias if prices is None else bias + prices, rows, codebook.T, alpha=-2, out=out)


def nearest_codes(rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None = None) -> torch.Tensor:
    """argmin_k ||r - c_k||^2 (+ price_k), the lowest index among equals: int64 [n]. rows: float32 [n, e]; codebook: float32 [K, e]."""
    return nearest_in(codebook, prices)(rows)


def nearest_in(codebook: torch.Tensor, prices: torch.Tensor | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """`nearest_codes` of one codebook, prepared for rows that come in pieces."""
    products_of_block = BLOCK * codebook.numel()
    if codebook.shape[1] >= LEAST_WIDTH and products_of_block >= FEWEST_PRODUCTS and bf16_is_faster():
        return NearestThroughBf16(codebook, prices)
    return lambda rows: _nearest_in_float32(rows, codebook, prices)


def _nearest_in_float32(rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None) -> torch.Tensor:
    blocks = [distances(block, codebook, prices).argmin(1) for block in rows.split(BLOCK)]
    return torch.cat(blocks) if len(rows) else torch.empty(0, dtype=torch.int64)


@functools.cache
def bf16_is_faster() -> bool:
    """Whether this processor has instructions for bfloat16, and a product in it, timed once per process, is clearly faster.

    On a processor with the instructions the best of several timings is far from the limit, so a busy machine does not change the
    answer; should it do so, the codes are the same up to ties within the error of float32.
    """
    if not has_bf16("cpu"):
        return False
    return _seconds_of_product(torch.bfloat16) * CLEARLY_FASTER < _seconds_of_product(torch.float32)


def _seconds_of_product(dtype: torch.dtype) -> float:
    """The best of several timings of a [1024, 384] by [384, 256] product, after one to warm up."""
    rows, codes = torch.full((1024, 384), 0.5, dtype=dtype), torch.full((256, 384), 0.5, dtype=dtype)
    best = float("inf")
    for trial in range(9):
        start = time.perf_counter()
        torch.mm(rows, codes.T)
        if trial:
            best = min(best, time.perf_counter() - start)
    return best


class NearestThroughBf16:
    """As `nearest_codes`. Scores are made positive, and then carry their code in their lowest bits, so that a minimum finds both."""

    def __init__(self, codebook: torch.Tensor, prices: torch.Tensor | None) -> None:
        K, width = codebook.shape
        self.codebook, self.prices = codebook, prices
        bias = codebook.square().sum(1) + (0 if prices is None else prices)
        self.narrow_bias = bias.bfloat16()
        self.rest_of_bias = bias - self.narrow_bias
        self.lowest_price = 0.0 if prices is None else min(float(prices.min()), 0.0)
        self.narrow = (-2 * codebook).bfloat16().T  # [e, K]
        self.input_rounding = INPUT_ROUNDING / width**0.5 * float(torch.linalg.vector_norm(codebook, dim=1).max())
        self.low_bits = (K - 1).bit_length()
        self.codes = torch.arange(K, dtype=torch.int32)
        self.scores, self.flags = torch.empty(BLOCK, K), torch.empty(BLOCK, K)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: float32 [n, e]. Returns int64 [n]."""
        pieces = [self._of_block(block) for block in rows.split(BLOCK)]
        return torch.cat(pieces) if len(rows) else torch.empty(0, dtype=torch.int64)

    def _of_block(self, rows: torch.Tensor) -> torch.Tensor:
        scores, flags = self.scores[: len(rows)], self.flags[: len(rows)]  # [n, K]
        norms = torch.linalg.vector_norm(rows, dim=1)
        shift = 1.1 * float(norms.max()) ** 2 - self.lowest_price  # ||c||^2 - 2 r·c >= -||r||^2: makes scores positive
        mask = (1 << self.low_bits) - 1
        scores.copy_(torch.addmm(self.narrow_bias, rows.bfloat16(), self.narrow)).add_(self.rest_of_bias + shift)
        coded = scores.view(torch.int32).bitwise_and_(~mask).bitwise_or_(self.codes)
        least = coded.amin(1)
        best = least.view(torch.float32)
        rounding = 2 * ROUNDING * (best - shift).abs() + self.input_rounding * norms  # of two scores near the best
        limit = best * (1 + 2.0 ** (self.low_bits - 22)) + rounding
        nearest = least.bitwise_and(mask).long()
        unsure = (torch.le(scores, limit[:, None], out=flags).sum(1) > 1).nonzero().flatten()
        if len(unsure):
            nearest[unsure] = distances(rows[unsure], self.codebook, self.prices).argmin(1)
        return nearest
