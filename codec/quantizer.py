"""Latents become codes: at every level the nearest vector of a codebook to what the levels before have left.

The codebooks are the tokenizer's own (`EmaCodebook`): they follow moving averages of what they code, and codes that are hardly used go on
from the means of a few latents of the batch (arXiv 1711.00937, 2107.03312, 2203.01941).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional

from sidrec.codec.settings import CodecQuantizerSettings
from sidrec.tokenizer.autoencoders.dead_codes import new_places
from sidrec.tokenizer.autoencoders.ema_codebook import EmaCodebook
from sidrec.tokenizer.autoencoders.training import perplexity
from sidrec.tokenizer.kmeans.nearest import distances

START_ITERATIONS = 8  # of k-means, for the codebooks' start
AVERAGED = 4  # latents whose mean a dead code goes on from


@dataclass(frozen=True)
class QuantizedLatents:
    """codes: int64 [n, L]. vectors: [n, e], the sum of the codes' vectors, with the gradient straight through. commitment: scalar.

    residuals: what each level coded, [n, e] a level.
    """

    codes: Tensor
    vectors: Tensor
    commitment: Tensor
    residuals: list[Tensor]


class ResidualQuantizer(nn.Module):
    """L codebooks [K_l, e], one for each level or one for all."""

    def __init__(self, latent_dim: int, settings: CodecQuantizerSettings, rows_per_step: int) -> None:
        super().__init__()
        self.settings, self.sizes = settings, list(settings.codebook_sizes)
        books = self.sizes[:1] if settings.share_codebooks else self.sizes
        n_coding = len(self.sizes) if settings.share_codebooks else 1
        self.codebooks = nn.ModuleList(
            EmaCodebook(torch.zeros(size, latent_dim), settings.ema_decay, rows_per_step * n_coding) for size in books
        )

    def book(self, level: int) -> EmaCodebook:
        book = self.codebooks[0 if self.settings.share_codebooks else level]
        assert isinstance(book, EmaCodebook)
        return book

    @property
    def bits(self) -> float:
        """Bits a latent when every code is as long as log2 of its level's size."""
        return float(np.log2(self.sizes).sum())

    def forward(self, latents: Tensor) -> QuantizedLatents:
        """latents: [n, e]."""
        assert latents.ndim == 2
        left, chosen, codes, residuals, losses = latents, torch.zeros_like(latents), [], [], []
        for level in range(len(self.sizes)):
            vectors = self.book(level).vectors().to(latents.dtype)
            code = distances(left.detach(), vectors).argmin(1)
            vector = functional.embedding(code, vectors)
            losses.append(functional.mse_loss(left, vector))
            codes.append(code)
            residuals.append(left.detach())
            chosen, left = chosen + vector, left - vector
        through = latents + (chosen - latents).detach()
        return QuantizedLatents(torch.stack(codes, 1), through, torch.stack(losses).mean(), residuals)

    def vectors_of(self, codes: Tensor) -> Tensor:
        """[..., e]: the sums of the vectors of codes, int64 [..., L']; fewer levels than there are make a coarser vector."""
        return sum(
            (functional.embedding(codes[..., level], self.book(level).vectors()) for level in range(codes.shape[-1])),
            start=torch.zeros((), device=codes.device),
        )

    @torch.no_grad()
    def start(self, latents: Tensor, rng: np.random.Generator) -> None:
        """Begin with k-means of latents [n, e], level by level of what is left."""
        left = latents.float()
        for level, size in enumerate(self.sizes):
            book = self.book(level)
            if level < len(self.codebooks):
                book.start(means(left, size, rng))
            codes = distances(left, book.vectors()).argmin(1)
            left = left - book.vectors()[codes]

    @torch.no_grad()
    def after_step(self, quantized: QuantizedLatents, exists: Tensor, step: int, rng: np.random.Generator) -> int:
        """Move the codebooks by a step's latents; dead codes go on every `reset_every` steps. Returns how many.

        exists: bool [n], latents that are no padding. In several processes all latents count in all of them.
        """
        moved: dict[EmaCodebook, list[tuple[Tensor, Tensor]]] = {}
        for level, residuals in enumerate(quantized.residuals):
            pair = (residuals[exists].float(), quantized.codes[exists, level])
            moved.setdefault(self.book(level), []).append(pair)
        revived = 0
        for book, pairs in moved.items():
            residuals, codes = (
                together(torch.cat([pair[0] for pair in pairs])),
                together(torch.cat([pair[1] for pair in pairs])),
            )
            book.observe(residuals, codes)
            if self.settings.threshold_ema_dead_code > 0 and step % self.settings.reset_every == 0:
                share = self.settings.threshold_ema_dead_code
                revived += book.revive(averages_of_few(residuals, rng), share, rng)
        return revived


def together(values: Tensor) -> Tensor:
    """The rows [n, …] of all processes, in the order of their ranks; of one process, its own."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return values
    rows: list[Tensor | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(rows, values)
    return torch.cat([row for row in rows if row is not None])


def averages_of_few(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """[n, e]: means of AVERAGED latents each, drawn from latents [n, e]."""
    places = torch.from_numpy(rng.integers(len(latents), size=(len(latents), min(AVERAGED, len(latents)))))
    return latents[places.to(latents.device)].mean(1)


def means(vectors: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """[K, e]: k-means of vectors [n, e] from K of them; where there are fewer than K, they repeat with a little noise."""
    if len(vectors) >= size:
        return new_places(vectors, vectors[:0], size, rng, START_ITERATIONS)
    repeated = vectors[torch.from_numpy(np.resize(rng.permutation(len(vectors)), size)).to(vectors.device)]
    noise = torch.from_numpy(rng.standard_normal(repeated.shape)).to(repeated)
    return repeated + noise * vectors.std() * 1e-3


def level_perplexities(codes: np.ndarray) -> list[float]:
    """Of every level: e^entropy of how often its codes occur. codes: int [n, L]."""
    return [perplexity(level) for level in codes.T]
