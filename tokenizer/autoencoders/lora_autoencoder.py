"""The autoencoder with low-rank codebooks for several sources, and what can be switched on beside them.

As `ResidualAutoencoder`, with the encoder and decoder in one block per source, and where the settings say so:
    assignment soft, topk       in training, a level's vector is a mixture of codes, annealed to hard; the same mixture is summed and taken
                                from the residual. Outside training the code is always the nearest.
    condition_on_previous       level l codes r + W_l C_{l-1}[p]; p is the code before (in training perhaps a mixture), W_l is 0 at first.
                                Exported as codebooks [K_{l-1}, K_l, e]: C_l[k] - W_l C_{l-1}[p].
    second_commitment_weight    what a level leaves over is held to what its nearest code leaves over.
    alignment_weight            InfoNCE between the sources' latents of an item.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sidrec.tokenizer.autoencoders.alignment import alignment_loss
from sidrec.tokenizer.autoencoders.autoencoder import Quantized, ResidualAutoencoder
from sidrec.tokenizer.autoencoders.lora_codebook import LoraCodebook
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.autoencoders.second_commitment import second_commitment
from sidrec.tokenizer.autoencoders.soft_assignment import SoftAssignment
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.quantizer import Quantizer

if TYPE_CHECKING:
    from sidrec.tokenizer.quantizers.lora import Lora


@dataclass
class LoraQuantized(Quantized):
    """coded: per level, what was compared with its codes, [n, e]: the residual, plus what the code before adds."""

    coded: list[Tensor]


class LoraAutoencoder(ResidualAutoencoder):
    """encoder: [n, D] → [n, e] and decoder: [n, e] → [n, D], a block a source; codebooks: one module a level."""

    def __init__(self, encoder: Mlp, codebooks: list[LoraCodebook], decoder: Mlp, settings: Lora) -> None:
        super().__init__(encoder, codebooks, decoder, settings)  # type: ignore[arg-type]
        self.lora = settings
        self.soft: SoftAssignment | None = None
        if settings.assignment != "hard":
            top_k = settings.top_k if settings.assignment == "topk" else None
            self.soft = SoftAssignment(top_k, settings.temperature_start, settings.temperature_end)

    def quantize(self, z: Tensor, progress: float = 1.0) -> LoraQuantized:
        """Code latents [n, e] level by level; in training and where assignment is soft, at the temperature of `progress`."""
        temperature = self.soft.temperature(progress) if self.soft and self.training else None
        return self.quantize_at(z, temperature)

    def quantize_at(self, z: Tensor, temperature: float | None) -> LoraQuantized:
        """As `quantize`, at a given temperature; None: hard."""
        residual, previous = z, None
        residuals, chosen, codes, coded = [], [], [], []
        for level, book in enumerate(self.codebooks):
            vectors = book.vectors()
            conditioned = self.lora.condition_on_previous and previous is not None
            offset = book.offset(previous) if conditioned else torch.zeros_like(z)
            residuals.append(residual)
            coded.append(residual + offset)
            codes.append(self.assign(coded[-1].detach(), vectors.detach(), level))
            if self.soft is None or temperature is None:
                previous = self.look_up(codes[-1], vectors)
            else:
                previous = self.soft.mixture(coded[-1].detach(), vectors, temperature)
            chosen.append(previous - offset)
            residual = self.pass_on(residual, chosen[-1])
        return LoraQuantized(torch.stack(chosen).sum(0), torch.stack(codes, 1), residuals, chosen, coded)

    def losses(self, x: Tensor, z: Tensor, quantized: Quantized, reconstructed: Tensor) -> dict[str, Tensor]:
        """Those of every autoencoder, the alignment of sources, and (outside training) ||A B|| / ||base|| of each level."""
        losses = super().losses(x, z, quantized, reconstructed)
        if self.lora.second_commitment_weight > 0:
            losses["second_commitment"] = self.second_commitment(quantized)
            weight = self.settings.quantization_weight * self.lora.second_commitment_weight
            losses["loss"] = losses["loss"] + weight * losses["second_commitment"]
        if self.lora.alignment_weight > 0:
            losses["alignment"] = alignment_loss(z, self.codebooks[0].blocks)
            losses["loss"] = losses["loss"] + self.lora.alignment_weight * losses["alignment"]
        if not self.training:
            losses |= {f"lora_share_{level}": book.shares().mean() for level, book in enumerate(self.codebooks)}
        return losses

    def second_commitment(self, quantized: Quantized) -> Tensor:
        """Over levels as the commitment loss, how far mixtures are from their nearest codes; 0 outside training."""
        assert isinstance(quantized, LoraQuantized)
        hard = []
        for level, book in enumerate(self.codebooks):
            offset = quantized.coded[level] - quantized.residuals[level]
            hard.append(self.look_up(quantized.codes[:, level], book.vectors()) - offset)
        levels = second_commitment(quantized.residuals, quantized.chosen, hard)
        return levels.sum() if self.settings.level_reduction == "sum" else levels.mean()

    def diversity(self, quantized: Quantized) -> Tensor:
        """As in every autoencoder, of what the codes are compared with."""
        assert isinstance(quantized, LoraQuantized)
        return super().diversity(replace(quantized, residuals=quantized.coded))

    @torch.no_grad()
    def after_step(self, quantized: Quantized, step: int, rng: np.random.Generator) -> int:
        """As in every autoencoder; dead codes move to what the codes are compared with."""
        assert isinstance(quantized, LoraQuantized)
        return super().after_step(replace(quantized, residuals=quantized.coded), step, rng)

    @torch.no_grad()
    def quantizer(self) -> Quantizer:
        """What has been learnt so far, A B and the code before written into the codebooks."""
        by_level = [book.vectors() for book in self.codebooks]
        books = by_level[:1]
        for book, before, vectors in zip(self.codebooks[1:], by_level, by_level[1:], strict=False):
            if self.lora.condition_on_previous:
                vectors = vectors - book.offset(before)[:, None]  # [K_before, K, e]
            books.append(vectors)
        codebooks = Codebooks([vectors.numpy().copy() for vectors in books])
        return Quantizer(codebooks, self.encoder.rescaled(1, 1), self.decoder.rescaled(1, 1))
