"""Encoder, residual codebooks and decoder, trained together: the model of RQ-Kmeans+, RQ-VAE, VQ and LoRA codebooks.

With z = encoder(x), r_0 = z and level l's code e_l = C_l[argmin_k ||r_l - C_l[k]||^2], r_{l+1} = r_l - e_l:

    loss = ||x - decoder(zq)||^2  +  w * mean_l( ||sg[r_l] - e_l||^2 + beta * ||r_l - sg[e_l]||^2 )      zq = z + sg[sum_l e_l - z]

All squared errors are means over rows and dimensions. (RQ-VAE: arXiv 2203.01941; as a tokenizer: TIGER, arXiv 2305.05065; RQ-Kmeans+: GPR,
arXiv 2511.10138.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tokenizer.codebooks import Codebooks
from tokenizer.mlp import Mlp
from tokenizer.nearest import distances
from tokenizer.quantizer import Quantizer


class Codebook(nn.Module):
    """One level's vectors [K, e], learnt by gradient. Other kinds of codebook offer the same two methods."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())

    def vectors(self) -> Tensor:
        """[K, e]."""
        return self.weight

    def penalty(self) -> Tensor:
        """What the loss adds for this codebook's own sake; 0 here."""
        return self.weight.new_zeros(())


@dataclass
class Quantized:
    """What the levels make of latents [n, e]: zq [n, e] without gradient trick, codes [n, L], and per level r_l and e_l [n, e]."""

    zq: Tensor
    codes: Tensor
    residuals: list[Tensor]
    chosen: list[Tensor]


class ResidualAutoencoder(nn.Module):
    """encoder: [n, D] → [n, e]; codebooks: one module a level; decoder: [n, e] → [n, D]."""

    def __init__(self, encoder: Mlp, codebooks: list[Codebook], decoder: Mlp, commitment: float = 0.25) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.codebooks: Any = nn.ModuleList(codebooks)
        self.commitment = commitment

    def quantize(self, z: Tensor) -> Quantized:
        """Code latents [n, e] level by level. The residual passes its gradient on to all levels: r - sg[e]."""
        residual, residuals, chosen, codes = z, [], [], []
        for codebook in self.codebooks:
            vectors = codebook.vectors()
            code = distances(residual.detach(), vectors.detach()).argmin(1)
            residuals.append(residual)
            chosen.append(vectors[code])
            codes.append(code)
            residual = residual - chosen[-1].detach()
        return Quantized(torch.stack(chosen).sum(0), torch.stack(codes, 1), residuals, chosen)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`loss`, what training lowers, and its parts, for the log. x: [n, D]."""
        z = self.encoder(x)
        quantized = self.quantize(z)
        pairs = list(zip(quantized.residuals, quantized.chosen, strict=True))
        codebook_loss = torch.stack([mse_loss(e, r.detach()) for r, e in pairs]).mean()
        commitment_loss = torch.stack([mse_loss(r, e.detach()) for r, e in pairs]).mean()
        reconstruction = mse_loss(self.decoder(z + (quantized.zq - z).detach()), x)
        penalty = torch.stack([codebook.penalty() for codebook in self.codebooks]).sum()
        loss = reconstruction + codebook_loss + self.commitment * commitment_loss + penalty
        return {
            "loss": loss,
            "reconstruction": reconstruction,
            "codebook": codebook_loss,
            "commitment": commitment_loss,
        }

    def quantizer(self) -> Quantizer:
        """What has been learnt so far, on the CPU."""
        books = [codebook.vectors().detach().cpu().numpy().copy() for codebook in self.codebooks]
        return Quantizer(Codebooks(books), self.encoder, self.decoder)
