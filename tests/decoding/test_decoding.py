"""The recommender's contract over random tries, exclusions and sampling, against scoring every item by the written formula."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
from conftest import make_sids
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.decoding import policy
from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.beams import Beams
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.eligibility import AllowList, Eligibility
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import SidVocabulary, child_log_probs, item_log_probs
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.sft.backbone import load_backbone
from sidrec.sft.settings import BackboneConfig
from sidrec.sft.vocabulary import add_sid_tokens
from sidrec.tokenizer.semantic_ids import SemanticIds

LEVELS = [4, 5, 6]
EXAMPLES = int(os.environ.get("SIDREC_EXAMPLES", "150"))  # random tries of the contract's test


@pytest.fixture
def recommender(tiny_model):
    model, tokenizer = tiny_model
    sids = make_sids(50, LEVELS)
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * sids.n_items, "codebook", seed=0)
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
    lists = recommender.recommend(HISTORIES, k=50, exclude_seen=False)
    for row, history in enumerate(HISTORIES):
        exact = every_item_log_prob(recommender, history)
        assert sorted(lists.items[row]) == list(range(50))
        np.testing.assert_allclose(lists.log_probs[row], exact[lists.items[row]].numpy(), atol=1e-4)
        assert (np.diff(lists.log_probs[row]) <= 1e-6).all()
        assert math.isclose(np.exp(lists.log_probs[row]).sum(), 1.0, abs_tol=1e-4)


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
    searched = beam_search(
        recommender.model, input_ids, mask, recommender.renderer.vocabulary, recommender.trie, k, eligible=allowed
    )
    for row in searched.items.tolist():
        items = [item for item in row if item >= 0]
        assert len(items) == len(set(items)) == min(k, len(eligible))
        assert set(items) <= eligible


@pytest.fixture(scope="module")
def recommender_for_properties():
    model, tokenizer = load_backbone(
        BackboneConfig(architecture="qwen3", hidden_size=16, num_hidden_layers=1, num_attention_heads=1), seed=3
    )
    sids = make_sids(50, LEVELS)
    vocabulary = add_sid_tokens(model.eval(), tokenizer, sids, [""] * sids.n_items, "codebook", seed=0)
    return Recommender.build(model, Renderer.build(sids, vocabulary, max_items=6), sids)


def test_gumbel_search_draws_without_replacement_from_the_policy(recommender):
    """First draws follow π; pairs follow π(i) π(j) / (1 - π(i)): compared by total variation over 4,000 draws."""
    history = HISTORIES[1]
    probabilities = every_item_log_prob(recommender, history).exp()
    draws = 4000
    input_ids, mask = recommender.renderer.batch([history] * draws)
    generators = [torch.Generator().manual_seed(i) for i in range(draws)]
    searched = beam_search(
        recommender.model, input_ids, mask, recommender.renderer.vocabulary, recommender.trie, 3, generators=generators
    )
    assert all(len(set(row)) == 3 for row in searched.items.tolist())
    first = torch.bincount(searched.items[:, 0], minlength=50) / draws
    assert (first - probabilities).abs().sum() / 2 < 0.05
    second = torch.bincount(searched.items[:, 1], minlength=50) / draws
    others = torch.stack([p * probabilities / (1 - p) for p in probabilities])
    others.fill_diagonal_(0)
    assert (second - others.sum(0)).abs().sum() / 2 < 0.05
    exact = every_item_log_prob(recommender, history)
    torch.testing.assert_close(searched.log_probs, exact[searched.items], atol=1e-4, rtol=0)


@st.composite
def random_codes(draw) -> tuple[np.ndarray, list[int]]:
    """Unique SIDs [N, L] and the level sizes: anything from one item to a full trie, long chains, one prefix for all."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    shape = draw(st.sampled_from(["any", "one prefix", "chains"]))
    rows = draw(st.sets(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=40))
    codes = np.array(sorted(rows), dtype=np.int32)
    if shape == "one prefix":  # all items differ only in the last code
        codes[:, :-1] = codes[0, :-1]
    elif shape == "chains":  # one code after the first
        codes[:, 1:] = codes[0, 1:]
    codes = np.unique(codes, axis=0)
    return codes[np.random.default_rng(draw(st.integers(0, 99))).permutation(len(codes))], sizes


