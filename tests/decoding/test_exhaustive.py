"""Exhaustive scoring against each item alone, what it costs, and the beam's regret against hand-made lists."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import make_sids

from sidrec.decoding import exhaustive
from sidrec.decoding.exhaustive import beam_regret, leaf_log_probs
from sidrec.decoding.leaf_search import exact_top
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import item_log_probs
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.shared_prefix import SharedPrefix
from sidrec.sft.vocabulary import add_sid_tokens

LEVELS = [5, 4, 3, 6]
N_ITEMS = 120
HISTORIES = [np.array([3]), np.array([7, 1, 44, 9]), np.array([5, 6, 7, 8, 9, 10, 11, 12])]


@pytest.fixture
def recommender(tiny_model) -> Recommender:
    model, tokenizer = tiny_model
    sids = make_sids(N_ITEMS, LEVELS)
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * sids.n_items, "codebook", seed=0)
    return Recommender.build(model, Renderer.build(sids, vocabulary, max_items=6), sids)


@torch.no_grad()
def scores_alone(recommender: Recommender, history: np.ndarray) -> torch.Tensor:
    """float32 [N]: of every item, in its own sequence, by the training loss's own function."""
    renderer, trie = recommender.renderer, recommender.trie
    head = OutputHead.of(recommender.model)
    prompt = renderer.tokens(history)
    ids = torch.cat([prompt.expand(trie.n_items, -1), renderer.item_tokens], dim=1)
    states = recommender.model(ids, output_hidden_states=True).hidden_states[-1][:, len(prompt) - 1 : -1]
    return item_log_probs(states, torch.arange(trie.n_items), head, renderer.vocabulary, trie).sum(1)


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_every_item_as_if_scored_alone_whatever_the_chunks(recommender, chunk, monkeypatch):
    monkeypatch.setattr(exhaustive, "CHUNK_NODES", chunk)
    monkeypatch.setattr(exhaustive, "CHUNK_POSITIONS", 16 * chunk)
    scores = recommender.leaf_log_probs(HISTORIES)
    for row, history in enumerate(HISTORIES):
        alone = scores_alone(recommender, history)
        torch.testing.assert_close(scores[row], alone[recommender.trie.item_of_leaf[:]], atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("normaliser", ["children", "level"])
def test_each_prefix_is_run_once_in_bounded_memory(recommender, normaliser, monkeypatch):
    """As many positions as there are prefixes with a choice below them (or all, where forced codes have a cost too); and a mask
    never sees more than the prompt and a chunk a level."""
    trie, chunk = recommender.trie, 8
    monkeypatch.setattr(exhaustive, "CHUNK_NODES", chunk)
    runs: list[torch.Size] = []
    extend = SharedPrefix.extend

    def counted(prefix, tokens, sees, depth):
        runs.append(sees.shape)
        return extend(prefix, tokens, sees, depth)

    monkeypatch.setattr(SharedPrefix, "extend", counted)
    input_ids, mask = recommender.renderer.batch(HISTORIES)
    leaf_log_probs(recommender.model, input_ids, mask, recommender.renderer.vocabulary, trie, normaliser)
    open_nodes = [
        int((trie.first_leaf[depth][:].diff() > 1).sum()) if normaliser == "children" else trie.n_nodes[depth]
        for depth in range(1, trie.n_levels)
    ]
    assert sum(width for _, width, _ in runs) == sum(open_nodes)
    assert max(width for _, width, _ in runs) <= chunk
    assert max(keys for _, _, keys in runs) <= (trie.n_levels - 1) * chunk


def test_the_exact_ranking_is_what_a_wide_beam_finds(recommender):
    for exclude_seen in (True, False):
        beam = recommender.recommend(HISTORIES, N_ITEMS, exclude_seen)
        exact = recommender.recommend(HISTORIES, N_ITEMS, exclude_seen, exact=True)
        assert (beam.items == exact.items).all()
        np.testing.assert_allclose(beam.log_probs, exact.log_probs, atol=1e-5)
        assert (beam.reachable == exact.reachable).all()


def test_one_item_and_one_level(tiny_model):
    model, tokenizer = tiny_model
    sids = make_sids(6, [6])
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * sids.n_items, "codebook", seed=0)
    flat = Recommender.build(model, Renderer.build(sids, vocabulary, max_items=6), sids)
    torch.testing.assert_close(flat.leaf_log_probs([np.array([2])]).exp().sum(), torch.tensor(1.0))
    single = make_sids(1, [6])
    alone = Recommender.build(model, Renderer.build(single, vocabulary, max_items=6), single)
    assert alone.leaf_log_probs([np.array([0])]).tolist() == [[0.0]]
    lists = alone.recommend([np.array([0])], 3, exclude_seen=True, exact=True)
    assert lists.items.tolist() == [[-1, -1, -1]]
    assert lists.reachable.tolist() == [0]


def test_regret_of_lists_made_by_hand():
    probabilities = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()

    def regret_of(*leaves: int) -> tuple[float, float]:
        regret = beam_regret(probabilities, torch.tensor([leaves]))
        return pytest.approx(regret.missed.item()), pytest.approx(regret.mass.item(), abs=1e-6)

    assert regret_of(0, 1, 2) == (0, 0)
    assert regret_of(0, 1, 3) == (1 / 3, 0.05)
    assert regret_of(0, 3, 4) == (2 / 3, 0.30)
    assert regret_of(2, 3, 4) == (2 / 3, 0.55), "item 2 is of the true first three"
    assert regret_of(0, -1, -1) == (2 / 3, 0.45)
    equal = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    assert beam_regret(equal, torch.tensor([[2, 3]])).missed.item() == 0, "of equal items either will do"
    masked = torch.tensor([[-torch.inf, 0.3, 0.2, -torch.inf]])
    few = beam_regret(masked, torch.tensor([[1, 2, -1]]))
    assert (few.missed.item(), few.mass.item()) == (0, 0), "there are only two to find"


def test_a_narrow_beam_misses_what_the_exact_ranking_finds(recommender):
    """Regret falls to nothing as the beam widens, and equals the difference of the two lists."""
    scores = recommender.leaf_log_probs(HISTORIES)
    best, best_scores = exact_top(scores, 10)
    shares = []
    for beams in (10, 20, N_ITEMS):
        lists = recommender.recommend(HISTORIES, 10, exclude_seen=False, beams=beams)
        leaves = recommender.trie.leaf_of_item(torch.from_numpy(lists.items))
        regret = beam_regret(scores, leaves)
        wanted = [len(set(a) - set(b)) / 10 for a, b in zip(best.tolist(), leaves.tolist(), strict=True)]
        assert regret.missed.tolist() == pytest.approx(wanted)
        lost = best_scores.exp().sum(1) - torch.from_numpy(np.exp(lists.log_probs)).sum(1)
        torch.testing.assert_close(regret.mass, lost.clamp(min=0), atol=1e-5, rtol=0)
        shares.append(float(regret.missed.mean()))
    assert shares[0] > 0, "a beam of 10 that misses nothing proves nothing"
    assert shares[-1] == 0


def test_equal_scores_are_taken_in_the_order_of_the_leaves():
    scores = torch.tensor([[0.5, 1.0, 0.5, 1.0, -torch.inf, 0.5]])
    for k, leaves in itertools.product((1, 3, 6, 9), [[1, 3, 0, 2, 5, 4]]):
        assert exact_top(scores, k)[0][0].tolist() == leaves[:k]
