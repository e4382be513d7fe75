"""The autoencoder with low-rank codebooks for several sources, and what can be switched on beside them.

As `ResidualAutoencoder`, with the encoder and decoder in one block per source, and where the settings say so:
    condition_on_previous       level l codes r + W_l C_{l-1}[p]; p is the code before (in training perhaps a mixture), W_l is 0 at first.
                                Exported as codebooks [K_{l-1}, K_l, e]: C_l[k] - W_l C_{l-1}[p]. With `condition_form` one_hot, a row
                                T_l[p] of a table [K_{l-1}, e] stands in the place of W_l C_{l-1}[p]: W_l times p as one-hot input.
    alignment_weight            InfoNCE between the sources' latents of an item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sidrec.tokenizer.autoencoders.alignment import alignment_loss
from sidrec.tokenizer.autoencoders.autoencoder import Quantized, ResidualAutoencoder
from sidrec.tokenizer.autoencoders.lora_codebook import LoraCodebook
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.quantizer import Quantizer

if TYPE_CHECKING:
    from sidrec.tokenizer.quantizers.lora import Lora


class LoraAutoencoder(ResidualAutoencoder):
    """encoder: [n, D] → [n, e] and decoder: [n, e] → [n, D], a block a source; codebooks: one module a level."""

    def __init__(self, encoder: Mlp, codebooks: list[LoraCodebook], decoder: Mlp, settings: Lora) -> None:
        super().__init__(encoder, codebooks, decoder, settings)  # type: ignore[arg-type]
        self.lora = settings

    def told(self, level: int, before: Tensor, shares: Tensor) -> Tensor | None:
        return self.codebooks[level].offset(before, shares) if self.lora.condition_on_previous else None

    def losses(self, x: Tensor, z: Tensor, quantized: Quantized, reconstructed: Tensor) -> dict[str, Tensor]:
        """Those of every autoencoder, the alignment of sources, and (outside training) ||A B|| / ||base|| of each level."""
        losses = super().losses(x, z, quantized, reconstructed)
        if self.lora.alignment_weight > 0:
            losses["alignment"] = alignment_loss(z, self.codebooks[0].blocks)
            losses["loss"] = losses["loss"] + self.lora.alignment_weight * losses["alignment"]
        if not self.training:
            losses |= {f"lora_share_{level}": book.shares().mean() for level, book in enumerate(self.codebooks)}
        return losses

    @torch.no_grad()
    def quantizer(self) -> Quantizer:
        """What has been learnt so far, A B and the code before written into the codebooks."""
        by_level = [book.vectors() for book in self.codebooks]
        books = by_level[:1]
        for book, before, vectors in zip(self.codebooks[1:], by_level, by_level[1:], strict=False):
            if self.lora.condition_on_previous:
                vectors = vectors - book.offset(before, torch.arange(len(before)))[:, None]  # [K_before, K, e]
            books.append(vectors)
        codebooks = Codebooks([vectors.numpy().copy() for vectors in books])
        return Quantizer(codebooks, self.encoder.rescaled(1, 1), self.decoder.rescaled(1, 1))
