"""VQ (VQ-VAE, arXiv 1711.00937): one level of codes of a learnt latent space, so one code an item."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.autoencoders.settings import AutoencoderSettings, LatentSettings
from sidrec.tokenizer.quantizers.kind import Kind

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.autoencoders.autoencoder import ResidualAutoencoder
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer


@dataclass
class Vq(LatentSettings, AutoencoderSettings, Kind):
    """Encoder and decoder are MLPs with random weights."""

    summary: ClassVar[str] = "one level of codes of a learnt latent space"
    is_trained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        LatentSettings.__post_init__(self)
        AutoencoderSettings.__post_init__(self)

    def check(self, vectors: Rows, level_sizes: list[int]) -> None:
        if len(level_sizes) != 1:
            raise InputError(
                f"vector quantization has one level, but level_sizes gives {len(level_sizes)} ({' '.join(map(str, level_sizes))}); give "
                "one number, or choose a residual quantizer."
            )
        self.check_codebook_file(level_sizes, self.e_dim)
        self.check_epsilons(len(level_sizes))
        self.check_soft_levels(level_sizes)

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        """Raises InputError when the loss is not finite."""
        from sidrec.tokenizer.autoencoders.fitting import fit

        return fit(
            self.build(vectors, level_sizes, seed), self, vectors, level_sizes, seed, folder, screen, self.identity()
        )

    def build(self, vectors: Rows, level_sizes: list[int], seed: int) -> ResidualAutoencoder:
        """The model for `vectors` [N, D], nothing learnt."""
        from sidrec.tokenizer.autoencoders.fitting import build

        return build(self, vectors, level_sizes, seed, e_dim=self.e_dim)
