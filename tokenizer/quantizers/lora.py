"""LoRA codebooks: C = base + A B for several sources, A shared by them, B of each source and level.

See sidrec.tokenizer.autoencoders.lora_codebook for the formulas, and lora_autoencoder beside it for what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, write_json
from sidrec.pipeline.ranges import check_choice, check_least, refuse_idle
from sidrec.tokenizer.autoencoders.settings import CodebookTrainingSettings, LatentSettings
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.quantizers.kind import Kind

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.autoencoders.lora_autoencoder import LoraAutoencoder
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer

REPORT = "lora.json"


@dataclass
class Lora(LatentSettings, CodebookTrainingSettings, Kind):
    """A and B are learnt by gradient; the base, if it is trainable, too."""

    summary: ClassVar[str] = "low-rank codebooks that several sources share"
    is_trained: ClassVar[bool] = True

    rank: int = field(default=8, metadata={"help": "r: columns of A and rows of B."})
    share_a: str = field(
        default="sources",
        metadata={"help": "A is shared by `sources` (one A a level) or by `all` (one A; needs equal level sizes)."},
    )
    base: str = field(default="trainable", metadata={"help": "The base codebooks: `trainable` or `frozen`."})
    penalty_reduction: str = field(
        default="mean",
        metadata={
            "help": "L2 and orthogonality penalties as `mean`, or as `sum` (which switches the low-rank part off).",
            "rare": True,
        },
    )
    l2_weight: float = field(default=1e-4, metadata={"help": "Weight of the L2 penalty on A and B."})
    orthogonality_weight: float = field(
        default=0.0, metadata={"help": "Weight of the penalty on A^T A - I.", "rare": True}
    )
    relative_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the penalty max(0, |AB| / |base| - --relative_limit).",
            "rare": True,
        },
    )
    relative_limit: float = field(
        default=0.1, metadata={"help": "Share of the base's norm that A B may reach without penalty.", "rare": True}
    )
    layer0_multiplier: float = field(
        default=1.0, metadata={"help": "Factor on the penalties of the first level.", "rare": True}
    )
    alignment_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of InfoNCE between the sources' latents of an item; 0 = off."},
    )
    condition_on_previous: bool = field(
        default=False,
        metadata={"help": "Add W · (vector of the code before) to each level's residual; W starts at 0."},
    )
    condition_form: str = field(
        default="vector",
        metadata={
            "help": "condition_on_previous: W times the `vector` of the code before, or times its number as `one_hot` input: e_dim numbers "
            "for each code before.",
            "rare": True,
        },
    )
    inherit_levels: bool = field(
        default=False,
        metadata={
            "help": "A and B of a level are those of the level before plus a difference that is learnt.",
            "rare": True,
        },
    )

    def __post_init__(self) -> None:
        LatentSettings.__post_init__(self)
        CodebookTrainingSettings.__post_init__(self)
        check_choice(self, "share_a", ("sources", "all"))
        check_choice(self, "base", ("trainable", "frozen"))
        check_choice(self, "condition_form", ("vector", "one_hot"))
        refuse_idle(self, "condition_form", self.condition_on_previous, "condition_on_previous is false")
        check_choice(self, "penalty_reduction", ("mean", "sum"))
        check_least(self, "rank", 1)
        weights = ("l2_weight", "orthogonality_weight", "relative_weight", "relative_limit", "alignment_weight")
        for name in (*weights, "layer0_multiplier"):
            check_least(self, name, 0.0)
        refuse_idle(self, "relative_limit", self.relative_weight > 0, "relative_weight is 0")
        if self.reset_every > 0 and self.base == "frozen":
            raise InputError(
                "reset_every is set, but this low-rank quantizer has a frozen base, which cannot be moved; leave reset_every out."
            )

    def check(self, vectors: Rows, level_sizes: list[int]) -> None:
        """Low-rank codebooks of these levels and sources must be possible."""
        self.check_codebook_file(level_sizes, self.e_dim)
        self.check_epsilons(len(level_sizes))
        self.check_soft_levels(level_sizes)
        if len(set(level_sizes)) > 1 and (self.share_a == "all" or self.inherit_levels):
            cause = "share_a `all`" if self.share_a == "all" else "inherit_levels"
            raise InputError(f"{cause} needs level_sizes that are all equal, not {' '.join(map(str, level_sizes))}.")
        if self.rank > min(*level_sizes, self.e_dim):
            raise InputError(
                f"rank {self.rank} is above the smallest of level_sizes and e_dim, {min(*level_sizes, self.e_dim)}; lower it."
            )
        self._check_sources(len(source_widths(vectors)))

    def _check_sources(self, n_sources: int) -> None:
        if self.e_dim < n_sources:
            raise InputError(f"e_dim {self.e_dim} is less than one number for each of {n_sources} sources; raise it.")
        if self.alignment_weight > 0 and n_sources < 2:
            raise InputError(
                "alignment_weight is set, but there is one source only; name two in --sources or leave it out."
            )
        if self.alignment_weight > 0 and self.e_dim % n_sources:
            raise InputError(
                f"alignment_weight compares the sources' latents, but e_dim {self.e_dim} is no multiple of {n_sources} sources; "
                f"--e_dim {self.e_dim + n_sources - self.e_dim % n_sources} is."
            )

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        """Writes lora.json beside training.json. Raises InputError when the loss is not finite."""
        from sidrec.tokenizer.autoencoders.fitting import fit
        from sidrec.tokenizer.report.lora import usage_report

        model = self.build(source_widths(vectors), level_sizes, seed)
        quantizer = fit(model, self, vectors, level_sizes, seed, folder, screen, self.identity())
        if folder:
            write_json(folder / REPORT, usage_report(model, vectors))
        return quantizer

    def build(self, sources: list[int], level_sizes: list[int], seed: int) -> LoraAutoencoder:
        """The model before it has seen a vector. sources: D_s of each source.

        e_dim is divided among the sources evenly (the first ones have one more where there is a remainder). The base codebooks are uniform
        in [-1/K, 1/K], the start that is called `random`. The same weights for the same seed.
        """
        import torch

        from sidrec.tokenizer.autoencoders.lora_autoencoder import LoraAutoencoder
        from sidrec.tokenizer.autoencoders.lora_codebook import LoraCodebook
        from sidrec.tokenizer.autoencoders.mlp import Mlp

        latents = [self.e_dim // len(sources) + (s < self.e_dim % len(sources)) for s in range(len(sources))]  # e_m
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            beside = (False, self.batch_norm, self.dropout)
            encoder = Mlp(list(zip(sources, latents, strict=True)), self.hidden_sizes, *beside)
            decoder = Mlp(list(zip(latents, sources, strict=True)), self.hidden_sizes[::-1], *beside)
            books: list[LoraCodebook] = []
            for K in level_sizes:
                start = torch.empty(K, self.e_dim).uniform_(-1 / K, 1 / K)
                books.append(LoraCodebook(start, latents, self, books[-1] if books else None))
        return LoraAutoencoder(encoder, books, decoder, self)

    def summary_lines(self, folder: Path) -> list[str]:
        from sidrec.tokenizer.report.lora import summary

        return [summary(read_json(folder / REPORT))]

    def report_tables(self, folder: Path) -> list[str]:
        from sidrec.tokenizer.report.lora import table_of_levels

        return [table_of_levels(read_json(folder / REPORT))]


def source_widths(vectors: Rows) -> list[int]:
    """D_s: how many numbers of an item vector each source gives; a plain array is one source."""
    return vectors.blocks if isinstance(vectors, ItemVectors) else [vectors.shape[1]]
