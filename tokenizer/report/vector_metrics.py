"""What codes keep of the item vectors: reconstruction, margins, neighbours, likeness within a prefix; and duplicates among the vectors.

Vectors stay on disk: everything is read in pieces, and what needs comparisons with the whole catalogue is measured on a sample.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from rich import get_console
from rich.progress import track

from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import CHUNK, Rows, chunks
from sidrec.tokenizer.kmeans.nearest import distances
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.report.sid_metrics import DIGITS, prefix_ids

NEIGHBOURS = 10
SAMPLED_QUERIES = 1_000  # items whose neighbours are sought, in the whole catalogue
SAMPLED_MARGINS = 20_000  # items whose nearest and second nearest codes are compared
LARGEST_MARGIN = 10.0  # of an item that lies on its code
NEAR_DUPLICATE = 0.999  # cosine
BLOCK = 2_048  # rows compared at once with all sampled items: the distances stay in the cache


class Reconstruction:
    """Rows [N, D]: the vectors that the items' codes stand for, made when they are asked for. codes: int [N, L]."""

    def __init__(self, quantizer: Quantizer, codes: np.ndarray, dimensions: int) -> None:
        self.quantizer, self.codes = quantizer, codes
        self.shape = (len(codes), dimensions)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.quantizer.reconstruct(self.codes[rows])


def sample(n_items: int, size: int, seed: int) -> np.ndarray:
    """At most `size` different items, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n_items)[:size])


def variance(vectors: Rows) -> float:
    """The mean over items of ||x - mean||^2, a sum over D. vectors: [N, D]."""
    total, squares = np.zeros(vectors.shape[1]), 0.0
    for _, chunk in chunks(vectors):
        total += chunk.sum(axis=0, dtype=np.float64)
        squares += float(np.einsum("nd,nd->", chunk, chunk, dtype=np.float64))
    mean = total / len(vectors)
    return max(squares / len(vectors) - float(mean @ mean), 0.0)


def margins(vectors: Rows, codes: np.ndarray, quantizer: Quantizer, seed: int) -> np.ndarray:
    """(d2 - d1) / d1 on every level: how much farther the second nearest code is than the nearest; near 0: the choice is a toss-up.

    d: Euclidean distances between an item's residual and the level's codes. Of at most 20,000 sampled items; float64 [n, L], at most 10
    (an item on its code has d1 = 0). vectors: [N, D]; codes: int [N, >= L], what the residuals are made with.
    """
    books = quantizer.codebooks
    items = sample(len(codes), SAMPLED_MARGINS, seed)
    latents, by_level = quantizer.latents(vectors), np.empty((len(items), len(books.sizes)))
    for start in range(0, len(items), CHUNK):
        rows = slice(start, start + CHUNK)
        item_codes = codes[items[rows]]
        residual = np.array(latents[items[rows]], dtype=np.float32)
        for level in range(len(books.sizes)):
            by_level[rows, level] = _margin(residual, books, level, item_codes)
            residual -= books.vectors_of(level, item_codes)
    return by_level


def _margin(residual: np.ndarray, books: Codebooks, level: int, codes: np.ndarray) -> np.ndarray:
    """(d2 - d1) / d1 of each residual [n, e] on one level, [n]. codes: [n, L], for levels whose vectors depend on the code before."""
    depends = books.books[level].ndim == 3
    groups = np.unique(codes[:, level - 1]) if depends else [None]
    margin = np.full(len(residual), LARGEST_MARGIN)
    for previous in groups:
        rows = np.flatnonzero(codes[:, level - 1] == previous) if depends else np.arange(len(residual))
        book = books.vectors_after(level, previous)
        if len(book) < 2:
            continue
        squared = distances(torch.tensor(residual[rows]), torch.tensor(book), torch.tensor(books.prices[level]))
        two = squared.topk(2, largest=False).indices.numpy()  # with prices, as items are coded
        near, second = (np.linalg.norm(residual[rows] - book[two[:, place]], axis=1) for place in (0, 1))
        near, second = np.minimum(near, second).astype(np.float64), np.maximum(near, second).astype(np.float64)
        margin[rows] = np.minimum((second - near) / np.maximum(near, 1e-12), LARGEST_MARGIN)
        margin[rows[second == 0]] = 0.0  # two equal codes
    return margin


def exact_duplicates(vectors: Rows) -> dict[str, int]:
    """Items whose vector equals another's, found by hashing rows. vectors: [N, D].

    extra: rows less distinct rows; items: rows in groups of two or more; largest_group: rows in the largest.
    """
    hashes = np.empty(len(vectors), dtype=np.uint64)
    for rows, chunk in chunks(vectors):
        content = np.ascontiguousarray(chunk + np.float32(0))  # + 0: -0.0 becomes 0.0, which it equals
        hashes[rows] = [int.from_bytes(blake2b(row, digest_size=8).digest(), "little") for row in content]
    counts = np.unique(hashes, return_counts=True)[1]
    return {
        "extra": len(vectors) - len(counts),
        "items": int(counts[counts > 1].sum()),
        "largest_group": int(counts.max()),
    }


def nearest_items(rows: Rows, items: np.ndarray, k: int, description: str = "neighbours") -> np.ndarray:
    """The k nearest other rows of each of `items` by Euclidean distance, int64 [n, k], in no order.

    rows: [N, D], N > k, read once in pieces; items: int [n], ascending.
    """
    queries = torch.tensor(rows[items], dtype=torch.float32)
    best = torch.full((len(items), k), float("inf"))
    who = torch.zeros((len(items), k), dtype=torch.int64)
    total = -(-len(rows) // CHUNK)
    quiet = not get_console().is_terminal
    for where, piece in track(chunks(rows), description=description, total=total, transient=True, disable=quiet):
        for start in range(where.start, where.stop, BLOCK):
            block = torch.tensor(piece[start - where.start :][:BLOCK])
            squared = distances(queries, block)  # [n, block], less the query's own square: the order is the same
            queried = np.flatnonzero((items >= start) & (items < start + len(block)))
            squared[queried, items[queried] - start] = float("inf")
            near, places = squared.topk(min(k, len(block)), dim=1, largest=False)
            best, columns = torch.cat([best, near], dim=1).topk(k, dim=1, largest=False)
            who = torch.cat([who, places + start], dim=1).gather(1, columns)
    return who.numpy()


def highest_cosine(vectors: Rows, items: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The highest cosine of each item with its `others`, [n]. vectors: [N, D]; items: int [n]; others: int [n, k]."""
    rows = np.array(vectors[items], dtype=np.float64)
    highest = np.full(len(items), -1.0)
    for column in others.T:
        other = np.array(vectors[column], dtype=np.float64)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(other, axis=1)
        highest = np.maximum(highest, np.einsum("nd,nd->n", rows, other) / np.maximum(lengths, 1e-30))
    return highest


