"""Leaked mass, forced codes and regret against sums over the model's own logits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import make_sids

from sidrec.decoding import diagnostics
from sidrec.decoding.diagnostics import diagnose, forced_share, leaked_mass_along_draws
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.sft.vocabulary import add_sid_tokens

LEVELS = [4, 3, 5]
N_ITEMS = 24


@pytest.fixture
def recommender(tiny_model) -> Recommender:
    model, tokenizer = tiny_model
    sids = make_sids(N_ITEMS, LEVELS)
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * sids.n_items, "codebook", seed=0)
    return Recommender.build(model, Renderer.build(sids, vocabulary, max_items=6), sids)


@torch.no_grad()
def expected_leaks(recommender: Recommender, history: np.ndarray) -> np.ndarray:
    """float64 [2, L]: E over π of the mass outside the existing codes, by running every item and summing over all of them."""
    renderer = recommender.renderer
    first = torch.tensor(renderer.vocabulary.first_tokens)
    codes = renderer.item_tokens - first
    prompt = renderer.tokens(history)
    logits = recommender.model(torch.cat([prompt.expand(N_ITEMS, -1), renderer.item_tokens], dim=1)).logits.double()
    logits = logits[:, len(prompt) - 1 : -1]
    leaks = np.zeros((2, len(LEVELS)))
    for item in range(N_ITEMS):
        probability, per_level = 1.0, []
        for level, size in enumerate(LEVELS):
            children = codes[(codes[:, :level] == codes[item, :level]).all(1), level].unique() + first[level]
            full = logits[item, level].softmax(0)
            of_level = logits[item, level, first[level] : first[level] + size].softmax(0)
            per_level.append((1 - float(full[children].sum()), 1 - float(of_level[children - first[level]].sum())))
            probability *= float(full[renderer.item_tokens[item, level]] / full[children].sum())
        leaks += probability * np.array(per_level).T
    return leaks


def test_leaked_mass_is_the_mean_over_the_policy(recommender):
    history, draws = np.array([7, 1, 20]), 1500
    generator = torch.Generator().manual_seed(0)
    leaks = leaked_mass_along_draws(recommender, [history] * draws, generator).double().numpy()  # [2, L, draws]
    assert leaks.shape == (2, 3, draws)
    expected = expected_leaks(recommender, history)
    error = leaks.std(2) / np.sqrt(draws)
    assert (np.abs(leaks.mean(2) - expected) < 4 * error + 1e-4).all(), (leaks.mean(2), expected)
    assert (expected[0] > 0.05).all(), "nothing leaks: nothing is proved"
    assert (expected[0] > expected[1]).all()
    assert expected[1, 0] == pytest.approx(0, abs=1e-9), "all first codes exist"


def test_forced_codes_are_counted_by_item():
    codes = torch.tensor([(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 0), (1, 2, 4)])
    assert forced_share(SidTrie(codes, [2, 3, 5])) == pytest.approx([0, 2 / 5, 1 / 5])
    assert forced_share(SidTrie(codes[:1], [2, 3, 5])) == [1, 1, 1]


def test_the_diagnosis_of_several_histories(recommender, monkeypatch):
    rng = np.random.default_rng(0)
    histories = [rng.integers(N_ITEMS, size=n) for n in (1, 5, 2, 4, 3)]
    monkeypatch.setattr(diagnostics, "HISTORIES_PER_BATCH", 2)
    measured = diagnose(recommender, histories, k=4, seed=0)
    assert (measured.histories, measured.regret_histories, measured.k) == (5, 5, 4)
    assert measured == diagnose(recommender, histories, k=4, seed=0), "the seed decides"
    assert measured.leaked_full != diagnose(recommender, histories, k=4, seed=1).leaked_full
    assert (measured.missed, measured.lost_mass) == (0, pytest.approx(0, abs=1e-5)), "50 beams see all of 24 items"
    trie = recommender.trie
    counts = [(trie.first_child[d][:].diff() == 1, trie.first_leaf[d][:].diff()) for d in range(3)]
    assert measured.forced == pytest.approx([float(leaves[single].sum()) / N_ITEMS for single, leaves in counts])


def test_regret_is_measured_on_as_many_histories_as_can_be_scored(recommender, monkeypatch):
    """A search that returns the worst items first: its regret is that of the worst against the best."""
    histories = [np.array([3]), np.array([5, 6]), np.array([1, 2, 3])]
    worst: list[np.ndarray] = []
    search = Recommender.recommend

    def reversed_search(self, histories, k, exclude_seen):
        everything = search(self, histories, N_ITEMS, exclude_seen)
        rows = [items[items >= 0][::-1][:k] for items in everything.items]
        worst.extend(rows)
        return type(everything)(np.stack(rows), everything.log_probs, everything.reachable)

    exact = [search(recommender, [history], N_ITEMS, exclude_seen=True, exact=True) for history in histories]
    monkeypatch.setattr(Recommender, "recommend", reversed_search)
    n_prefixes = sum(recommender.trie.n_nodes[1:-1])
    monkeypatch.setattr(diagnostics, "MOST_POSITIONS", 2 * n_prefixes + 1)
    measured = diagnose(recommender, histories, k=4, seed=0)
    assert (measured.histories, measured.regret_histories) == (3, 2)
    assert measured.missed == 1
    lost = []
    for one, items in itertools.islice(zip(exact, worst, strict=False), 2):
        probability = dict(zip(one.items[0].tolist(), np.exp(one.log_probs[0]).tolist(), strict=True))
        lost.append(np.exp(one.log_probs[0, :4]).sum() - sum(probability[item] for item in items.tolist()))
    assert measured.lost_mass == pytest.approx(np.mean(lost), abs=1e-5)
    monkeypatch.setattr(diagnostics, "MOST_POSITIONS", n_prefixes - 1)
    none = diagnose(recommender, histories, k=4, seed=0)
    assert (none.regret_histories, none.missed, none.lost_mass) == (0, None, None)
