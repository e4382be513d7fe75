"""Product quantization: every level codes its own part of the vector, after a rotation that gives each part the same variance.

With an orthogonal R [D, D] and x R = [x^1, …, x^L]: code_l = argmin_k ||x^l - c_l[k]||^2, c_l the k-means centroids of the x^l. In the
space of x, code k of level l stands for C_l[k] = [0, …, c_l[k], …, 0] R^T: the parts are orthogonal, so the reconstruction is the sum
of the codes' vectors and what level l leaves over does not touch another level's part. R's columns are the principal directions, dealt
out so that the parts have about equal variance (as optimized product quantization deals eigenvalues; Ge et al., CVPR 2013). Levels are
independent: a first code says no more than a last one, and no prefix of a semantic ID is a coarser item.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.kmeans.settings import KmeansSettings
from sidrec.tokenizer.quantizers.kind import Kind

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer


@dataclass
class Product(KmeansSettings, Kind):
    """Learnt on at most `train_rows_per_code` · max K_l rows, drawn at random."""

    summary: ClassVar[str] = "product quantization, every level its own part of the vector"

    def check(self, vectors: Rows, level_sizes: list[int]) -> None:
        """Every level needs a dimension of its own."""
        if len(level_sizes) > vectors.shape[1]:
            raise InputError(
                f"product quantization gives every level dimensions of its own, but there are {len(level_sizes)} level_sizes and vectors "
                f"of {vectors.shape[1]} numbers; name fewer levels."
            )

    def exact_levels(self, n_levels: int) -> int:
        return n_levels if self.clusters == "exact" else 0

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        """One codebook [K_l, D] a level, zero outside its part."""
        from sidrec.tokenizer.codebooks import Codebooks
        from sidrec.tokenizer.kmeans.residual_kmeans import fit
        from sidrec.tokenizer.quantizer import Quantizer

        self.check(vectors, level_sizes)
        N = len(vectors)
        n_train = min(N, self.train_rows_per_code * max(level_sizes))
        sample = np.sort(np.random.default_rng(seed).permutation(N)[:n_train])
        rows = np.asarray(vectors[sample], dtype=np.float32)
        books, prices = [], []
        for level, (basis, size) in enumerate(zip(balanced_parts(rows, len(level_sizes)), level_sizes, strict=True)):
            part = fit(rows @ basis, [size], seed + level, self, screen)  # basis: [D, D_l]
            books.append(part.books[0] @ basis.T)
            prices.append(part.prices[0])
        return Quantizer(Codebooks(books, prices))


def balanced_parts(rows: np.ndarray, n_parts: int) -> list[np.ndarray]:
    """Orthonormal bases [D, D_l] that together span all of the space, with about equal variance of the rows [n, D] in each.

    Principal directions, the strongest first, each go to the part with the least variance so far that is not full; the parts' sizes
    differ by at most 1.
    """
    n, D = rows.shape
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / n)  # ascending
    variances = np.maximum(variances, 0.0)
    rooms = [D // n_parts + (part < D % n_parts) for part in range(n_parts)]
    parts: list[list[int]] = [[] for _ in range(n_parts)]
    totals = [0.0] * n_parts
    for direction in range(D - 1, -1, -1):
        _, part = min((totals[part], part) for part in range(n_parts) if len(parts[part]) < rooms[part])
        parts[part].append(direction)
        totals[part] += float(variances[direction])
    return [np.ascontiguousarray(directions[:, part], dtype=np.float32) for part in parts]
