"""Semantic IDs of later items: unique, near their own codes, and the old ones untouched; for every kind of quantizer."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.autoencoders.finite_scalar import grid_codebooks
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.quantize import semantic_ids
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.semantic_ids import SemanticIds


def quantizer_of(kind: str, sizes: list[int], seed: int, width: int = 3) -> Quantizer:
    """A quantizer of vectors [n, width]: `plain`, with `prices`, codebooks that depend on the code before, or `fsq`."""
    rng = np.random.default_rng(seed)
    if kind == "fsq":
        torch.manual_seed(seed)
        books = grid_codebooks([3, 2], len(sizes), "groups")
        return Quantizer(books, Mlp([(width, books.width)], [8]), Mlp([(books.width, width)], [8]), (3, 2) * len(sizes))
    books = [rng.standard_normal((size, width)).astype(np.float32) / 2**level for level, size in enumerate(sizes)]
    if kind == "conditional":
        for level in range(1, len(sizes)):
            books[level] = rng.standard_normal((sizes[level - 1], sizes[level], width)).astype(np.float32) / 2**level
    prices = [rng.random(size).astype(np.float32) for size in sizes] if kind == "prices" else []
    return Quantizer(Codebooks(books, prices))


def catalogue(rng: np.random.Generator, n: int, width: int = 3) -> ItemVectors:
    """n items with many equal vectors."""
    distinct = max(1, n // 2)
    return ItemVectors([rng.standard_normal((distinct, width)).astype(np.float32)[rng.integers(0, distinct, n)]], [1.0])


def is_unique(codes: np.ndarray) -> bool:
    return len(np.unique(codes, axis=0)) == len(codes)


@st.composite
def cases(draw: st.DrawFn) -> tuple[SemanticIds, ItemVectors, np.ndarray]:
    """SIDs of old items, their vectors, and vectors of new items; as many as there is room for, sometimes."""
    kind = draw(st.sampled_from(["plain", "prices", "conditional", "fsq"]))
    unique = draw(st.sampled_from(["assign", "dedup_token", "own_token"]))
    n_levels = draw(st.integers(1, 3))
    sizes = [6] * n_levels if kind == "fsq" else draw(st.lists(st.integers(2, 4), min_size=n_levels, max_size=n_levels))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    room = math.prod(sizes)
    old = catalogue(rng, draw(st.integers(1, max(1, min(room // 2, 20)))))
    quantizer = quantizer_of(kind, sizes, seed)
    sids = semantic_ids(quantizer, old, quantizer.encode(old), unique)
    free = math.prod(sids.level_sizes) - sids.n_items
    n_new = min(draw(st.sampled_from([1, 7, free])), free, 40)
    new = np.concatenate([old[:][rng.integers(0, len(old), n_new)], rng.standard_normal((n_new, 3))])[::2].astype(
        np.float32
    )
    return sids, old, new[:n_new]


@given(cases())
@settings(max_examples=120, deadline=None)
def test_new_items_are_unique_and_the_old_ones_stay(case: tuple[SemanticIds, ItemVectors, np.ndarray]) -> None:
    sids, old, vectors = case
    assert sids.quantizer is not None
    before = sids.codes.copy()
    new = sids.encode(vectors, old)
    np.testing.assert_array_equal(sids.codes, before)
    assert new.codes.dtype == np.int32
    extended = sids.extended(new)
    assert extended.n_items == len(before) + len(vectors)
    np.testing.assert_array_equal(extended.codes[: len(before)], before)
    assert is_unique(extended.codes)
    coded = len(sids.quantizer.codebooks.sizes)
    np.testing.assert_array_equal(new.nearest, sids.quantizer.encode(vectors))
    np.testing.assert_array_equal(new.moved, (new.codes[:, :coded] != new.nearest).any(axis=1))
    assert sids.encode(vectors, old).codes.tobytes() == new.codes.tobytes()


@given(cases())
@settings(max_examples=80, deadline=None)
def test_a_row_moves_only_as_far_as_it_must(case: tuple[SemanticIds, ItemVectors, np.ndarray]) -> None:
    """Row by row, against every path: its own if that is free; else in its prefix, the cheapest there; else any other prefix."""
    sids, _, vectors = case
    assert sids.quantizer is not None
    books = sids.quantizer.codebooks
    new = sids.encode(vectors)
    latents = np.asarray(sids.quantizer.latents(vectors)[:])
    occupied = {tuple(row) for row in sids.codes.tolist()}
    extra = sids.n_levels > len(books.sizes)  # a dedup token, whose codebook is of zeros, or an own token
    for row, path in enumerate(new.codes.tolist()):
        nearest = new.nearest[row].tolist()
        prefix = nearest if extra else nearest[:-1]
        in_prefix = [(*prefix, last) for last in range(sids.level_sizes[-1]) if (*prefix, last) not in occupied]
        if extra and in_prefix:
            residual = (latents[row] - books.reconstruct(np.array([nearest]))[0]).astype(np.float64)
            away = {free: float(((residual - sids.codebooks[-1][free[-1]]) ** 2).sum()) for free in in_prefix}
            assert path[:-1] == prefix
            assert away[tuple(path)] <= min(away.values()) + 1e-5
            if not sids.codebooks[-1].any():
                assert tuple(path) == in_prefix[0]  # the lowest free number
        elif not extra and tuple(nearest) not in occupied:
            assert path == nearest
        elif in_prefix:

            def cost(candidate: tuple[int, ...], latent: np.ndarray = latents[row]) -> float:
                left = latent - books.reconstruct(np.array([candidate]))[0]
                return float((left.astype(np.float64) ** 2).sum()) + float(books.prices[-1][candidate[-1]])

            assert path[:-1] == prefix
            assert cost(tuple(path)) <= min(map(cost, in_prefix)) + 1e-5
        else:
            assert path[:-1] != prefix
        occupied.add(tuple(path))


def test_a_full_prefix_reroutes_to_the_cheapest_free_path() -> None:
    """Against a search over every path; the beam holds all prefixes here."""
    quantizer = quantizer_of("plain", [4, 3], seed=1)
    books = quantizer.codebooks
    target = (books.books[0][2] + books.books[1][0])[None]
    nearest = quantizer.encode(target)[0]
    old = np.array([[nearest[0], last] for last in range(3)], dtype=np.int32)
    sids = SemanticIds(old, old, books.books, quantizer)
    placed = sids.encode(target).codes[0]
    free = [path for path in itertools.product(range(4), range(3)) if path[0] != nearest[0]]
    costs = {path: float(((target[0] - books.reconstruct(np.array([path]))[0]) ** 2).sum()) for path in free}
    assert tuple(placed) == min(costs, key=lambda path: costs[path])


def test_exact_duplicates_are_named() -> None:
    rng = np.random.default_rng(0)
    old = ItemVectors([rng.standard_normal((20, 3)).astype(np.float32)], [1.0])
    quantizer = quantizer_of("plain", [8, 8], seed=0)
    sids = semantic_ids(quantizer, old, quantizer.encode(old), "assign")
    fresh = rng.standard_normal((2, 3)).astype(np.float32)
    vectors = np.stack([fresh[0], old[:][7], fresh[1], fresh[0], old[:][7], -np.zeros(3), np.zeros(3)]).astype(
        np.float32
    )
    assert sids.encode(vectors, old).duplicate_of.tolist() == [-1, 7, -1, 20, 7, -1, 25]
    assert sids.encode(vectors).duplicate_of.tolist() == [-1, -1, -1, 20, 21, -1, 25]
    assert sids.encode(vectors, old).moved[3]  # its twin has taken their nearest codes


def test_what_cannot_be_coded_is_refused() -> None:
    quantizer = quantizer_of("plain", [2, 2], seed=0)
    codes = np.array([[0, 0], [0, 1], [1, 0]], dtype=np.int32)
    sids = SemanticIds(codes, codes, quantizer.codebooks.books, quantizer)
    assert len(sids.encode(np.zeros((1, 3), dtype=np.float32)).codes) == 1
    with pytest.raises(InputError, match="2 new items need semantic IDs, but only 1 of the 4 are free"):
        sids.encode(np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(InputError, match=r"have no quantizer\.safetensors"):
        replace(sids, quantizer=None).encode(np.zeros((1, 3), dtype=np.float32))
    with pytest.raises(InputError, match="3 items have 1 different semantic IDs"):
        SemanticIds(codes * 0, codes, quantizer.codebooks.books, quantizer).encode(np.zeros((1, 3), dtype=np.float32))


def test_new_sources_are_scaled_as_the_old_ones_were(tmp_path: Path) -> None:
    """A row that is short beside the old items' longest one stays short, however long it is beside the other new ones."""
    rng = np.random.default_rng(0)
    sources = [100 * rng.standard_normal((30, 2)), rng.standard_normal((30, 3))]
    vectors = ItemVectors(sources, [1.0, 0.5])
    scaled = replace(quantizer_of("plain", [8, 8], 0, width=5), scales=vectors.scales)
    scaled.save(tmp_path / "q.safetensors")
    again = Quantizer.load(tmp_path / "q.safetensors")
    assert again.scales == vectors.scales
    np.testing.assert_array_equal(again.item_vectors([s[4:9] for s in sources])[:], vectors[4:9])
    short = [np.full((2, 2), 1e-3), np.ones((2, 3))]
    longest = np.linalg.norm(sources[0], axis=1).max()
    np.testing.assert_allclose(again.item_vectors(short)[:][:, :2], 1e-3 / (0.01 * longest), rtol=1e-5)
    with pytest.raises(InputError, match=r"sources have \[2\] numbers a row, but .* made from \[2, 3\]"):
        again.item_vectors(short[:1])
