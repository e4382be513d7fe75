"""One item, one semantic ID: resolve equal code rows with the smallest added error, and no extra token.

Items that share their first L-1 codes compete for the K_L last codes; who gets which is an assignment problem, solved
exactly. Where more items share a prefix than there are last codes, the ones that fit worst move to the nearest path
that is still free.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import Rows

BEAM_WIDTH = 32  # prefixes kept per level while an item looks for a free path


def make_unique(latents: Rows, codes: np.ndarray, codebooks: Codebooks, screen: Screen | None = None) -> np.ndarray:
    """Change as little as needed so that no two rows of codes are equal.

    latents: [N, e], what the codebooks code; codes: int [N, L], the quantizer's own; N <= prod K_l.
    Returns int32 [N, L], unique per row. Per group of equal first L-1 codes with a repeated row: the assignment of
    items to last codes with the least total squared error. A group larger than K_L keeps the K_L items that fit
    cheapest; the others, in item order, take the cheapest free path of a beam over prefixes that have room, of which
    there always is one. Deterministic; of items with exactly equal vectors the first gets the nearest code.
    """
    N, L = codes.shape
    sizes = codebooks.sizes
    assert latents.shape == (N, codebooks.width), f"latents {latents.shape} do not fit codes {codes.shape}"
    assert len(sizes) == L
    assert math.prod(sizes) >= N, f"{N} items cannot get unique codes from {sizes}"
    unique = codes.astype(np.int32)
    displaced: list[int] = []
    screen = screen or Screen("unique IDs", quiet=True)
    groups = _groups_with_repeats(codes, sizes)
    with screen.bar("unique IDs", len(groups), "groups") as bar:
        for items in groups:
            of_group = latents[items]
            residuals = of_group - codebooks.reconstruct(codes[items[:1], :-1])
            book, lengths = codebooks.doubles_after(L - 1, int(codes[items[0], -2]) if L > 1 else None)
            last = _assign(_costs(residuals.astype(np.float64), book, lengths), of_group)  # costs: [group, K_L]
            unique[items, -1] = last
            displaced.extend(items[last < 0].tolist())
            bar.advance()
    if displaced:
        _reroute(sorted(displaced), latents, unique, codebooks, screen)
    return unique


def places(codes: np.ndarray) -> np.ndarray:
    """The code of an extra token that tells equal rows apart: how many items before have the same codes, int32 [N]. codes: int [N, L].

    MiniOneRec numbers so too, from 1, but gives the token to items that share their codes only: its IDs are of L or of L + 1 tokens.
    """
    levels = pl.DataFrame({f"{level}": codes[:, level] for level in range(codes.shape[1])})
    return levels.select(pl.int_range(pl.len(), dtype=pl.Int32).over(levels.columns)).to_series().to_numpy()


def _groups_with_repeats(codes: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """The items (ascending) of every group with equal first L-1 codes in which a last code occurs twice."""
    N, L = codes.shape
    prefix = np.zeros(N, dtype=np.int64)
    for level in range(L - 1):  # ranks instead of mixed-radix numbers: those overflow at 8 levels of 256
        prefix = np.unique(prefix * sizes[level] + codes[:, level], return_inverse=True)[1]
    order = np.argsort(prefix, kind="stable")
    starts = np.flatnonzero(np.diff(prefix[order])) + 1
    row_counts = np.unique(prefix * sizes[-1] + codes[:, -1], return_inverse=True, return_counts=True)
    repeated = row_counts[2][row_counts[1]] > 1  # [N]
    return [items for items in np.split(order, starts) if repeated[items].any()]


def squared_distances(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """||r - c||^2 in float64 for rows [n, D] and a codebook [K, D]: [n, K]."""
    rows, book = rows.astype(np.float64), codebook.astype(np.float64)
    return (rows**2).sum(axis=1)[:, None] + (book**2).sum(axis=1) - 2.0 * (rows @ book.T)


def _costs(rows: np.ndarray, book: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`squared_distances` [n, K] for a book [K, D] that is in float64 already, with the squared lengths [K] of its vectors."""
    return (rows**2).sum(axis=1)[:, None] + lengths - 2.0 * (rows @ book.T)


