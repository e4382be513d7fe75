"""Where codes that are hardly used go on from: residuals of the batch, or k-means of them beside the codes that live."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sidrec.tokenizer.kmeans.nearest import distances


def dead_codes(counts: Tensor, least: Tensor | float, most: int) -> Tensor:
    """Which codes have a count [K] under `least`, bool [K]: no more than the first `most` of them."""
    dead = counts < least
    return dead & (dead.cumsum(0) <= most)


@torch.no_grad()
def new_places(residuals: Tensor, live: Tensor, n_dead: int, rng: np.random.Generator, iterations: int = 0) -> Tensor:
    """Vectors [n_dead, e]: residuals [n, e] drawn without repetition, n >= n_dead, moved by so many iterations of k-means.

    In k-means every residual goes to the nearest of all codes; those of `live` [K - n_dead, e] stand still. A dead code so moves to the
    mean of the residuals that it serves better than a living one.
    """
    places = residuals[torch.from_numpy(rng.permutation(len(residuals))[:n_dead])]
    assert len(places) == n_dead, f"{len(residuals)} residuals for {n_dead} dead codes"
    for _ in range(iterations if n_dead else 0):
        codes = distances(residuals, torch.cat([places, live])).argmin(1)
        counts = torch.bincount(codes, minlength=n_dead + len(live))[:n_dead, None]
        sums = torch.zeros_like(torch.cat([places, live])).index_add_(0, codes, residuals)[:n_dead]
        places = torch.where(counts > 0, sums / counts.clamp_min(1), places)
    return places
