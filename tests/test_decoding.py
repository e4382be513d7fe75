"""Beam search, its exclusions and its sampling, against scoring every item by the written formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import make_sids
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stage import InputError
from decoding.beam_search import beam_search
from decoding.policy import child_log_probs, item_log_probs
from decoding.recommender import Recommender
from decoding.renderer import Renderer
from sft.vocabulary import add_sid_tokens

LEVELS = [4, 5, 6]


@pytest.fixture
def recommender(tiny_model):
    model, tokenizer = tiny_model
    sids = make_sids(50, LEVELS)
    vocabulary = add_sid_tokens(model, tokenizer, sids, seed=0)
    return Recommender.build(model, Renderer.build(sids, vocabulary, max_items=6), sids)


@torch.no_grad()
def every_item_log_prob(recommender, history) -> torch.Tensor:
    """log π of all items by running the model on each item's whole path and normalising over children, one item at a time."""
    model, trie, renderer = recommender.model, recommender.trie, recommender.renderer
    prefix = renderer.tokens(history)
    codes = renderer.item_tokens - torch.tensor(renderer.vocabulary.first_tokens)
    scores = []
    for item in range(trie.n_items):
        total = 0.0
        logits = model(torch.cat([prefix, renderer.item_tokens[item]])[None]).logits[0].double()
        for level in range(trie.n_levels):
            row = logits[len(prefix) - 1 + level]
            same = (codes[:, :level] == codes[item, :level]).all(1)
            children = codes[same, level].unique()
            allowed = row[children + renderer.vocabulary.first_tokens[level]]
            total += float(row[renderer.item_tokens[item, level]] - allowed.logsumexp(0))
        scores.append(total)
    return torch.tensor(scores)


HISTORIES = [np.array([3]), np.array([7, 1, 44, 9]), np.array([5, 6, 7, 8, 9, 10, 11, 12])]


def test_wide_beam_ranks_the_whole_catalogue_as_exhaustive_scoring_does(recommender):
    found = recommender.recommend(HISTORIES, k=50, exclude_seen=False)
    for row, history in enumerate(HISTORIES):
        exact = every_item_log_prob(recommender, history)
        assert sorted(found.items[row]) == list(range(50))
        np.testing.assert_allclose(found.log_probs[row], exact[found.items[row]].numpy(), atol=1e-4)
        assert (np.diff(found.log_probs[row]) <= 1e-6).all()
        assert math.isclose(np.exp(found.log_probs[row]).sum(), 1.0, abs_tol=1e-4)


def test_batches_of_mixed_lengths_equal_one_request_at_a_time(recommender):
    together = recommender.recommend(HISTORIES, k=10, exclude_seen=True)
    for row, history in enumerate(HISTORIES):
        alone = recommender.recommend([history], k=10, exclude_seen=True)
        assert (together.items[row] == alone.items[0]).all()
        np.testing.assert_allclose(together.log_probs[row], alone.log_probs[0], atol=1e-4)


def test_seen_items_are_passed_over_inside_the_search(recommender):
    everything = recommender.recommend(HISTORIES, k=50, exclude_seen=False)
    unseen = recommender.recommend(HISTORIES, k=50, exclude_seen=True)
    for row, history in enumerate(HISTORIES):
        wanted = [item for item in everything.items[row] if item not in set(history)]
        assert unseen.items[row][: len(wanted)].tolist() == wanted
        assert (unseen.items[row][len(wanted) :] == -1).all()
        assert np.isneginf(unseen.log_probs[row][len(wanted) :]).all()


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, 60), eligible=st.sets(st.integers(0, 49), max_size=50))
def test_exactly_k_distinct_eligible_items_whatever_the_mask(k, eligible, recommender_for_properties):
    recommender = recommender_for_properties
    input_ids, mask = recommender.renderer.batch(HISTORIES[:2])
    allowed = torch.zeros(2, 50, dtype=torch.bool)
    allowed[:, list(eligible)] = True
    found = beam_search(
        recommender.model, input_ids, mask, recommender.renderer.vocabulary, recommender.trie, k, eligible=allowed
    )
    for row in found.items.tolist():
        items = [item for item in row if item >= 0]
        assert len(items) == len(set(items)) == min(k, len(eligible))
        assert set(items) <= eligible


