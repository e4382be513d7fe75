"""π times a memory, by search, against the product of every item: each kind of model, in a catalogue that changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import sparse
from test_live_recommender import EVERY_SID, make_recommender
from test_rq_transformer import N_ITEMS, SIZES, free_code, make_model, renderer_of

from sidrec.baselines.memory import Memory
from sidrec.decoding import recommender as recommender_module
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.product import Expert
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.trie import SidTrie


@dataclass(frozen=True)
class Proposes:
    """Some gains for every history, where asked only of items that it does not hold."""

    gain: np.ndarray
    seed: int

    def gains(self, histories: list[np.ndarray], exclude_seen: bool = True) -> sparse.csr_array:
        rows = np.tile(self.gain, (len(histories), 1)).astype(np.float32)
        rows[:, np.random.default_rng(self.seed).random(len(self.gain)) < 0.6] = 0
        for row, history in zip(rows, histories, strict=True):
            row[history[history < len(row)]] *= not exclude_seen
        return sparse.csr_array(rows)


KINDS = ["qwen3", "marginal", "additive", "transformer"]


def recommender_of(kind: str, sids) -> Recommender:
    if kind == "qwen3":
        return make_recommender(EVERY_SID[:N_ITEMS])
    model = make_model(kind, sids)
    catalogue = LiveCatalogue(SidTrie(torch.from_numpy(sids.codes), list(SIZES)))
    return Recommender(model, renderer_of(sids, max_items=3), catalogue)


@pytest.fixture
def sids():
    from conftest import make_sids

    return make_sids(N_ITEMS, list(SIZES), seed=3)


@pytest.mark.parametrize("whole", [True, False], ids=["scored", "searched"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_are_those_of_the_product_over_all_items(kind: str, whole: bool, sids, monkeypatch) -> None:
    """Whatever is new, gone, seen or not allowed; and the probabilities are the product's over the whole catalogue."""
    if not whole:
        monkeypatch.setattr(recommender_module, "MOST_SCORED", 0)
    alone = recommender_of(kind, sids)
    new_code = EVERY_SID[N_ITEMS] if kind == "qwen3" else free_code(sids)
    alone.catalogue.insert(np.array([N_ITEMS]), np.array([new_code]))
    alone.catalogue.remove(np.array([7, 8]))
    alone.catalogue.set_allow_list("even", np.array([i for i in range(0, N_ITEMS + 1, 2) if i != 8]))
    histories = [np.array([1, 2, 7]), np.array([N_ITEMS, 3]), np.arange(20, 36)]
    log_pi = np.full((len(histories), N_ITEMS + 1), -np.inf)
    every = alone.recommend(histories, N_ITEMS - 1, exclude_seen=False, exact=True)
    np.put_along_axis(log_pi, every.items, every.log_probs.astype(np.float64), axis=1)
    rng = np.random.default_rng(1)
    for weight in (0.0, 0.7, 9.0):
        memory = Proposes(rng.random(N_ITEMS), seed=int(weight * 10))
        blended = replace(alone, expert=Expert(memory, weight))
        for exclude_seen, allow in ((True, None), (False, "even"), (True, "even")):
            gains = np.pad(memory.gains(histories, exclude_seen).toarray(), ((0, 0), (0, 1)))
            product = log_pi + weight * gains
            product -= np.log(np.exp(product).sum(1, keepdims=True))
            asked = {"exclude_seen": exclude_seen, "allow": allow}
            listed = blended.recommend(histories, 6, beams=6 if whole else N_ITEMS, **asked)
            for row, history in enumerate(histories):
                scores = product[row].copy()
                scores[history] = -np.inf if exclude_seen else scores[history]
                scores[1::2] = -np.inf if allow else scores[1::2]
                wanted = np.argsort(-scores, kind="stable")[:6]
                assert listed.items[row].tolist() == wanted.tolist()
                assert listed.log_probs[row] == pytest.approx(scores[wanted], abs=1e-4)


def test_items_that_the_memory_does_not_know_have_no_vote() -> None:
    """They count as items since, so that what is older weighs as little as it should."""
    neighbours = sparse.csr_array(np.array([[0, 2, 1], [0, 0, 3], [1, 0, 0]], np.float32))
    memory = Memory(neighbours, decay=0.25, name="item_knn")
    first, second = memory.gains([np.array([0, 1, 9]), np.array([9])]).toarray()
    votes = np.array([0, 0, 0.25 * 3 + 0.0625 * 1])  # 0 and 1 are in the history
    assert first.tolist() == [0, 0, 1.0]
    assert votes.argmax() == 2
    assert second.tolist() == [0, 0, 0]
    alone = memory.gains([np.array([1, 9, 9])]).toarray()
    assert alone.tolist() == [[0, 0, 1.0]]