@pytest.fixture(scope="module")
def models():
    """Two models with 64 tokens: one with opinions, and one to which all tokens are equal."""
    config = BackboneConfig(
        architecture="qwen3",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        dropout=0.0,
    )
    opinionated, _ = load_backbone(config, seed=3)
    indifferent, _ = load_backbone(config, seed=3)
    with torch.no_grad():
        for parameter in opinionated.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
        indifferent.lm_head.weight.zero_()
    return {"opinionated": opinionated.eval(), "indifferent": indifferent.eval()}


def recommender_for(model, codes: np.ndarray, sizes: list[int]) -> Recommender:
    first_tokens = tuple(int(first) for first in 41 + np.cumsum([0, *sizes[:-1]]))
    sids = SemanticIds(codes, codes, [np.zeros((size, 2), np.float32) for size in sizes])
    renderer = Renderer.build(sids, SidVocabulary(40, first_tokens, tuple(sizes)), max_items=3)
    return Recommender(model, renderer, LiveCatalogue(SidTrie(torch.from_numpy(codes), sizes)))


@torch.no_grad()
def exact_scores(recommender: Recommender, codes: np.ndarray, prompt: torch.Tensor) -> np.ndarray:
    """float64 [N]: log π of every item, by running prompt and item together and normalising over the codes that exist."""
    tokens = recommender.renderer.item_tokens
    rows = torch.cat([prompt.expand(len(codes), -1), tokens], dim=1)
    logits = recommender.model(rows).logits.double().numpy()
    scores = np.zeros(len(codes))
    for item in range(len(codes)):
        for level in range(codes.shape[1]):
            row = logits[item, len(prompt) - 1 + level]
            same = (codes[:, :level] == codes[item, :level]).all(axis=1)
            allowed = row[np.unique(tokens[same, level].numpy())]
            scores[item] += row[tokens[item, level]] - np.log(np.exp(allowed - allowed.max()).sum()) - allowed.max()
    return scores


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), shape=random_codes(), kind=st.sampled_from(["opinionated", "opinionated", "indifferent"]))
def test_the_contract_over_random_tries(data, shape, kind, models):
    """min(k, reachable) distinct, valid, unseen items, best first, with their scores, whatever k and the beams; the true ones where
    the beams are wide enough or the catalogue is scored; equal scores in the order of the SIDs."""
    codes, sizes = shape
    n_items = len(codes)
    recommender = recommender_for(models[kind], codes, sizes)
    item = st.integers(0, n_items - 1)
    histories = [
        np.array(data.draw(st.lists(item, min_size=1, max_size=4), label="history")),
        np.array(
            [*range(1, n_items), n_items - 1]
        ),  # all items but the first are seen (the only item, where there is one)
    ]
    k = data.draw(st.integers(1, n_items + 3), label="k")
    beams = data.draw(st.integers(1, n_items + 3), label="beams")
    exclude_seen, exact = data.draw(st.booleans()), data.draw(st.booleans())
    lists = recommender.recommend(histories, k, exclude_seen, beams=beams, exact=exact)

    place = np.argsort(np.lexsort(codes.T[::-1]))  # of every item in the order of the SIDs
    for row, history in enumerate(histories):
        unseen = sorted(set(range(n_items)) - (set(history.tolist()) if exclude_seen else set()))
        assert lists.reachable[row] == len(unseen)
        items, scores = lists.items[row][: min(k, len(unseen))], lists.log_probs[row][: min(k, len(unseen))]
        assert len(set(items.tolist())) == len(items)
        assert set(items.tolist()) <= set(unseen)
        assert (lists.items[row][len(items) :] == -1).all()
        assert np.isneginf(lists.log_probs[row][len(items) :]).all()
        true = exact_scores(recommender, codes, recommender.renderer.tokens(history))
        np.testing.assert_allclose(scores, true[items], atol=1e-5)
        assert (np.diff(scores) <= 0).all()
        is_equal = np.diff(scores) == 0
        assert (np.diff(place[items])[is_equal] > 0).all(), "equal scores are in the order of the SIDs"
        if exact or max(k, beams) >= n_items:
            np.testing.assert_allclose(scores, np.sort(true[unseen])[::-1][: len(items)], atol=1e-5)


def test_equal_scores_are_in_the_order_of_the_sids(models):
    """A model to which all codes are equal, over a full trie: the first k SIDs in order, for every k and every width."""
    codes = np.array([(a, b) for a in range(5) for b in range(4)], dtype=np.int32)[::-1].copy()
    recommender = recommender_for(models["indifferent"], codes, [5, 4])
    for k, beams, exact in [(1, 1, False), (3, 3, False), (7, 7, False), (7, 12, False), (20, 20, False), (7, 1, True)]:
        lists = recommender.recommend([np.array([0, 3])], k, exclude_seen=False, beams=beams, exact=exact)
        assert lists.items[0].tolist() == list(range(19, 19 - k, -1)), (k, beams, exact)