def _assign(costs: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The cheapest one-to-one assignment of n items to K codes.

    costs: [n, K]. Returns codes [n], with -1 for the items left over where n > K.
    """
    n, K = costs.shape
    assigned = np.full(n, -1, dtype=np.int32)
    if n <= K:
        rows, columns = linear_sum_assignment(costs)
    else:
        columns, rows = linear_sum_assignment(costs.T)
    assigned[rows] = columns
    for equal in _equal_rows(vectors):  # their costs are equal: exchanging their codes costs nothing
        by_cost = sorted((float(costs[equal[0], code]), code) for code in assigned[equal] if code >= 0)
        assigned[equal] = [code for _, code in by_cost] + [-1] * (len(equal) - len(by_cost))
    return assigned


def _equal_rows(vectors: np.ndarray) -> list[np.ndarray]:
    """The indices, ascending, of every set of two or more equal rows of [n, D]."""
    _, same_sum, counts = np.unique(vectors.sum(axis=1), return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[same_sum] > 1)  # sums first: comparing whole rows takes much longer
    if not len(candidates):
        return []
    _, kinds, counts = np.unique(vectors[candidates], axis=0, return_inverse=True, return_counts=True)
    return [candidates[kinds.ravel() == kind] for kind in np.flatnonzero(counts > 1)]


class Occupied:
    """Which children of a prefix are full: their subtree has no free path left (at the last level: they are taken)."""

    def __init__(self, level_sizes: list[int]) -> None:
        self.level_sizes = level_sizes
        self._children: defaultdict[tuple[int, ...], array[int]] = defaultdict(lambda: array("i"))

    @classmethod
    def of(cls, codes: np.ndarray, level_sizes: list[int]) -> Occupied:
        """What the rows of codes [n, L], which are unique, leave free."""
        occupied = cls(level_sizes)
        full = codes[np.lexsort(codes.T[::-1])]  # [n, level + 1], rows in order: those under one prefix are neighbours
        for level in reversed(range(len(level_sizes))):
            if not len(full):
                break
            prefixes = full[:, :level]
            starts = np.flatnonzero(np.append(True, (prefixes[1:] != prefixes[:-1]).any(axis=1)))
            children = np.split(full[:, level].astype(np.int32), starts[1:])
            for prefix, codes_after in zip(prefixes[starts].tolist(), children, strict=True):
                occupied._children[tuple(prefix)] = array("i", codes_after.tobytes())
            full = prefixes[starts[np.array([len(codes_after) == level_sizes[level] for codes_after in children])]]
        return occupied

    def children(self, prefix: tuple[int, ...]) -> np.ndarray:
        """The codes after `prefix` that are full, int32; in no order."""
        return np.array(self._children.get(prefix, ()), dtype=np.int32)

    def take(self, path: tuple[int, ...]) -> None:
        """Mark a path as taken; a prefix whose children are all full is full itself."""
        while path:
            path, code = path[:-1], path[-1]
            self._children[path].append(code)
            if len(self._children[path]) < self.level_sizes[len(path)]:
                return


def _reroute(displaced: list[int], latents: Rows, unique: np.ndarray, codebooks: Codebooks, screen: Screen) -> None:
    """Give every displaced item, in order, the cheapest free path of its beam; writes into `unique` [N, L]."""
    settled = np.ones(len(unique), dtype=bool)
    settled[displaced] = False
    occupied = Occupied.of(unique[settled], codebooks.sizes)
    with screen.bar("items of overfull prefixes", len(displaced)) as bar:
        for item in displaced:
            path = cheapest_free_path(latents[np.array([item])][0], codebooks, occupied)
            unique[item] = path
            occupied.take(path)
            bar.advance()


def cheapest_free_path(latent: np.ndarray, codebooks: Codebooks, occupied: Occupied) -> tuple[int, ...]:
    """Beam search over prefixes that still have room, so that it cannot end without a free path. latent: [e]."""
    prefixes: list[tuple[int, ...]] = [()]
    residuals = latent[None, :].astype(np.float64)  # [beam, e]
    for level in range(len(codebooks.sizes)):
        last = [prefix[-1] if prefix else None for prefix in prefixes]
        errors = _errors_of_children(residuals, codebooks, level, last)  # [beam, K]
        for row, prefix in enumerate(prefixes):
            errors[row, occupied.children(prefix)] = np.inf
        best = _smallest(errors.ravel(), BEAM_WIDTH if level < len(codebooks.sizes) - 1 else 1)
        rows, codes = np.unravel_index(best, errors.shape)
        vectors = [codebooks.vectors_after(level, last[row])[code] for row, code in zip(rows, codes, strict=True)]
        prefixes = [(*prefixes[row], int(code)) for row, code in zip(rows, codes, strict=True)]
        residuals = residuals[rows] - np.stack(vectors)
    return prefixes[0]


def _errors_of_children(residuals: np.ndarray, codebooks: Codebooks, level: int, last: list[int | None]) -> np.ndarray:
    """Squared distances of each prefix's residual [beam, e] to the vectors of its children: [beam, K]. last: the prefixes' last codes."""
    if codebooks.books[level].ndim == 2:
        return _costs(residuals, *codebooks.doubles_after(level, None))
    rows = [_costs(residuals[[row]], *codebooks.doubles_after(level, code)) for row, code in enumerate(last)]
    return np.concatenate(rows)


def _smallest(values: np.ndarray, most: int) -> np.ndarray:
    """The indices of the `most` smallest finite values, smallest first, the lower index first among equals."""
    largest = np.partition(values, most - 1)[most - 1] if len(values) > most else np.inf
    within = np.flatnonzero(values <= largest)
    best = within[np.argsort(values[within], kind="stable")][:most]
    return best[np.isfinite(values[best])]
