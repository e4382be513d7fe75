"""Encoder, residual codebooks and decoder, trained together: the model of every quantizer whose codebooks are trained.

With z = encoder(x), r_0 = z and level l's code e_l = C_l[argmin_k ||r_l - C_l[k]||^2], r_{l+1} = r_l - sg[e_l], zq = sum_l e_l:

    loss = ||x - decoder(z + sg[zq - z])||^2  +  w · mean_l( w_l (||sg[r_l] - e_l||^2 + beta ||r_l - sg[e_l]||^2) )
           + diversity · mean(x^2) · mean_l(unevenness of the soft usage of level l)  +  the codebooks' own penalties

w_0 is `coarse_weight` (with G groups: w_0, …, w_{G-1}), the other w_l are `fine_weight`; both are 1 by default.
All squared errors are means over rows and dimensions; the reconstruction error can be the mean absolute error (l1) instead, and the mean
over levels a sum (as TIGER's; `level_reduction`). As published by MiniOneRec, r_{l+1} = sg[r_l - e_l], so that only the first level's
commitment reaches the encoder (`commitment_levels: first`). With a codebook that follows moving averages, the term ||sg[r_l] - e_l||^2 is
only measured: it has no gradient. (RQ-VAE: arXiv 2203.01941; as a tokenizer: TIGER, arXiv 2305.05065; RQ-Kmeans+: GPR, arXiv 2511.10138.)

`ResidualAutoencoder.forward` is `encode`, `quantize` (per level: `told`, `assign`, `look_up` or `mix`, `pass_on`), `pass_through`, `decode`
and `losses`; a variant overrides one of them and keeps the rest. Where assignment is soft, e_l is in training a mixture of codes
(sidrec.tokenizer.autoencoders.soft_assignment); the same mixture is summed and taken from the residual.

With G > 1 groups the latent is cut into G parts of e / G numbers, and level l codes what the levels before left of part l mod G only:
product quantization, with a residual of its own in each part. r_l and e_l are then vectors of that part; zq is those of all parts, side
by side, and the decoder takes zq, or the sum of its parts (`join`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, l1_loss, mse_loss, pad

from sidrec.tokenizer.autoencoders.dead_codes import dead_codes, new_places
from sidrec.tokenizer.autoencoders.ema_codebook import EmaCodebook
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.autoencoders.rotation import rotate
from sidrec.tokenizer.autoencoders.second_commitment import second_commitment
from sidrec.tokenizer.autoencoders.settings import CodebookTrainingSettings
from sidrec.tokenizer.autoencoders.sinkhorn import balanced_codes
from sidrec.tokenizer.autoencoders.soft_assignment import SoftAssignment
from sidrec.tokenizer.autoencoders.soft_usage import unevenness
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.kmeans.nearest import distances
from sidrec.tokenizer.quantizer import Quantizer

RESET_ITERATIONS = 10  # of k-means, which is near its end by then


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
    def revive(self, residuals: Tensor, share: float, rng: np.random.Generator, iterations: int = 0) -> int:
        """Move codes used less than `share` of an equal use, since the last call, to `new_places` among residuals [n, e].

        iterations: of k-means there. Returns how many.
        """
        dead = dead_codes(self.counts, share * self.counts.mean(), len(residuals))
        self.weight[dead] = new_places(residuals, self.weight[~dead], int(dead.sum()), rng, iterations)
        self.counts.zero_()
        return int(dead.sum())


@dataclass
class Quantized:
    """What the levels make of latents [n, e]: zq [n, e] without gradient trick, codes [n, L], and per level r_l and e_l [n, e / G].

    coded: per level, what was compared with its codes, [n, e / G]: the residual, plus what the code before adds to it.
    """

    zq: Tensor
    codes: Tensor
    residuals: list[Tensor]
    chosen: list[Tensor]
    coded: list[Tensor]


class ResidualAutoencoder(nn.Module):
    """encoder: [n, D] → [n, e]; codebooks: one module a level (the same one on every level when it is shared); decoder: [n, e] → [n, D].

    groups: G, see above; codebooks are then [K, e / G]. join: `concat`, or `sum` with a decoder of [n, e / G].
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
        groups: int = 1,
        join: str = "concat",
    ) -> None:
        super().__init__()
        self.scale, self.groups, self.join = scale, groups, join
        self.encoder, self.decoder, self.settings = encoder, decoder, settings
        self.codebooks: Any = nn.ModuleList(codebooks)
        self.soft = soft_assignment(settings)
        if self.soft and self.soft.form == "learnt":
            self.ranks = nn.ParameterList(torch.zeros(settings.top_k) for _ in codebooks)

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
        """Code latents [n, e] level by level; in training and where assignment is soft, with the mixtures of `progress`."""
        return self.quantize_at(z, progress if self.soft and self.training else None)

    def quantize_at(self, z: Tensor, progress: float | None) -> Quantized:
        """As `quantize`, with the mixtures of `progress`, or hard codes for None."""
        residual, choice, shares = z, z, z  # the last two: of the level before
        residuals, chosen, codes, coded, whole = [], [], [], [], []
        for level, codebook in enumerate(self.codebooks):
            vectors = codebook.vectors()
            told = self.told(level, choice, shares) if level else None
            residuals.append(residual[:, self.part(level, z.shape[1])])
            coded.append(residuals[-1] if told is None else residuals[-1] + told)
            codes.append(self.assign(coded[-1].detach(), vectors.detach(), level))
            if progress is None or not self.mixes(level):
                shares, choice = codes[-1], self.look_up(codes[-1], vectors)
            else:
                shares = self.mix(level, coded[-1], vectors, progress)
                choice = shares @ vectors
            chosen.append(choice if told is None else choice - told)
            whole.append(self.in_its_part(level, chosen[-1]))
            residual = self.pass_on(residual, whole[-1])
        return Quantized(torch.stack(whole).sum(0), torch.stack(codes, 1), residuals, chosen, coded)

    def part(self, level: int, width: int) -> slice:
        """Which of the latent's `width` numbers a level codes."""
        group, size = level % self.groups, width // self.groups
        return slice(group * size, (group + 1) * size)

    def in_its_part(self, level: int, vectors: Tensor) -> Tensor:
        """Vectors [n, e / G] of a level as vectors [n, e], zero outside its part."""
        group, size = level % self.groups, vectors.shape[1]
        return pad(vectors, (group * size, (self.groups - 1 - group) * size)) if self.groups > 1 else vectors

    def told(self, level: int, before: Tensor, shares: Tensor) -> Tensor | None:
        """What the level before adds to a level's residual before it is coded, [n, e]; None: nothing.

        before: [n, e], its vectors; shares: its codes, int64 [n], or its mixtures Q, [n, K].
        """
        return None

    def mixes(self, level: int) -> bool:
        """Whether the level's vector is a mixture of codes in training."""
        return self.soft is not None and (not self.settings.soft_levels or level in self.settings.soft_levels)

    def mix(self, level: int, rows: Tensor, vectors: Tensor, progress: float) -> Tensor:
        """Q of each row, [n, K], with no gradient to rows and codes; its mixture is Q C. rows: [n, e]; vectors: [K, e]."""
        assert self.soft is not None
        ranks = self.ranks[level] if self.soft.form == "learnt" else None
        return self.soft.weights(rows, vectors, progress, ranks)

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
        if self.join == "sum":
            latents = torch.stack(latents.chunk(self.groups, dim=1)).sum(0)
        return self.decoder(latents)

    def losses(self, x: Tensor, z: Tensor, quantized: Quantized, reconstructed: Tensor) -> dict[str, Tensor]:
        """`loss` and its parts. x, reconstructed: [n, D]; z: [n, e]."""
        settings = self.settings
        levels = list(zip(self.level_weights(), quantized.residuals, quantized.chosen, strict=True))
        codebook = self.over_levels([w * mse_loss(e, r.detach()) for w, r, e in levels])
        commitment = self.over_levels([w * mse_loss(r, e.detach()) for w, r, e in levels])
        reconstruction = (l1_loss if settings.reconstruction == "l1" else mse_loss)(reconstructed, x)
        loss = reconstruction + settings.quantization_weight * (codebook + settings.commitment_weight * commitment)
        losses = {"reconstruction": reconstruction, "codebook": codebook, "commitment": commitment}
        if settings.second_commitment_weight > 0:
            losses["second_commitment"] = self.second_commitment(quantized)
            weight = settings.quantization_weight * settings.second_commitment_weight
            loss = loss + weight * losses["second_commitment"]
        if settings.diversity_weight > 0:
            losses["diversity"] = self.diversity(quantized)
            loss = loss + settings.diversity_weight * x.square().mean() * losses["diversity"]
        penalties = [book.penalty() for book in self.distinct_codebooks()]
        return losses | {"loss": loss + torch.stack(penalties).sum()}

    def over_levels(self, losses: list[Tensor]) -> Tensor:
        """The mean of the levels' losses, or their sum."""
        together = torch.stack(losses)
        return together.sum() if self.settings.level_reduction == "sum" else together.mean()

    def second_commitment(self, quantized: Quantized) -> Tensor:
        """Over levels as the commitment loss, how far mixtures are from their nearest codes; 0 outside training."""
        hard = []
        for level, book in enumerate(self.codebooks):
            told = quantized.coded[level] - quantized.residuals[level]
            hard.append(self.look_up(quantized.codes[:, level], book.vectors()) - told)
        return self.over_levels(second_commitment(quantized.residuals, quantized.chosen, hard))

    def level_weights(self) -> list[float]:
        """w_l: what the codebook and commitment loss of each level counts."""
        fine = len(self.codebooks) - self.groups
        return [self.settings.coarse_weight] * self.groups + [self.settings.fine_weight] * fine

    def diversity(self, quantized: Quantized) -> Tensor:
        """The mean over levels of how unevenly the batch uses the codes; its gradient reaches codebooks and encoder."""
        form = self.settings.diversity_form
        pairs = zip(quantized.coded, self.codebooks, strict=True)
        return torch.stack([unevenness(rows, book.vectors(), form) for rows, book in pairs]).mean()

    def distinct_codebooks(self) -> dict[Any, list[int]]:
        """Every codebook once, with the levels that it codes."""
        levels: dict[Any, list[int]] = {}
        for level, book in enumerate(self.codebooks):
            levels.setdefault(book, []).append(level)
        return levels

    @torch.no_grad()
    def after_step(self, quantized: Quantized, step: int, rng: np.random.Generator) -> int:
        """Moving averages follow the batch, and every `reset_every` steps dead codes are revived. Returns how many.

        Each codebook sees what its own level coded (all levels, when it is shared). step: from 1.
        """
        revived = 0
        for book, levels in self.distinct_codebooks().items():
            residuals = torch.cat([quantized.coded[level].detach() for level in levels])
            book.observe(residuals, torch.cat([quantized.codes[:, level] for level in levels]))
            if self.settings.reset_every and step % self.settings.reset_every == 0:
                iterations = RESET_ITERATIONS if self.settings.reset_to == "kmeans" else 0
                revived += book.revive(residuals, self.settings.threshold_dead_code, rng, iterations)
        return revived

    def start_codebooks(self, books: list[np.ndarray]) -> None:
        """Put vectors, of the quantizer's latents, into the distinct codebooks, [K, e] each, of which a level takes its part."""
        for (book, levels), vectors in zip(self.distinct_codebooks().items(), books, strict=True):
            part = self.part(levels[0], vectors.shape[1])
            book.start(torch.from_numpy(vectors)[:, part] * self.scale)

    def quantizer(self) -> Quantizer:
        """What has been learnt so far, for vectors as they are; its latents are as much smaller as its vectors."""
        scale = self.scale
        whole = [self.in_its_part(level, book.vectors().detach()) for level, book in enumerate(self.codebooks)]
        books = [(vectors / scale).numpy().copy() for vectors in whole]
        decoder = self.decoder.rescaled(scale, 1 / scale)
        if self.join == "sum":
            decoder = decoder.of_sum(self.groups)
        return Quantizer(Codebooks(books), self.encoder.rescaled(scale, 1 / scale), decoder)


def soft_assignment(settings: CodebookTrainingSettings) -> SoftAssignment | None:
    """How codes are mixed in training; None: they are not."""
    if settings.assignment == "hard":
        return None
    top_k = settings.top_k if settings.assignment == "topk" else None
    return SoftAssignment(
        top_k, settings.temperature_start, settings.temperature_end, settings.soft_weights, settings.sinkhorn_iterations
    )
