"""Residual k-means (QARM, arXiv 2411.11739): each level clusters what the levels before it leave over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sidrec.tokenizer.kmeans.settings import KmeansSettings
from sidrec.tokenizer.quantizers.kind import Kind

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer


@dataclass
class Rqkmeans(KmeansSettings, Kind):
    """See sidrec.tokenizer.kmeans.residual_kmeans."""

    summary: ClassVar[str] = "residual k-means"
    shares_rows: ClassVar[bool] = True

    def exact_levels(self, n_levels: int) -> int:
        return n_levels if self.clusters == "exact" else 0

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        from sidrec.tokenizer.kmeans.residual_kmeans import fit
        from sidrec.tokenizer.quantizer import Quantizer

        return Quantizer(fit(vectors, level_sizes, seed, self, screen))