def neighbourhoods(vectors: Rows, reconstruction: Rows, codes: np.ndarray, seed: int) -> dict[str, Any]:
    """What becomes of an item's 10 nearest items when items are replaced by their codes. vectors, reconstruction: [N, D].

    preserved: the share of them that are still among the 10 nearest of the reconstruction. prefix_agreement: the share of them that have
    the item's first d codes, d = 1 … L, and random_pairs: the share of all pairs that do. near_duplicates: the share of items with
    another at cosine > .999 among these 10. Of at most 1,000 sampled items (`sampled`), against the whole catalogue.
    """
    N, L = codes.shape
    k = min(NEIGHBOURS, N - 1)
    if k < 1:
        return {
            "sampled": N,
            "preserved": 1.0,
            "prefix_agreement": [1.0] * L,
            "random_pairs": [1.0] * L,
            "near_duplicates": 0.0,
        }
    items = sample(N, SAMPLED_QUERIES, seed)
    true = nearest_items(vectors, items, k)
    by_codes = nearest_items(reconstruction, items, k, "neighbours by codes")
    preserved = sum(len(np.intersect1d(a, b)) for a, b in zip(true, by_codes, strict=True))
    ids = prefix_ids(codes)
    counts = [np.bincount(ids[:, level]).astype(np.float64) for level in range(L)]
    return {
        "sampled": len(items),
        "preserved": round(preserved / (k * len(items)), DIGITS),
        "prefix_agreement": [round(float((ids[true, d] == ids[items, d][:, None]).mean()), DIGITS) for d in range(L)],
        "random_pairs": [round(float((n * (n - 1)).sum() / (N * (N - 1.0))), DIGITS) for n in counts],
        "near_duplicates": round(float((highest_cosine(vectors, items, true) > NEAR_DUPLICATE).mean()), DIGITS),
    }


