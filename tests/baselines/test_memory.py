"""The memory beside a model: its votes and gains against brute force, the exact product, its size, its file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from sidrec.baselines import memory as memory_module
from sidrec.baselines.blend import blended
from sidrec.baselines.item_knn import ItemKnn, fit_item_knn
from sidrec.baselines.memory import NEIGHBOURS, Memory
from sidrec.baselines.slit import Slit
from sidrec.data.metrics import mask_seen
from sidrec.pipeline.errors import InputError


def random_memory(rng: np.random.Generator, n_items: int, decay: float = 0.8) -> tuple[Memory, np.ndarray]:
    """A memory and its matrix, with ties, zeros and negative numbers among what it was made from."""
    weights = rng.integers(-3, 6, (n_items, n_items)).astype(np.float32) / 4
    memory = Memory.of(Slit(weights, np.zeros(n_items, np.float32), decay))
    return memory, weights


def brute_force_gains(
    weights: np.ndarray, history: np.ndarray, decay: float, proposed: int, exclude_seen: bool
) -> np.ndarray:
    votes = np.zeros(len(weights))
    for item in set(history.tolist()):
        latest = max(place for place, other in enumerate(history) if other == item)
        row = np.where(weights[item] > 0, weights[item], 0)
        first = sorted(range(len(row)), key=lambda other: (-row[other], other))[: memory_module.NEIGHBOURS]
        votes[first] += np.float32(decay ** (len(history) - 1 - latest)) * row[first]
    may_gain = [item for item in range(len(votes)) if votes[item] > 0 and not (exclude_seen and item in history)]
    gains = np.zeros(len(votes))
    for place, item in enumerate(sorted(may_gain, key=lambda item: (-round(votes[item], 5), item))[:proposed]):
        gains[item] = 1 / math.log2(2 + place)
    return gains


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_gains_are_those_of_the_places_among_votes(seed: int, exclude_seen: bool) -> None:
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_module, "NEIGHBOURS", 4)
        patch.setattr(memory_module, "PROPOSED", 5)
        memory, weights = random_memory(rng, 12, decay=0.5)  # sums of halves are exact
        histories = [rng.integers(0, 12, rng.integers(1, 6)) for _ in range(6)]
        gains = memory.gains(histories, exclude_seen)
        assert gains.dtype == np.float32
        assert np.diff(memory.neighbours.indptr).max() <= 4
        for row, history in zip(gains.toarray(), histories, strict=True):
            assert row == pytest.approx(brute_force_gains(weights, history, 0.5, 5, exclude_seen))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0, 16.0]), st.integers(1, 6))
def test_the_best_of_the_product_are_among_the_models_best_and_what_the_memory_proposes(
    seed: int, weight: float, k: int
) -> None:
    rng = np.random.default_rng(seed)
    memory, _ = random_memory(rng, 30)
    histories = [rng.integers(0, 30, rng.integers(1, 4)) for _ in range(5)]
    log_pi = np.log(rng.dirichlet(np.full(30, 0.1), 5) + 1e-9).astype(np.float32)
    gains = memory.gains(histories)
    scores = mask_seen(blended(log_pi, gains, weight), histories)
    alone = mask_seen(log_pi, histories)
    for row in range(5):
        best = set(np.argsort(-scores[row], kind="stable")[:k].tolist())
        union = set(np.argsort(-alone[row], kind="stable")[:k].tolist()) | set(gains[[row]].indices.tolist())
        assert best <= union
        others = [item for item in range(30) if not gains[row, item]]
        assert sorted(others, key=lambda item: -scores[row, item]) == sorted(others, key=lambda item: -alone[row, item])


def test_a_memory_takes_a_kilobyte_an_item_at_most_and_comes_back_from_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n_items = 500
    memory, _ = random_memory(rng, n_items)
    assert np.diff(memory.neighbours.indptr).max() == NEIGHBOURS
    memory.save(tmp_path / "memory.safetensors")
    assert (tmp_path / "memory.safetensors").stat().st_size <= 1000 * n_items
    again = Memory.load(tmp_path / "memory.safetensors")
    assert (again.name, again.decay) == ("slit", 0.8)
    histories = [rng.integers(0, n_items, 7) for _ in range(9)]
    assert np.array_equal(again.gains(histories).toarray(), memory.gains(histories).toarray())


def test_a_file_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, _ = random_memory(np.random.default_rng(0), 5)
    monkeypatch.setattr(memory_module, "FORMAT", "0")
    memory.save(tmp_path / "memory.safetensors")
    monkeypatch.undo()
    with pytest.raises(InputError, match="has format 0, not 1; run `sidrec evaluate` again"):
        Memory.load(tmp_path / "memory.safetensors")


def test_an_evaluation_without_a_memory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"memory.safetensors does not exist; run `sidrec evaluate` again"):
        Memory.load(tmp_path / "memory.safetensors")


def test_item_knn_of_few_neighbours_is_its_own_memory() -> None:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 40, 8) for _ in range(60)]
    knn = fit_item_knn(sequences, 40, neighbours=5, shrink=1.0, decay=0.7)
    memory = Memory.of(knn)
    assert isinstance(knn, ItemKnn)
    assert memory.neighbours.toarray() == pytest.approx(knn.similarities.toarray(), rel=1e-6)
    votes = memory.neighbours
    assert sparse.issparse(votes)
    scores = mask_seen(knn.scores(sequences), sequences)
    for row, gains in enumerate(memory.gains(sequences).toarray()):
        assert gains.argmax() == scores[row].argmax()