@pytest.fixture(scope="module")
def recommender_for_properties():
    from sft.backbone import BackboneConfig, load_backbone

    model, tokenizer = load_backbone(BackboneConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1), seed=3)
    sids = make_sids(50, LEVELS)
    vocabulary = add_sid_tokens(model.eval(), tokenizer, sids, seed=0)
    return Recommender.build(model, Renderer.build(sids, vocabulary, max_items=6), sids)


def test_gumbel_search_draws_without_replacement_from_the_policy(recommender):
    """First draws follow π; pairs follow π(i) π(j) / (1 - π(i)): compared by total variation over 4,000 draws."""
    history = HISTORIES[1]
    probabilities = every_item_log_prob(recommender, history).exp()
    draws = 4000
    input_ids, mask = recommender.renderer.batch([history] * draws)
    generators = [torch.Generator().manual_seed(i) for i in range(draws)]
    found = beam_search(
        recommender.model, input_ids, mask, recommender.renderer.vocabulary, recommender.trie, 3, generators=generators
    )
    assert all(len(set(row)) == 3 for row in found.items.tolist())
    first = torch.bincount(found.items[:, 0], minlength=50) / draws
    assert (first - probabilities).abs().sum() / 2 < 0.05
    second = torch.bincount(found.items[:, 1], minlength=50) / draws
    others = torch.stack([p * probabilities / (1 - p) for p in probabilities])
    others.fill_diagonal_(0)
    assert (second - others.sum(0)).abs().sum() / 2 < 0.05
    exact = every_item_log_prob(recommender, history)
    torch.testing.assert_close(found.log_probs, exact[found.items], atol=1e-4, rtol=0)


def test_item_log_probs_against_the_formula_and_forced_codes_cost_nothing(recommender):
    trie, vocabulary = recommender.trie, recommender.renderer.vocabulary
    head = recommender.model.get_output_embeddings().weight.detach()
    hidden = torch.randn(50, 3, head.shape[1], requires_grad=True)
    log_probs = item_log_probs(hidden, torch.arange(50), head, vocabulary, trie)
    n_children = torch.stack([trie.children_mask(d, trie.node_of_item[d][:]).sum(1) for d in range(3)], dim=1)
    forced = n_children == 1
    assert forced.any()
    assert (log_probs[forced] == 0).all()
    log_probs.sum().backward()
    assert (hidden.grad[forced] == 0).all()
    assert (hidden.grad[~forced].abs().sum(1) > 0).all()
    logits = torch.randn(7, 9)
    mask = torch.rand(7, 9) > 0.5
    mask[:, 0] = True
    expected = torch.where(mask, logits - torch.where(mask, logits, -torch.inf).logsumexp(1, keepdim=True), -torch.inf)
    torch.testing.assert_close(child_log_probs(logits, mask), expected)


def test_bad_histories_are_refused_by_row(recommender):
    with pytest.raises(InputError, match="history 1 is empty"):
        recommender.recommend([np.array([1]), np.array([], dtype=int)], k=3, exclude_seen=True)
    with pytest.raises(InputError, match="outside the catalogue"):
        recommender.recommend([np.array([50])], k=3, exclude_seen=True)


def test_renderer_keeps_the_newest_items_and_refuses_other_sids(recommender, tmp_path):
    renderer = recommender.renderer
    long = np.arange(20)
    assert torch.equal(renderer.tokens(long), renderer.tokens(long[-6:]))
    assert renderer.tokens(long)[0] == renderer.vocabulary.start_token
    renderer.save(tmp_path)
    assert Renderer.load(tmp_path, make_sids(50, LEVELS)).vocabulary == renderer.vocabulary
    with pytest.raises(InputError, match="another SID set"):
        Renderer.load(tmp_path, make_sids(50, LEVELS, seed=1))
