"""Finite scalar quantization (FSQ, arXiv 2309.15505): an encoder's numbers, each rounded to one of a few values.

See sidrec.tokenizer.autoencoders.finite_scalar for the grid, and fsq_autoencoder beside it for what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.ranges import check_choice, check_least
from sidrec.tokenizer.autoencoders.grid_settings import GridSettings
from sidrec.tokenizer.autoencoders.settings import TrainingSettings
from sidrec.tokenizer.quantizers.kind import Kind
from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.autoencoders.fsq_autoencoder import FsqAutoencoder
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer

SAMPLED_ROWS = 4096


@dataclass
class Fsq(GridSettings, TrainingSettings, Kind):
    """Encoder and decoder are trained around a grid that is fixed."""

    summary: ClassVar[str] = "finite scalar quantization, a grid instead of codebooks"
    is_trained: ClassVar[bool] = True

    fsq_tokens: int = field(default=3, metadata={"help": "Tokens per item."})
    fsq_form: str = field(
        default="groups",
        metadata={"help": "Tokens are `groups` of dimensions, or `residual` refinements of the same ones."},
    )
    fsq_grid: str = field(
        default="asymmetric",
        metadata={
            "help": "The values of a dimension with an even number of levels: `asymmetric` (as published: 8 levels are -1, -.75, …, .75, "
            "with 0) or `symmetric` (-1, -.714, …, 1, without 0); with an odd number they are the same.",
            "rare": True,
        },
    )

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        GridSettings.__post_init__(self)
        check_choice(self, "fsq_form", ("groups", "residual"))
        check_choice(self, "fsq_grid", ("asymmetric", "symmetric"))
        if self.fsq_form == "residual" and 2 in self.fsq_levels:
            raise InputError(
                "fsq_levels holds 2, whose grid gets no finer from token to token; residual needs 3 or more."
            )
        check_least(self, "fsq_tokens", 1)

    def choose_level_sizes(self, asked: list[int], shape: tuple[int, ...], unique: str) -> list[int]:
        """What `fsq_levels` and `fsq_tokens` give."""
        sizes = [self.n_codes] * self.fsq_tokens
        if asked and asked != sizes:
            raise InputError(
                f"level_sizes is {' '.join(map(str, asked))}, but fsq_levels {' '.join(map(str, self.fsq_levels))} give "
                f"{' '.join(map(str, sizes))} for {self.fsq_tokens} tokens; leave --level_sizes out."
            )
        check_level_sizes(sizes, shape[0], clustered=0, unique=unique == "assign")
        return sizes

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        """Raises InputError when the loss is not finite."""
        from sidrec.tokenizer.autoencoders.training import Training

        model = self.build(vectors, seed)
        identity = self.identity() | {"seed": seed, "shape": list(vectors.shape)}
        curve = Training(model, vectors, self, seed, identity, folder, screen).run(lambda: None)
        if folder:
            write_json(folder / "training.json", curve)
        return model.quantizer()

    def build(self, vectors: Rows, seed: int) -> FsqAutoencoder:
        """The model before the first step; its first and last layers know the scale of `vectors` [N, D], from a sample of them."""
        import torch

        from sidrec.tokenizer.autoencoders.fsq_autoencoder import FsqAutoencoder
        from sidrec.tokenizer.autoencoders.mlp import Mlp

        N, D = vectors.shape
        sample = np.sort(np.random.default_rng(seed).permutation(N)[:SAMPLED_ROWS])
        scale = float(np.sqrt(np.square(vectors[sample], dtype=np.float64).mean())) or 1.0
        e = len(self.fsq_levels) * (self.fsq_tokens if self.fsq_form == "groups" else 1)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            encoder = Mlp([(D, e)], self.hidden_sizes, False, self.batch_norm, self.dropout)
            decoder = Mlp([(e, D)], self.hidden_sizes[::-1], False, self.batch_norm, self.dropout)
            (first, _), (_, last) = encoder.ends()[0], decoder.ends()[0]
            first.weight /= scale
            last.weight *= scale
        symmetric = self.fsq_grid == "symmetric"
        built = (self.fsq_levels, self.fsq_tokens, self.fsq_form, self.reconstruction, symmetric)
        return FsqAutoencoder(encoder, decoder, *built)
