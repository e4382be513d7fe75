"""RQ-Kmeans+ (GPR, arXiv 2511.10138): residual k-means that goes on learning, together with an encoder and a decoder.

The encoder is Z = X + MLP(X) with the MLP's last layer zero, so that Z = X at first; the codebooks start as residual k-means of X, so that
the codes at step 0 are those of RQ-Kmeans; the decoder is zq + MLP(zq), likewise, or a random MLP as published. Latents are as long as
item vectors. The encoder's skip and its start at zero can be switched off, to see what each is worth (`benchmarks.tokenizer_starts`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sidrec.pipeline.ranges import check_choice, refuse_idle
from sidrec.tokenizer.autoencoders.settings import AutoencoderSettings
from sidrec.tokenizer.quantizers.kind import Kind

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.autoencoders.autoencoder import ResidualAutoencoder
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer


@dataclass
class RqkmeansPlus(AutoencoderSettings, Kind):
    """Its commitment holds X + MLP(X) near X: with 0.25 latents grow, and items held out lose what the others win."""

    summary: ClassVar[str] = "residual k-means, then trained with an encoder and a decoder"
    is_trained: ClassVar[bool] = True

    commitment_weight: float = field(
        default=1.0, metadata={"help": "beta: weight of the commitment loss beside the codebook loss."}
    )
    encoder: str = field(
        default="residual",
        metadata={
            "help": "`residual` (X + MLP(X)) or `mlp` (MLP(X), which starts at random: to compare with).",
            "rare": True,
        },
    )
    zero_start: bool = field(
        default=True,
        metadata={
            "help": "The last layer of a residual encoder starts at 0, so that X + MLP(X) starts as X; false: at random.",
            "rare": True,
        },
    )
    decoder: str = field(
        default="residual",
        metadata={
            "help": "`residual` (zq + MLP(zq), starts as the identity) or `mlp` (as published, starts at random)."
        },
    )

    def __post_init__(self) -> None:
        AutoencoderSettings.__post_init__(self)
        check_choice(self, "encoder", ("residual", "mlp"))
        check_choice(self, "decoder", ("residual", "mlp"))
        refuse_idle(self, "zero_start", self.encoder == "residual", "encoder is `mlp`")

    def check(self, vectors: Rows, level_sizes: list[int]) -> None:
        self.check_codebook_file(level_sizes, vectors.shape[1])
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
        from sidrec.tokenizer.autoencoders.fitting import build, fitting_scale

        return build(
            self,
            vectors,
            level_sizes,
            seed,
            e_dim=vectors.shape[1],
            skip_encoder=self.encoder == "residual",
            skip_decoder=self.decoder == "residual",
            zero_start=self.zero_start,
            scale=fitting_scale(vectors),
        )
