"""Encoder, residual codebooks and decoder, trained together: the model of every quantizer whose codebooks are trained.

With z = encoder(x), r_0 = z and level l's code e_l = C_l[argmin_k ||r_l - C_l[k]||^2], r_{l+1} = r_l - sg[e_l], zq = sum_l e_l:

    loss = ||x - decoder(z + sg[zq - z])||^2  +  w · mean_l( ||sg[r_l] - e_l||^2 + beta ||r_l - sg[e_l]||^2 )
           + diversity · mean(x^2) · mean_l(log K - H(soft usage of level l))  +  the codebooks' own penalties

All squared errors are means over rows and dimensions; the reconstruction error can be the mean absolute error (l1) instead, and the mean
over levels a sum (as TIGER's; `level_reduction`). As published by MiniOneRec, r_{l+1} = sg[r_l - e_l], so that only the first level's
commitment reaches the encoder (`commitment_levels: first`). With a codebook that follows moving averages, the term ||sg[r_l] - e_l||^2 is
only measured: it has no gradient. (RQ-VAE: arXiv 2203.01941; as a tokenizer: TIGER, arXiv 2305.05065; RQ-Kmeans+: GPR, arXiv 2511.10138.)

`ResidualAutoencoder.forward` is `encode`, `quantize` (per level: `assign`, `look_up`, `pass_on`), `pass_through`, `decode` and `losses`;
a variant overrides one of them and keeps the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, l1_loss, mse_loss

from sidrec.tokenizer.autoencoders.ema_codebook import EmaCodebook
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.autoencoders.rotation import rotate
from sidrec.tokenizer.autoencoders.settings import CodebookTrainingSettings
from sidrec.tokenizer.autoencoders.sinkhorn import balanced_codes
from sidrec.tokenizer.autoencoders.soft_usage import unevenness
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.kmeans.nearest import distances
from sidrec.tokenizer.quantizer import Quantizer


class Codebook(nn.Module):
    """One level's vectors [K, e], learnt by gradient. Other kinds of codebook offer the same five methods."""

    counts: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())
        self.register_buffer("counts", torch.zeros(len(start)))  # rows coded by each code since the last `revive`

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """Take `vectors` [K, e], before the first step."""
        self.weight.copy_(vectors)

    def vectors(self) -> Tensor:
        """[K, e]."""
        return self.weight

    def penalty(self) -> Tensor:
        """What the loss adds for this codebook's own sake; 0 here."""
        return self.weight.new_zeros(())

    @torch.no_grad()
    def observe(self, residuals: Tensor, codes: Tensor) -> None:
        """Called after every step with what the codebook coded in it. residuals: [n, e]; codes: int64 [n]."""
        self.counts += torch.bincount(codes, minlength=len(self.counts))

    @torch.no_grad()
    def revive(self, residuals: Tensor, share: float, rng: np.random.Generator) -> int:
        """Move codes used less than `share` of an equal use, since the last call, to residuals [n, e] drawn without repetition.

        Returns how many.
        """
        expected = self.counts.mean()
        dead = (self.counts < share * expected).nonzero().flatten()[: len(residuals)]
        self.weight[dead] = residuals[torch.from_numpy(rng.permutation(len(residuals))[: len(dead)])]
        self.counts.zero_()
        return len(dead)


@dataclass
class Quantized:
    """What the levels make of latents [n, e]: zq [n, e] without gradient trick, codes [n, L], and per level r_l and e_l [n, e]."""

    zq: Tensor
    codes: Tensor
    residuals: list[Tensor]
    chosen: list[Tensor]


