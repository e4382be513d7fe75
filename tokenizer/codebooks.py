"""L codebooks whose vectors add up: what every quantizer ends in, and what codes items.

With r_0 = z, the item's latent vector [e]: code_l = argmin_k ||r_l - C_l[k]||^2 + p_l[k], r_{l+1} = r_l - C_l[code_l]; the
reconstruction of z is the sum of its codes' vectors. A level's codebook is [K_l, e]; where the vectors depend on the code of the
level before (coarse-to-fine, conditioning), it is [K_{l-1}, K_l, e]. Codebooks of other quantizers are of this form too: the
sub-codebook of a product quantizer is zero outside its own dimensions, the grid of a finite scalar quantizer is a codebook of its points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from sidrec.tokenizer.embeddings.item_vectors import Rows, chunks
from sidrec.tokenizer.kmeans.nearest import BLOCK, nearest_codes, nearest_in

UNUSED_PRICE = 1e9  # keeps new items away from codes that no item has; squared distances are far below it


@dataclass(frozen=True)
class Codebooks:
    """books: L arrays, float32 [K_l, e] or [K_{l-1}, K_l, e]; prices: L arrays, float32 [K_l], added to squared distances when coding.

    Prices make clusters of (nearly) equal size, for new items as well; default: none.
    """

    books: list[np.ndarray]
    prices: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.prices:
            object.__setattr__(self, "prices", [np.zeros(book.shape[-2], dtype=np.float32) for book in self.books])
        assert self.books[0].ndim == 2, "the first level has no code before it"
        assert len(self.prices) == len(self.books)
        for level, (book, price) in enumerate(zip(self.books, self.prices, strict=True)):
            assert book.ndim in (2, 3), f"codebook {level} must be [K, e] or [K_before, K, e], got {book.shape}"
            assert book.ndim == 2 or len(book) == self.sizes[level - 1], f"codebook {level} is {book.shape}"
            assert book.shape[-1] == self.width, "codebooks differ in e"
            assert price.shape == (book.shape[-2],)

    @property
    def sizes(self) -> list[int]:
        """K_l: the number of codes of each level."""
        return [book.shape[-2] for book in self.books]

    @property
    def width(self) -> int:
        """e: the length of a code's vector."""
        return self.books[0].shape[-1]

    def vectors_after(self, level: int, previous: int | None) -> np.ndarray:
        """The vectors [K_l, e] of a level's codes, given the code of the level before (None at the first level)."""
        book = self.books[level]
        if book.ndim == 2:
            return book
        assert previous is not None
        return book[previous]

    def doubles_after(self, level: int, previous: int | None) -> tuple[np.ndarray, np.ndarray]:
        """`vectors_after` [K_l, e] in float64, and their squared lengths [K_l]."""
        return self._doubles.get(level) or _with_lengths(self.vectors_after(level, previous))

    @cached_property
    def _doubles(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Of the levels whose vectors do not depend on the code before: they are asked for often."""
        return {level: _with_lengths(book) for level, book in enumerate(self.books) if book.ndim == 2}

    def vectors_of(self, level: int, codes: np.ndarray) -> np.ndarray:
        """What each row's code at `level` stands for, [n, e]. codes: int [n, > level], all levels up to this one."""
        book = self.books[level]
        return book[codes[:, level]] if book.ndim == 2 else book[codes[:, level - 1], codes[:, level]]

    def encode(self, latents: Rows, first: np.ndarray | None = None) -> np.ndarray:
        """The nearest code on every level, each given the codes before it. latents: [N, e]. Returns int32 [N, L].

        first: int32 [N, < L], codes of the first levels that are settled already; None for none.
        """
        assert latents.shape[1] == self.width, f"latents are {latents.shape}, codebooks hold vectors of {self.width}"
        codes = np.empty((len(latents), len(self.books)), dtype=np.int32)
        searches = [self._search(level) for level in range(len(self.books))]
        settled = 0 if first is None else first.shape[1]
        conditional = any(book.ndim == 3 for book in self.books)
        for rows, chunk in chunks(latents):
            step = len(chunk) if conditional else BLOCK  # all levels of a block while it is in the cache
            for start in range(0, len(chunk), step):
                residual = torch.tensor(chunk[start : start + step])  # a copy: it is written to
                here = codes[rows][start : start + step]  # a view
                if first is not None:
                    here[:, :settled] = first[rows][start : start + step]
                for level, search in enumerate(searches):
                    if level >= settled:
                        here[:, level] = search(residual, here)
                    if level + 1 < len(searches):
                        residual -= torch.from_numpy(self.vectors_of(level, here))
        return codes

    def _search(self, level: int) -> Callable[[torch.Tensor, np.ndarray], np.ndarray]:
        """(residual [n, e], codes [n, L], filled up to `level`) → the nearest code, [n]; the lowest index among equals."""
        # copies: they lie as torch aligns memory, so that products have the same bits in every run
        book, price = torch.tensor(self.books[level]), torch.tensor(self.prices[level])
        if book.ndim == 2:
            search = nearest_in(book, price)
            return lambda residual, codes: search(residual).numpy()

        def of_previous(residual: torch.Tensor, codes: np.ndarray) -> np.ndarray:
            nearest = np.empty(len(residual), dtype=np.int64)
            for previous in np.unique(codes[:, level - 1]):
                rows = np.flatnonzero(codes[:, level - 1] == previous)
                nearest[rows] = nearest_codes(residual[rows], book[previous], price).numpy()
            return nearest

        return of_previous

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """The latents that the codes stand for: the sum over the codes given. codes: [n, <= L]. Returns float32 [n, e]."""
        assert codes.shape[1] <= len(self.books)
        total = np.zeros((len(codes), self.width), dtype=np.float32)
        for level in range(codes.shape[1]):
            total += self.vectors_of(level, codes)
        return total

    def partial_sums(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """The reconstruction after the first level, after the second, …; each [n, e], the same array added to in place."""
        total = np.zeros((len(codes), self.width), dtype=np.float32)
        for level in range(codes.shape[1]):
            total += self.vectors_of(level, codes)
            yield total

    def per_code(self, codes: np.ndarray) -> list[np.ndarray]:
        """One vector a code, whatever the code before: L arrays [K_l, e]. codes: int [N, L].

        Where a level depends on the code before, a code's vector is the mean over the items that have it (over all codes before, if
        none has).
        """
        flat = []
        for level, book in enumerate(self.books):
            if book.ndim == 3:
                counts = np.bincount(codes[:, level], minlength=book.shape[1])
                sums = np.zeros(book.shape[1:], dtype=np.float64)
                np.add.at(sums, codes[:, level], self.vectors_of(level, codes))
                means = sums / np.maximum(counts, 1)[:, None]
                book = np.where(counts[:, None] > 0, means, book.mean(axis=0)).astype(np.float32)
            flat.append(book)
        return flat


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


def _with_lengths(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [K, e] in float64, and their squared lengths [K]."""
    doubles = vectors.astype(np.float64)
    return doubles, (doubles**2).sum(axis=1)