@pytest.mark.parametrize("beams", [1, 2, 5, 19, 20, 33])
def test_a_search_narrower_than_the_catalogue_fills_every_beam(models, beams):
    """Few items of many are eligible, each below another first code: none of the kept prefixes leads nowhere."""
    codes = np.array([(a, b) for a in range(6) for b in range(6)], dtype=np.int32)
    recommender = recommender_for(models["opinionated"], codes, [6, 6])
    input_ids, mask = recommender.renderer.batch([np.array([3]), np.array([8, 30])])
    eligible = torch.zeros(2, 36, dtype=torch.bool)
    eligible[0, ::7] = True  # (0, 0), (1, 1), …: one below each first code
    eligible[1, 3:23] = True
    searched = beam_search(
        recommender.model, input_ids, mask, recommender.renderer.vocabulary, recommender.trie, beams, eligible=eligible
    )
    assert searched.reachable.tolist() == [6, 20]
    for row in range(2):
        items = [item for item in searched.items[row].tolist() if item >= 0]
        assert len(set(items)) == len(items) == min(beams, int(searched.reachable[row]))
        assert eligible[row, items].all()


def test_a_k_or_beams_below_one_is_refused(recommender):
    for k, beams in ((0, 5), (-1, 5), (3, 0)):
        with pytest.raises(InputError, match="must be a whole number above 0"):
            recommender.recommend([np.array([1])], k, exclude_seen=True, beams=beams)


def drawn(recommender, history, n_draws: int, beams: int, allowed: AllowList | None = None) -> Beams:
    input_ids, mask = recommender.renderer.batch([history] * n_draws)
    generators = [torch.Generator().manual_seed(i) for i in range(n_draws)]
    return beam_search(
        recommender.model,
        input_ids,
        mask,
        recommender.renderer.vocabulary,
        recommender.trie,
        beams,
        eligible=None if allowed is None else Eligibility(recommender.trie, n_draws, allowed=allowed),
        generators=generators,
    )


def small_catalogue(models) -> tuple[Recommender, np.ndarray]:
    codes = np.array([(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 3), (3, 1), (3, 2), (3, 3), (4, 0)], dtype=np.int32)
    return recommender_for(models["opinionated"], codes, [5, 4]), codes


@pytest.mark.parametrize("allowed", [None, [0, 1, 4, 5, 6, 9]])
def test_importance_weights_are_unbiased(models, allowed):
    """Over 4,000 draws of 3 items, every item's mean weight is its probability, and the threshold is distributed as the fourth
    largest of log φ + Gumbel noise, drawn flat. φ is enumerated: with items left out, every prefix's rest is renormalised."""
    recommender, codes = small_catalogue(models)
    history, draws, beams = np.array([2, 7]), 4000, 3
    items = np.arange(10) if allowed is None else np.array(allowed)
    phi = np.zeros(10)
    # the same logits, normalised over the codes that lead to an allowed item
    reduced = recommender_for(models["opinionated"], codes[items], [5, 4])
    phi[items] = np.exp(exact_scores(reduced, codes[items], recommender.renderer.tokens(history)))
    assert phi.sum() == pytest.approx(1)
    is_allowed = torch.isin(torch.arange(10), torch.from_numpy(items))
    allow_list = None if allowed is None else AllowList(recommender.trie, is_allowed)
    searched = drawn(recommender, history, draws, beams, allow_list)
    np.testing.assert_allclose(searched.draws.log_probs.exp(), phi[searched.items], atol=1e-5)
    weights = torch.zeros(draws, 10).scatter_(1, searched.items, searched.draws.weights).double().numpy()
    errors = (weights.mean(0) - phi) / np.maximum(weights.std(0) / math.sqrt(draws), 1e-9)
    assert np.abs(errors[items]).max() < 4, (weights.mean(0), phi)
    assert weights[:, np.setdiff1d(np.arange(10), items)].sum() == 0
    total = weights.sum(1)
    assert abs(total.mean() - 1) < 4 * total.std() / math.sqrt(draws)
    flat = np.log(phi[items]) + np.random.default_rng(0).gumbel(size=(draws, len(items)))
    expected, thresholds = np.sort(-np.sort(-flat, axis=1)[:, beams]), np.sort(searched.draws.threshold.numpy())
    everything = np.concatenate([expected, thresholds])
    distance = np.abs(
        np.searchsorted(expected, everything, side="right") - np.searchsorted(thresholds, everything, side="right")
    )
    assert distance.max() / draws < 1.95 * math.sqrt(2 / draws)  # Kolmogorov-Smirnov, p = 0.001


