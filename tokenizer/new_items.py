"""Semantic IDs for items that come later: free ones, near their own, while the old items keep theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sidrec.pipeline.arrays import read_npy
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import read_manifest
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, Rows, chunks
from sidrec.tokenizer.embeddings.sources import check_numbers, read_source
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.unique_sids import Occupied, cheapest_free_path, squared_distances


@dataclass(frozen=True)
class NewItems:
    """New row i becomes item N + i of the catalogue of N items.

    codes: int32 [n, L], unique, also against the old items' codes. nearest: int32 [n, levels of the quantizer], the quantizer's own codes.
    duplicate_of: int64 [n], the first item whose vector is exactly the same, old or new; -1 where there is none.
    """

    codes: np.ndarray
    nearest: np.ndarray
    duplicate_of: np.ndarray

    @property
    def moved(self) -> np.ndarray:
        """Which rows got other codes than their nearest, because those were taken; bool [n]."""
        return (self.codes[:, : self.nearest.shape[1]] != self.nearest).any(axis=1)


def place_new_items(
    vectors: Rows,
    quantizer: Quantizer,
    codes: np.ndarray,
    level_sizes: list[int],
    catalogue: Rows | None = None,
    last_codebook: np.ndarray | None = None,
) -> NewItems:
    """A free semantic ID for each of `vectors` [n, D], in row order: the quantizer's own where it is free; else the nearest free last code
    in the same prefix; where that is full, the cheapest free path that a beam over prefixes with room finds.

    codes: int [N, L], unique, those of the old items; level_sizes: K_l of all L levels. catalogue: the old items' vectors [N, D], to find
    new rows that equal them. last_codebook: [K_L, e], for a level more than the quantizer has: of an own token, what the codes before
    it leave of the old items, so that a new item gets the token of the old one that is most alike and has another prefix; of a dedup
    token, zeros, so that the lowest free one is taken. Raises InputError when there are fewer free paths than rows.
    """
    n, (N, L) = len(vectors), codes.shape
    free = math.prod(level_sizes) - N
    if n > free:
        raise InputError(
            f"{n} new items need semantic IDs, but only {free} of the {math.prod(level_sizes)} are free; make new ones for all items with "
            "larger --level_sizes."
        )
    books, prices = quantizer.codebooks.books, quantizer.codebooks.prices
    nearest = quantizer.encode(vectors)
    wanted = np.full((n, L), -1, dtype=np.int32)  # -1: a level that the quantizer does not code
    wanted[:, : nearest.shape[1]] = nearest
    if len(books) < L:
        assert len(books) + 1 == L
        assert last_codebook is not None, "a level more than the quantizer has needs its codebook"
        books, prices = [*books, last_codebook], [*prices, np.zeros(len(last_codebook), dtype=np.float32)]
    codebooks = Codebooks(books, prices)
    assert codebooks.sizes == level_sizes
    occupied = Occupied.of(codes, level_sizes)
    placed = np.empty((n, L), dtype=np.int32)
    for rows, chunk in chunks(quantizer.latents(vectors)):
        for row, latent in enumerate(chunk, start=rows.start):
            path = _free_path(latent, wanted[row], codebooks, occupied)
            occupied.take(path)
            placed[row] = path
    return NewItems(placed, nearest, _duplicates(vectors, N, catalogue))


def _free_path(latent: np.ndarray, wanted: np.ndarray, codebooks: Codebooks, occupied: Occupied) -> tuple[int, ...]:
    """The path [L] for one latent [e] whose own codes are `wanted` [L]; the last one is -1 where the nearest free one is to be found."""
    *prefix, code = wanted.tolist()
    occupied_codes = occupied.children(tuple(prefix))
    if code >= 0 and code not in occupied_codes:
        return (*prefix, code)
    if len(occupied_codes) == codebooks.sizes[-1]:
        return cheapest_free_path(latent, codebooks, occupied)
    residual = latent[None, :] - codebooks.reconstruct(wanted[None, :-1])
    last_book = codebooks.vectors_after(len(prefix), prefix[-1] if prefix else None)
    costs = squared_distances(residual, last_book)[0] + codebooks.prices[-1]
    costs[occupied_codes] = np.inf
    return (*prefix, int(costs.argmin()))


def _duplicates(vectors: Rows, N: int, catalogue: Rows | None) -> np.ndarray:
    """The first item with exactly the same vector as each of `vectors` [n, D], or -1; int64 [n]."""
    keys = [row.tobytes() for _, chunk in chunks(vectors) for row in chunk + 0.0]  # + 0.0: -0 equals 0
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, N + row)
    seen: set[bytes] = set()
    for rows, chunk in chunks(catalogue) if catalogue is not None else ():
        for item, row in enumerate(chunk + 0.0, start=rows.start):
            key = row.tobytes()
            if key in first and key not in seen:
                seen.add(key)
                first[key] = item
    return np.array([first[key] if first[key] < N + row else -1 for row, key in enumerate(keys)], dtype=np.int64)


def read_new(paths: list[Path]) -> list[np.ndarray]:
    """The new items' sources, [n, D_s] each. Raises InputError when one is missing, is not of numbers, or differs in rows."""
    sources: list[np.ndarray] = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} does not exist; correct --vectors.")
        rows = read_npy(path, on_disk=True)
        n_rows = len(sources[0]) if sources else None
        if rows.ndim != 2 or rows.dtype.kind not in "fiu" or not rows.size or n_rows not in (None, len(rows)):
            as_many = "" if n_rows is None else f", {n_rows} rows as in {paths[0]}"
            raise InputError(
                f"{path} holds {rows.dtype} of shape {list(rows.shape)}; it must hold rows of numbers{as_many}."
            )
        check_numbers(path, rows, constant_columns=True)
        sources.append(rows)
    return sources


def read_catalogue(run_dir: Path, files: list[str], quantizer: Quantizer, n_items: int) -> ItemVectors | None:
    """The old items' vectors [N, D], where the files that they were made from are known and still there.

    files: as named by the user, in the order of the sources; empty: the run's own embeddings.
    """
    made_from = read_manifest(run_dir / "sid")
    assert made_from is not None, "the semantic IDs have been loaded"
    sources = made_from["fingerprint"]["sources"]
    paths = [Path(path) for path in files] or [run_dir / "embeddings" / f"{s}.npy" for s in sources]
    if not files and not all(map(Path.is_file, paths)):
        return None
    return quantizer.item_vectors([read_source(path, n_items, computed=True) for path in paths])
