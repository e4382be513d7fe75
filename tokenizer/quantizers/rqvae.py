"""RQ-VAE (arXiv 2203.01941; as a tokenizer: TIGER, arXiv 2305.05065): an encoder, residual codebooks and a decoder, all from the start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.ranges import check_choice, check_least, refuse_idle
from sidrec.tokenizer.autoencoders.settings import AutoencoderSettings, LatentSettings
from sidrec.tokenizer.quantizers.kind import Kind

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.autoencoders.autoencoder import ResidualAutoencoder
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer


@dataclass
class Rqvae(LatentSettings, AutoencoderSettings, Kind):
    """Encoder and decoder are MLPs with random weights. Vectors are not scaled: codebooks would follow their encoder too slowly."""

    summary: ClassVar[str] = "RQ-VAE, residual codes of a learnt latent space"
    is_trained: ClassVar[bool] = True

    shared_codebook: bool = field(
        default=False, metadata={"help": "One codebook for all levels (arXiv 2203.01941); needs equal level sizes."}
    )
    groups: int = field(
        default=1,
        metadata={
            "help": "Parts of the latent, of e_dim / groups numbers each, that are coded apart (product quantization): level 0 codes the "
            "first part, level 1 the second, and so on in turns.",
            "rare": True,
        },
    )
    join_groups: str = field(
        default="concat",
        metadata={"help": "groups: the decoder takes the parts side by side (`concat`) or their `sum`.", "rare": True},
    )

    def __post_init__(self) -> None:
        LatentSettings.__post_init__(self)
        AutoencoderSettings.__post_init__(self)
        check_least(self, "groups", 1)
        check_choice(self, "join_groups", ("concat", "sum"))
        refuse_idle(self, "join_groups", self.groups > 1, "groups is 1")
        if self.e_dim % self.groups:
            raise InputError(f"e_dim {self.e_dim} cannot be cut into {self.groups} groups of equal length; change one.")
        if self.shared_codebook and self.groups > 1:
            raise InputError(
                "shared_codebook and groups exclude each other: a group has codebooks of its own; set one."
            )

    def check(self, vectors: Rows, level_sizes: list[int]) -> None:
        if self.shared_codebook and len(set(level_sizes)) > 1:
            raise InputError(
                f"shared_codebook needs equal level_sizes, not {' '.join(map(str, level_sizes))}; make them equal or leave it out."
            )
        if len(level_sizes) % self.groups:
            raise InputError(
                f"level_sizes has {len(level_sizes)} levels, which are no equal share for {self.groups} groups; name a multiple of them."
            )
        self.check_codebook_file(level_sizes[:1] if self.shared_codebook else level_sizes, self.e_dim)
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

        return build(
            self,
            vectors,
            level_sizes,
            seed,
            e_dim=self.e_dim,
            shared_codebook=self.shared_codebook,
            groups=self.groups,
            join=self.join_groups,
        )
