"""A codebook whose vectors follow a moving average of the residuals coded by them, instead of a gradient.

With count_k residuals of sum s_k coded by k in a batch (van den Oord et al., arXiv 1711.00937; with dead codes replaced: SoundStream,
arXiv 2107.03312):

    n_k ← decay n_k + (1 - decay) count_k        m_k ← decay m_k + (1 - decay) s_k
    C_k = m_k / ñ_k        ñ_k = (n_k + ε) / (n + K ε) · n        n = sum_k n_k                    (Laplace smoothing)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.tokenizer.autoencoders.dead_codes import dead_codes, new_places

SMOOTHING = 1e-5  # ε


class EmaCodebook(nn.Module):
    """One level's vectors [K, e]. Everything is a buffer: no optimizer moves it, a checkpoint holds it."""

    weight: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, start: Tensor, decay: float, rows_per_step: int) -> None:
        super().__init__()
        self.decay, self.expected = decay, rows_per_step / len(start)
        self.register_buffer("weight", torch.empty_like(start))
        self.register_buffer("counts", torch.empty(len(start)))
        self.register_buffer("sums", torch.empty_like(start))
        self.start(start)

    def start(self, vectors: Tensor) -> None:
        """Take `vectors` [K, e], as if every code had had an equal share of all batches before: n_k = rows per step / K.

        Counts that start at 0 would make all codes look dead in the first steps.
        """
        self.weight.copy_(vectors)
        self.counts.fill_(self.expected)
        self.sums.copy_(vectors * self.expected)

    def vectors(self) -> Tensor:
        """[K, e]."""
        return self.weight

    def penalty(self) -> Tensor:
        """No part of the loss."""
        return self.weight.new_zeros(())

    @torch.no_grad()
    def observe(self, residuals: Tensor, codes: Tensor) -> None:
        """Move the averages by one batch. residuals: [n, e]; codes: int64 [n]."""
        counts = torch.bincount(codes, minlength=len(self.weight)).to(self.counts.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, residuals)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) / (total + len(self.counts) * SMOOTHING) * total
        self.weight.copy_(self.sums / smoothed[:, None])

    @torch.no_grad()
    def revive(self, residuals: Tensor, share: float, rng: np.random.Generator, iterations: int = 0) -> int:
        """Move codes with a count under `share` of an equal one to `new_places` among residuals [n, e]. Returns how many.

        iterations: of k-means there.
        """
        dead = dead_codes(self.counts, share * self.expected, len(residuals))
        places = new_places(residuals, self.weight[~dead], int(dead.sum()), rng, iterations)
        self.weight[dead] = places
        self.counts[dead] = self.expected
        self.sums[dead] = places * self.expected
        return len(places)