def test_when_everything_is_drawn_every_weight_is_its_probability(models):
    recommender, codes = small_catalogue(models)
    searched = drawn(recommender, np.array([2]), 5, beams=12)
    true = exact_scores(recommender, codes, recommender.renderer.tokens(np.array([2])))
    assert torch.isneginf(searched.draws.threshold).all()
    assert (searched.draws.log_inclusion == 0).all()
    for row in range(5):
        assert sorted(searched.items[row].tolist()) == list(range(10))
        np.testing.assert_allclose(searched.draws.weights[row], np.exp(true[searched.items[row]]), atol=1e-5)
    ordered = drawn(recommender, np.array([2]), 5, beams=9)
    assert torch.equal(ordered.items, searched.items[:, :9]), "a narrower search draws the same items first"


def test_the_checkpoint_says_what_its_scores_are_normalised_over(recommender, tmp_path):
    sids, renderer = make_sids(50, LEVELS), recommender.renderer
    for normaliser in ("children", "level", "full"):
        Renderer.build(sids, renderer.vocabulary, 6, normaliser).save(tmp_path)
        record = json.loads((tmp_path / "sidrec.json").read_text())
        assert record["normaliser"] == normaliser
        loaded = Renderer.load(tmp_path, sids)
        assert loaded.normaliser == normaliser
        by_checkpoint = Recommender.build(recommender.model, loaded, sids).recommend(HISTORIES, 5, exclude_seen=True)
        input_ids, mask = loaded.batch(HISTORIES)
        eligible = torch.ones(3, 50, dtype=torch.bool)
        for row, history in enumerate(HISTORIES):
            eligible[row, history] = False
        wanted = beam_search(
            recommender.model, input_ids, mask, loaded.vocabulary, recommender.trie, 50, eligible, normaliser=normaliser
        )
        assert (by_checkpoint.items == wanted.items[:, :5].numpy()).all()
        np.testing.assert_allclose(by_checkpoint.log_probs, wanted.log_probs[:, :5], atol=1e-4)
        mass = np.exp(recommender.recommend(HISTORIES, 50, exclude_seen=False).log_probs.astype(float)).sum(1)
        np.testing.assert_allclose(mass, 1, atol=1e-4)
        whole = Recommender.build(recommender.model, loaded, sids).recommend(HISTORIES, 50, exclude_seen=False)
        assert (np.exp(whole.log_probs).sum(1) < 0.999).all() == (normaliser != "children")
    (tmp_path / "sidrec.json").write_text(json.dumps(record | {"normaliser": "items"}))
    with pytest.raises(InputError, match="normaliser 'items'; one of children, level, full"):
        Renderer.load(tmp_path, sids)


def test_item_log_probs_against_the_formula_and_forced_codes_cost_nothing(recommender):
    trie, vocabulary = recommender.trie, recommender.renderer.vocabulary
    head = OutputHead(recommender.model.get_output_embeddings().weight.detach())
    hidden = torch.randn(50, 3, head.weight.shape[1], requires_grad=True)
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


@pytest.mark.parametrize(("scale", "softcap", "bias"), [(1.0, None, False), (0.25, 1.5, True)])
def test_a_level_of_own_codes_is_scored_child_by_child(monkeypatch, scale, softcap, bias):
    """12 clusters, then a code for each of 300 items: the same log π and gradient as where all 300 logits are computed."""
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(np.column_stack([rng.integers(0, 12, 300), np.arange(300)]))
    trie, vocabulary = SidTrie(codes, [12, 300]), SidVocabulary(0, (1, 13), (12, 300))
    items, both_ways = torch.from_numpy(rng.integers(0, 300, 64)), []
    for sparse_level in (1, 10**6):
        monkeypatch.setattr(policy, "SPARSE_LEVEL", sparse_level)
        torch.manual_seed(1)
        weight = torch.randn(313, 16, requires_grad=True)
        head = OutputHead(weight, torch.randn(313) if bias else None, softcap=softcap, scale=scale)
        hidden = torch.randn(64, 2, 16, requires_grad=True)
        log_probs = item_log_probs(hidden, items, head, vocabulary, trie)
        gradients = torch.autograd.grad(log_probs.sum(), [weight, hidden])
        both_ways.append((log_probs, *gradients))
    for sparse, dense in zip(*both_ways, strict=True):
        torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)


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