def within_prefixes(vectors: Rows, codes: np.ndarray) -> dict[str, Any]:
    """How alike the items are that share their first d codes, d = 1 … L; needs no codebooks. vectors: [N, D], codes: int [N, L].

    variance_between: share of the variance that lies between the prefixes' mean vectors (1 when every item is alone). cosine: mean over
    all pairs that share a prefix, None where there is none; cosine_of_random_pairs: mean over all pairs.
    """
    ids = np.column_stack([np.zeros(len(codes), dtype=np.int64), prefix_ids(codes)])  # depth 0: everything
    order = np.argsort(ids[:, -1], kind="stable")
    depths = [_GroupSums(2 * vectors.shape[1]) for _ in range(ids.shape[1])]
    aligned = 0.0  # sum of squared lengths of the unit rows: N, less rows of zeros
    for start in range(0, len(order), CHUNK):
        items = order[start : start + CHUNK]
        rows = np.asarray(vectors[items], dtype=np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        aligned += float((lengths > 0).sum())
        both = np.concatenate([rows, rows / np.where(lengths > 0, lengths, 1.0)], axis=1)  # [n, 2D]
        prefixes, counts = ids[items], np.ones(len(items), dtype=np.int64)
        for depth in reversed(range(len(depths))):  # the sums of a depth are made of those of the depth below
            both, counts, starts = depths[depth].add(both, counts, prefixes[:, depth])
            prefixes = prefixes[starts]
    for sums in depths:
        sums.close()
    total = variance(vectors) * len(vectors)
    cosines = [(sums.unit_squares - aligned) / sums.pairs if sums.pairs else None for sums in depths]
    return {
        "variance_between": [
            round((sums.squares - depths[0].squares) / total, DIGITS) if total > 1e-12 else 0.0 for sums in depths[1:]
        ],
        "cosine": [None if value is None else round(value, DIGITS) for value in cosines[1:]],
        "cosine_of_random_pairs": None if cosines[0] is None else round(cosines[0], DIGITS),
    }


class _GroupSums:
    """Sums over groups of rows that come one after another; keeps only what is made of them.

    A row holds a vector and its direction, [2D]. squares: sum over groups of ||sum of vectors||^2 / n; unit_squares: sum over groups of
    ||sum of directions||^2; pairs: sum of n (n - 1).
    """

    def __init__(self, width: int) -> None:
        self.squares = self.unit_squares = self.pairs = 0.0
        self._open, self._count, self._group = np.zeros((1, width)), np.zeros(1, dtype=np.int64), -1

    def add(
        self, rows: np.ndarray, counts: np.ndarray, groups: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rows: float64 [n, 2D], sums of `counts` [n] items each; groups: int [n], ascending, not below those of the call before.

        Returns the sums and counts of these rows' groups, [g, 2D] and [g], and where each group starts in `rows`.
        """
        starts = np.concatenate([[0], np.flatnonzero(np.diff(groups)) + 1])
        sums, counts = np.add.reduceat(rows, starts, axis=0), np.add.reduceat(counts, starts)
        if groups[0] != self._group:
            self.close()
        first, count = sums[:1] + self._open, counts[:1] + self._count
        if len(starts) > 1:
            self._take(first, count)
            self._take(sums[1:-1], counts[1:-1])
            first, count = sums[-1:], counts[-1:]
        self._open, self._count, self._group = first, count, int(groups[-1])
        return sums, counts, starts

    def close(self) -> None:
        """The group that is open has no more rows."""
        if self._count.sum():
            self._take(self._open, self._count)
        self._open, self._count = np.zeros_like(self._open), np.zeros(1, dtype=np.int64)

    def _take(self, sums: np.ndarray, counts: np.ndarray) -> None:
        D = sums.shape[1] // 2
        self.squares += float((np.einsum("gd,gd->g", sums[:, :D], sums[:, :D]) / counts).sum())
        self.unit_squares += float(np.einsum("gd,gd->", sums[:, D:], sums[:, D:]))
        self.pairs += float((counts.astype(np.float64) * (counts - 1)).sum())
