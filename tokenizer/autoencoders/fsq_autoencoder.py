"""Encoder, finite scalar grid and decoder, trained together (FSQ, arXiv 2309.15505).

With y = bound(encoder(x)) and ŷ the grid's nearest point: loss = ||x - decoder(y + sg[ŷ - y])||^2, a mean over rows and dimensions (or l1).
No codebook is learnt, so there is no other loss.

Where it starts matters: from item vectors of length 1 the encoder's outputs would lie near 0, and many items would round to one point.
So the weights of the first layer start divided by the root mean square of the vectors' numbers (as if the vectors were standardised),
and those of the decoder's last layer multiplied by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from sidrec.tokenizer.autoencoders.finite_scalar import bound, codes_of, grid_codebooks, nearest_point
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.quantizer import Quantizer


@dataclass
class Rounded:
    """Points [n, e], the sum over tokens, and codes, int64 [n, L]."""

    points: Tensor
    codes: Tensor


class FsqAutoencoder(nn.Module):
    """encoder: [n, D] → [n, e]; decoder: [n, e] → [n, D]; e = tokens · d for `groups`, d for `residual`. levels: those of one token, d."""

    def __init__(
        self,
        encoder: Mlp,
        decoder: Mlp,
        levels: list[int],
        tokens: int,
        form: str,
        loss: str = "mse",
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.levels, self.tokens, self.form, self.symmetric = levels, tokens, form, symmetric
        self.loss = {"mse": mse_loss, "l1": l1_loss}[loss]

    @property
    def all_levels(self) -> list[int]:
        """The levels of each of the e dimensions."""
        return self.levels * (self.tokens if self.form == "groups" else 1)

    def forward(self, x: Tensor, progress: float = 1.0) -> tuple[dict[str, Tensor], Rounded]:
        """`loss`, and the same as `reconstruction`; and the codes. x: [n, D]."""
        bounded = bound(self.encoder(x), self.all_levels, self.symmetric)
        rounded = self.round(bounded.detach())
        reconstruction = self.loss(self.decoder(bounded + (rounded.points - bounded).detach()), x)
        return {"loss": reconstruction, "reconstruction": reconstruction}, rounded

    def round(self, bounded: Tensor) -> Rounded:
        """The grids' nearest points, token by token. bounded: [n, e]."""
        if self.form == "groups":
            points = nearest_point(bounded, self.all_levels, self.symmetric)
            parts = points.split(len(self.levels), dim=1)
            return Rounded(points, torch.stack([codes_of(part, self.levels, self.symmetric) for part in parts], dim=1))
        points, codes = torch.zeros_like(bounded), []
        for token in range(self.tokens):
            unit = (torch.tensor(self.levels, dtype=bounded.dtype) - 1) ** -token
            point = nearest_point((bounded - points) / unit, self.levels, self.symmetric)
            codes.append(codes_of(point, self.levels, self.symmetric))
            points = points + point * unit
        return Rounded(points, torch.stack(codes, dim=1))

    def after_step(self, quantized: Rounded, step: int, rng: np.random.Generator) -> int:
        """Nothing: a grid has no dead codes to revive."""
        return 0

    def quantizer(self) -> Quantizer:
        """What has been learnt so far."""
        books = grid_codebooks(self.levels, self.tokens, self.form, self.symmetric)
        encoder, decoder = self.encoder.rescaled(1, 1), self.decoder.rescaled(1, 1)
        return Quantizer(books, encoder, decoder, tuple(self.all_levels), fsq_symmetric=self.symmetric)
