"""The nearest code of every row, the inner loop of every quantizer.

Where the processor is fast in bfloat16 and there is enough to do, products are made in it, and the rows whose two best codes are too
close to tell apart in it are scored again in float32: the codes are those of float32, in half the time.
"""

from __future__ import annotations

import functools
import time

import torch

BLOCK = 2048  # rows scored at once: their scores stay in the cache; a power of two
FEWEST_PRODUCTS = 2**27  # multiplications in a block; bfloat16 gains nothing on fewer
LEAST_WIDTH = 64  # dimensions; the roundings of fewer do not average out
CLEARLY_FASTER = 1.3  # times; processors with the instructions reach 2 to 5
ROUNDING = 2.0**-8  # largest relative error of a number rounded to bfloat16
INPUT_ROUNDING = (
    0.04  # 6 standard deviations of the error that rounded rows and codes give two products, times sqrt(dimensions)
)


def distances(rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None = None) -> torch.Tensor:
    """||c||^2 - 2 r·c (+ price) for rows [n, e] and a codebook [K, e]: [n, K], the squared distance less ||r||^2.

    ||r||^2 is the same for all codes, so that argmin over k is the nearest code.
    """
    assert rows.shape[1] == codebook.shape[1], f"rows {tuple(rows.shape)} and codebook {tuple(codebook.shape)} differ"
    bias = codebook.square().sum(1)
    return torch.addmm(bias if prices is None else bias + prices, rows, codebook.T, alpha=-2)


def nearest_codes(rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None = None) -> torch.Tensor:
    """argmin_k ||r - c_k||^2 (+ price_k), the lowest index among equals: int64 [n]. rows: float32 [n, e]; codebook: float32 [K, e]."""
    K, width = codebook.shape
    worthwhile = width >= LEAST_WIDTH and min(len(rows), BLOCK) * K * width >= FEWEST_PRODUCTS
    if worthwhile and bf16_is_faster():
        return _nearest_through_bf16(rows, codebook, prices)
    if len(rows) == 0:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat([distances(block, codebook, prices).argmin(1) for block in rows.split(BLOCK)])


@functools.cache
def bf16_is_faster() -> bool:
    """Whether this processor has instructions for bfloat16, and a product in it, timed once per process, is clearly faster.

    On a processor with the instructions the best of several timings is far from the limit, so a busy machine does not change the
    answer; should it do so, the codes are the same up to ties within the error of float32.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
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


def _nearest_through_bf16(rows: torch.Tensor, codebook: torch.Tensor, prices: torch.Tensor | None) -> torch.Tensor:
    """As `nearest_codes`. Scores are made positive, and then carry their code in their lowest bits, so that a minimum finds both."""
    n, (K, width) = len(rows), codebook.shape
    low_bits = (K - 1).bit_length()
    mask = (1 << low_bits) - 1
    bias = codebook.square().sum(1) + (0 if prices is None else prices)
    norms = torch.linalg.vector_norm(rows, dim=1)
    lowest = 1.1 * float(norms.max()) ** 2 - (0.0 if prices is None else min(float(prices.min()), 0.0))
    shifted = bias + lowest  # ||c||^2 - 2 r·c >= -||r||^2, so that scores with this bias are positive
    from_inputs = norms * (INPUT_ROUNDING / width**0.5 * float(torch.linalg.vector_norm(codebook, dim=1).max()))
    narrow, codes = (-2 * codebook).bfloat16().T, torch.arange(K, dtype=torch.int32)
    nearest, unsure = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.bool)
    scores_of_block, flags_of_block = torch.empty(min(n, BLOCK), K), torch.empty(min(n, BLOCK), K)
    for start in range(0, n, BLOCK):
        here = slice(start, min(start + BLOCK, n))
        scores, flags = scores_of_block[: here.stop - start], flags_of_block[: here.stop - start]  # [block, K]
        scores.copy_(torch.mm(rows[here].bfloat16(), narrow))
        largest = -scores.amin(1)  # of the products that compete, where they are negative
        coded = scores.add_(shifted).view(torch.int32).bitwise_and_(~mask).bitwise_or_(codes)
        least = coded.amin(1)
        nearest[here] = least & mask
        best = least.view(torch.float32)
        largest = largest.clamp_min(0) + (best - lowest).clamp_min(0)
        limit = best * (1 + 2.0 ** (low_bits - 22)) + 2 * ROUNDING * largest + from_inputs[here]
        unsure[here] = torch.le(scores, limit[:, None], out=flags).sum(1) > 1
    again = unsure.nonzero().flatten()
    for part in again.split(BLOCK):
        nearest[part] = distances(rows[part], codebook, prices).argmin(1)
    return nearest
