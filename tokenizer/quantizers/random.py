"""Random codes: different for every item and without meaning, which any other quantizer's must be better than."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sidrec.tokenizer.quantizers.kind import Kind
from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes, default_level_sizes

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer

MOST_PATHS = 2**62  # random paths are drawn as one number


@dataclass
class Random(Kind):
    """Paths drawn without repetition; the codebooks for new items are fitted to them."""

    summary: ClassVar[str] = "codes without meaning, to compare with"
    needs_spread: ClassVar[bool] = False

    def choose_level_sizes(self, asked: list[int], shape: tuple[int, ...], unique: str) -> list[int]:
        """Any sizes that give every item a path of its own, or, with a further token, any at all."""
        sizes = asked or default_level_sizes(shape[0], unique)
        check_level_sizes(sizes, shape[0], clustered=0, unique=unique in ("assign", "none"))
        return sizes

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        from sidrec.tokenizer.codebooks import fitted_codebooks
        from sidrec.tokenizer.quantizer import Quantizer

        codes = random_codes(len(vectors), level_sizes, seed)
        return Quantizer(fitted_codebooks(vectors, codes, level_sizes))

    def encode(self, quantizer: Quantizer, vectors: Rows, seed: int) -> np.ndarray:
        """The codes that were drawn, int32 [N, L]: not the nearest ones."""
        return random_codes(len(vectors), quantizer.codebooks.sizes, seed)


def random_codes(n_items: int, level_sizes: list[int], seed: int) -> np.ndarray:
    """Different codes for every item, int32 [N, L]; where there are fewer than items, each as often as the others but for one."""
    paths, rng = min(math.prod(level_sizes), MOST_PATHS), np.random.default_rng(seed)
    rest = rng.choice(paths, n_items, replace=False) if paths >= n_items else rng.permutation(n_items) % paths
    codes = np.empty((n_items, len(level_sizes)), dtype=np.int32)
    for level, size in enumerate(level_sizes):
        rest, codes[:, level] = np.divmod(rest, size)
    return codes
