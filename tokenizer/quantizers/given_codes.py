"""Codes that no quantizer of this project made: from a file, or random ones to compare with; and codebooks that suit them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.config import TokenizerConfig
from sidrec.tokenizer.embeddings.item_vectors import Rows, chunks
from sidrec.tokenizer.interchange import read_codebooks, read_codes
from sidrec.tokenizer.quantizer import Quantizer

UNUSED_PRICE = 1e9  # keeps new items away from codes that no item has; squared distances are far below it
MOST_PATHS = 2**62  # random paths are drawn as one number


@dataclass(frozen=True)
class GivenCodes:
    """codes: int32 [N, L]; level_sizes: K_l; books: L arrays, float32 [K_l, D], or None to fit them to the item vectors."""

    codes: np.ndarray
    level_sizes: list[int]
    books: list[np.ndarray] | None

    @classmethod
    def read(cls, config: TokenizerConfig, n_items: int, dimensions: int) -> GivenCodes:
        """What `codes_file` and `codebooks_file` hold; the extra token that only some items have is left out: --unique makes its own.

        Raises InputError when they do not fit the catalogue, the item vectors [n_items, dimensions] or each other.
        """
        assert config.codes_file is not None
        path = Path(config.codes_file)
        codes, has_extra = read_codes(path, config.codes_offset)
        codes = codes[:, :-1] if has_extra else codes
        if len(codes) != n_items:
            raise InputError(
                f"{path} has codes for {len(codes)} items, but the catalogue has {n_items}; use the file made for it."
            )
        books = None
        if config.codebooks_file:
            books = read_codebooks(Path(config.codebooks_file), config.level_sizes or None, dimensions)
        sizes = [len(book) for book in books] if books else config.level_sizes
        sizes = sizes or [max(2, int(largest) + 1) for largest in codes.max(axis=0)]
        if len(sizes) != codes.shape[1]:
            other = config.codebooks_file or "--level_sizes"
            raise InputError(
                f"{path} has {codes.shape[1]} codes an item, but {other} has {len(sizes)} levels; they must agree."
            )
        beyond = np.argwhere(codes >= np.array(sizes))
        if len(beyond):
            item, level = beyond[0].tolist()
            raise InputError(
                f"{path} gives item {item} the code {codes[item, level]} on level {level + 1}, which has {sizes[level]} codes counted from "
                "0; correct the file, the level's size or --codes_offset."
            )
        return cls(codes, sizes, books)

    def quantizer(self, vectors: Rows) -> Quantizer:
        """Codebooks for new items: those of the file, else fitted to the items' vectors [N, D]."""
        return Quantizer(
            Codebooks(self.books) if self.books else fitted_codebooks(vectors, self.codes, self.level_sizes)
        )


def random_codes(n_items: int, level_sizes: list[int], seed: int) -> np.ndarray:
    """Different codes for every item and without meaning, int32 [N, L]: what semantic IDs must be better than."""
    paths = min(math.prod(level_sizes), MOST_PATHS)
    assert paths >= n_items
    left = np.random.default_rng(seed).choice(paths, n_items, replace=False)
    codes = np.empty((n_items, len(level_sizes)), dtype=np.int32)
    for level, size in enumerate(level_sizes):
        left, codes[:, level] = np.divmod(left, size)
    return codes


def fitted_codebooks(vectors: Rows, codes: np.ndarray, level_sizes: list[int]) -> Codebooks:
    """A vector for every code: the mean, over the items that have it, of what the levels before leave over.

    vectors: [N, D], read in pieces; codes: int [N, L]. A code without items stands for the mean of all, at a price that keeps new items
    away from it. Returns codebooks [K_l, D]; residual k-means ends in codebooks of this kind.
    """
    assert codes.shape == (len(vectors), len(level_sizes))
    books: list[np.ndarray] = []
    prices = []
    for level, size in enumerate(level_sizes):
        sums = np.zeros((size, vectors.shape[1]))
        before = Codebooks(books) if books else None
        for rows, chunk in chunks(vectors):
            residual = chunk if before is None else chunk - before.reconstruct(codes[rows, :level])
            np.add.at(sums, codes[rows, level], residual)
        counts = np.bincount(codes[:, level], minlength=size)
        means = sums / np.maximum(counts, 1)[:, None]
        books.append(np.where(counts[:, None] > 0, means, sums.sum(axis=0) / len(codes)).astype(np.float32))
        prices.append(np.where(counts > 0, 0, UNUSED_PRICE).astype(np.float32))
    return Codebooks(books, prices)
