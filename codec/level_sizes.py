"""How many codes a level is worth: its codebook doubles while a doubling takes enough off what is left.

The design document asks whether a level's size can follow the information that it gains. A doubling costs one bit a latent; what it gains
is the share that it takes off the variance left: 1 - 2^(-2/n) at best, for a Gaussian source of n dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sidrec.codec.quantizer import means
from sidrec.tokenizer.kmeans.nearest import distances

LEAST_SIZE = 16


@torch.no_grad()
def sizes_by_gain(latents: Tensor, most: list[int], least_gain: float, rng: np.random.Generator) -> list[int]:
    """Codes of every level, from LEAST_SIZE up to `most` of it, for latents [n, e].

    least_gain: the share of the variance left before a doubling that it must take off.
    """
    assert latents.ndim == 2
    left, sizes = latents.float() - latents.float().mean(0), []
    for largest in most:
        size = min(LEAST_SIZE, largest)
        rest = coded(left, size, rng)
        while 2 * size <= min(largest, len(left) // 2):
            finer = coded(left, 2 * size, rng)
            if variance(finer) > (1 - least_gain) * variance(rest):
                break
            size, rest = 2 * size, finer
        sizes.append(size)
        left = rest
    return sizes


def coded(vectors: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """What a codebook of `size` codes, by k-means, leaves of vectors [n, e]."""
    centres = means(vectors, size, rng)
    return vectors - centres[distances(vectors, centres).argmin(1)]


def variance(vectors: Tensor) -> float:
    return float(vectors.square().mean())