class ResidualAutoencoder(nn.Module):
    """encoder: [n, D] → [n, e]; codebooks: one module a level (the same one on every level when it is shared); decoder: [n, e] → [n, D].

    scale: every x is multiplied by it first, and all losses are of those larger vectors. The numbers of a vector of unit length are small,
    and a step of the optimizer is as long for small weights as for large ones: unscaled, codebooks jitter. `quantizer` takes the scale
    out again, without changing a bit when it is a power of two.
    """

    def __init__(
        self,
        encoder: Mlp,
        codebooks: list[Codebook | EmaCodebook],
        decoder: Mlp,
        settings: CodebookTrainingSettings,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.encoder, self.decoder, self.settings = encoder, decoder, settings
        self.codebooks: Any = nn.ModuleList(codebooks)

    def forward(self, x: Tensor, progress: float = 1.0) -> tuple[dict[str, Tensor], Quantized]:
        """`loss`, what training lowers, with its parts for the log; and the codes. x: [n, D].

        progress: share of the training steps that are done, for what a variant anneals.
        """
        x = x * self.scale
        z = self.encode(x)
        quantized = self.quantize(z, progress)
        reconstructed = self.decode(self.pass_through(z, quantized.zq))
        losses = self.losses(x, z, quantized, reconstructed)
        if self.encoder.skip and not self.training:
            losses["encoder_shift"] = (z - x).norm(dim=1).mean() / x.norm(dim=1).mean()
        return losses, quantized

    def encode(self, x: Tensor) -> Tensor:
        """Latents [n, e] of vectors [n, D]."""
        return self.encoder(x)

    def quantize(self, z: Tensor, progress: float = 1.0) -> Quantized:
        """Code latents [n, e] level by level."""
        residual, residuals, chosen, codes = z, [], [], []
        for level, codebook in enumerate(self.codebooks):
            vectors = codebook.vectors()
            code = self.assign(residual.detach(), vectors.detach(), level)
            residuals.append(residual)
            codes.append(code)
            chosen.append(self.look_up(code, vectors))
            residual = self.pass_on(residual, chosen[-1])
        return Quantized(torch.stack(chosen).sum(0), torch.stack(codes, 1), residuals, chosen)

    def assign(self, residual: Tensor, vectors: Tensor, level: int) -> Tensor:
        """A level's codes, int64 [n]: the nearest; in training, by Sinkhorn where it is on. residual: [n, e], vectors: [K, e]."""
        epsilon = self.settings.epsilon_of(level)
        if self.training and epsilon > 0:
            return balanced_codes(residual, vectors, epsilon, self.settings.sinkhorn_iterations)
        return distances(residual, vectors).argmin(1)

    def look_up(self, code: Tensor, vectors: Tensor) -> Tensor:
        """The codes' vectors, [n, e]; unlike indexing, the gradient is summed in a fixed order."""
        return embedding(code, vectors)

    def pass_on(self, residual: Tensor, chosen: Tensor) -> Tensor:
        """What the next level codes, r - e; its gradient reaches the encoder unless only the first level's shall."""
        left = residual - chosen.detach()
        return left if self.settings.commitment_levels == "all" else left.detach()

    def pass_through(self, z: Tensor, zq: Tensor) -> Tensor:
        """zq in value, with a gradient to z: straight through, or by rotation."""
        return rotate(z, zq) if self.settings.rotation_trick else z + (zq - z).detach()

    def decode(self, latents: Tensor) -> Tensor:
        """Vectors [n, D] of latents [n, e]."""
        return self.decoder(latents)

    def losses(self, x: Tensor, z: Tensor, quantized: Quantized, reconstructed: Tensor) -> dict[str, Tensor]:
        """`loss` and its parts. x, reconstructed: [n, D]; z: [n, e]."""
        settings = self.settings
        pairs = list(zip(quantized.residuals, quantized.chosen, strict=True))
        over_levels = torch.sum if settings.level_reduction == "sum" else torch.mean
        codebook = over_levels(torch.stack([mse_loss(e, r.detach()) for r, e in pairs]))
        commitment = over_levels(torch.stack([mse_loss(r, e.detach()) for r, e in pairs]))
        reconstruction = (l1_loss if settings.reconstruction == "l1" else mse_loss)(reconstructed, x)
        loss = reconstruction + settings.quantization_weight * (codebook + settings.commitment_weight * commitment)
        losses = {"reconstruction": reconstruction, "codebook": codebook, "commitment": commitment}
        if settings.diversity_weight > 0:
            losses["diversity"] = self.diversity(quantized)
            loss = loss + settings.diversity_weight * x.square().mean() * losses["diversity"]
        penalties = [book.penalty() for book in self.distinct_codebooks()]
        return losses | {"loss": loss + torch.stack(penalties).sum()}

    def diversity(self, quantized: Quantized) -> Tensor:
        """The mean over levels of how unevenly the batch uses the codes; its gradient reaches codebooks and encoder."""
        pairs = zip(quantized.residuals, self.codebooks, strict=True)
        return torch.stack([unevenness(residual, book.vectors()) for residual, book in pairs]).mean()

    def distinct_codebooks(self) -> dict[Any, list[int]]:
        """Every codebook once, with the levels that it codes."""
        levels: dict[Any, list[int]] = {}
        for level, book in enumerate(self.codebooks):
            levels.setdefault(book, []).append(level)
        return levels

    @torch.no_grad()
    def after_step(self, quantized: Quantized, step: int, rng: np.random.Generator) -> int:
        """Moving averages follow the batch, and every `reset_every` steps dead codes are revived. Returns how many.

        Each codebook sees the residuals of its own level (of all levels, when it is shared). step: from 1.
        """
        revived = 0
        for book, levels in self.distinct_codebooks().items():
            residuals = torch.cat([quantized.residuals[level].detach() for level in levels])
            book.observe(residuals, torch.cat([quantized.codes[:, level] for level in levels]))
            if self.settings.reset_every and step % self.settings.reset_every == 0:
                revived += book.revive(residuals, self.settings.threshold_dead_code, rng)
        return revived

    def start_codebooks(self, books: list[np.ndarray]) -> None:
        """Put vectors, of the quantizer's latents, into the distinct codebooks, [K, e] each."""
        for book, vectors in zip(self.distinct_codebooks(), books, strict=True):
            book.start(torch.from_numpy(vectors) * self.scale)

    def quantizer(self) -> Quantizer:
        """What has been learnt so far, for vectors as they are; its latents are as much smaller as its vectors."""
        scale = self.scale
        books = [(codebook.vectors().detach() / scale).numpy().copy() for codebook in self.codebooks]
        return Quantizer(
            Codebooks(books), self.encoder.rescaled(scale, 1 / scale), self.decoder.rescaled(scale, 1 / scale)
        )
