"""The RQ-Transformer against formulas, brute force and itself by another road."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_sids
from torch import nn
from transformers import AutoModelForCausalLM

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.rq_transformer import item_softmax
from sidrec.decoding.rq_transformer.blocks import CausalSmoothing, RoPEAttention, rotated, rotation
from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig
from sidrec.decoding.rq_transformer.depth_heads import log_softmax_among_siblings
from sidrec.decoding.rq_transformer.item_softmax import item_losses, sampled_item_losses
from sidrec.decoding.rq_transformer.joint_nodes import entries_of_children
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.decoding.trie import SidTrie

START, FIRST, SIZES = 20, (24, 28, 33), (4, 5, 6)
N_ITEMS, WIDTH = 40, 16


@pytest.fixture
def sids():
    return make_sids(N_ITEMS, list(SIZES), seed=3)


@pytest.fixture(
    params=[
        ("marginal", 3, 0),
        *product(("additive", "transformer"), (1, 2), (0,)),
        ("additive", 1, 2),
        ("transformer", 2, 1),
    ]
)
def model(request, sids) -> RqTransformerForCausalLM:
    head, joint, exact = request.param
    return make_model(head, sids, joint_levels=joint, exact_children=exact)


def make_model(head: str, sids, **settings) -> RqTransformerForCausalLM:
    torch.manual_seed(0)
    config = RqTransformerConfig(
        vocab_size=40, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, depth_head=head, **settings
    )
    model = RqTransformerForCausalLM(config)
    model.add_catalogue(SidTrie(torch.from_numpy(sids.codes), sids.level_sizes), START, FIRST, own_levels=[1, 2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.eval()


def renderer_of(sids, max_items: int = 10) -> Renderer:
    return Renderer.build(sids, SidVocabulary(START, FIRST, SIZES), max_items)


def test_smoothing_is_the_weighted_mean_of_the_past() -> None:
    torch.manual_seed(0)
    branch, hidden = CausalSmoothing(5), torch.randn(2, 37, 5)
    with torch.no_grad():
        branch.scale.normal_()
    decay = torch.sigmoid(branch.decay)
    for t in (0, 1, 6, 36):
        weights = decay ** torch.arange(t, -1, -1)[:, None]  # [t + 1, H]
        expected = branch.scale * (weights * hidden[:, : t + 1]).sum(1) / weights.sum(0)
        assert torch.allclose(branch(hidden)[:, t], expected, atol=1e-5)


def test_smoothing_and_attention_never_look_ahead_and_attention_sees_distances_alone() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, 12, 8)
    changed = hidden.clone()
    changed[:, 7:] += 1
    for layer in (CausalSmoothing(8), RoPEAttention(8, 2)):
        assert torch.equal(layer(hidden)[:, :7], layer(changed)[:, :7])
        assert not torch.allclose(layer(hidden)[:, 7:], layer(changed)[:, 7:])
    cos, sin = rotation(12, 4, torch.device("cpu"))
    query, key = torch.randn(4), torch.randn(4)
    products = rotated(query.expand(12, 4), cos, sin) @ rotated(key.expand(12, 4), cos, sin).T
    for distance in range(-11, 12):
        same = products.diagonal(distance)
        assert torch.allclose(same, same[0].expand_as(same), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_item_losses_and_their_gradients_are_those_of_cross_entropy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states, rows, bias = (torch.randn(*shape, requires_grad=True) for shape in ((300, 8), (50, 8), (50,)))
    targets, weights = torch.randint(0, 50, (300,)), torch.rand(300)
    expected = nn.functional.cross_entropy(states @ rows.T + bias, targets, reduction="none")
    wanted = torch.autograd.grad((expected * weights).sum(), (states, rows, bias))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        losses = item_losses(states, rows, bias, targets, torch.full((50,), 1 / 50))
    gradients = torch.autograd.grad((losses * weights).sum(), (states, rows, bias))
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert torch.allclose(losses, expected, atol=tolerance)
    for gradient, true in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient, true, atol=tolerance)


def test_sampled_losses_estimate_the_sum_without_bias_and_near_the_exact_losses(monkeypatch) -> None:
    torch.manual_seed(0)
    states, rows, bias = torch.randn(20, 8), torch.randn(300, 8), torch.randn(300)
    targets, popularity = torch.randint(0, 300, (20,)), torch.rand(300).pow(3)
    popularity /= popularity.sum()
    exact = item_losses(states, rows, bias, targets, popularity)
    draws = torch.stack([sampled_item_losses(states, rows, bias, targets, popularity, 64) for _ in range(4000)])
    # the loss is log(sum / exp(wanted)), so its exponential is the sum in units of the target's part
    assert torch.allclose(draws.exp().mean(0), exact.exp(), rtol=0.05)
    monkeypatch.setattr(item_softmax, "MOST_SCORED", 200)
    monkeypatch.setattr(item_softmax, "SAMPLES", 100_000)
    assert torch.allclose(item_losses(states, rows, bias, targets, popularity), exact, atol=0.05)


def test_log_softmax_among_siblings_against_a_loop() -> None:
    parents, scores = torch.tensor([0, 0, 1, 2, 2, 2]), torch.randn(3, 6) * 30
    expected = torch.cat([scores[:, :2].log_softmax(1), scores[:, 2:3] * 0, scores[:, 3:].log_softmax(1)], 1)
    assert torch.allclose(log_softmax_among_siblings(scores, parents, int(parents[-1]) + 1), expected, atol=1e-5)


def test_a_nodes_entries_are_its_most_popular_children_and_the_mean_of_the_others(sids) -> None:
    parents = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    popularity = torch.tensor([0.1, 0.3, 0.0, 0.2, 0.1, 0.1, 0.2])
    entry, first = entries_of_children(parents, popularity, exact=2)
    assert first.tolist() == [0, 3, 4, 6]
    assert entry.tolist() == [2, 0, 2, 1, 3, 5, 4]

    model, states = make_model("additive", sids, joint_levels=2, exact_children=2), torch.randn(3, WIDTH)
    model.popularity.copy_(torch.rand(N_ITEMS).softmax(0))
    table, trie = model.table(), model.trie
    scores, expected = states @ table.item_rows.T + table.item_bias, []
    for node in range(trie.n_nodes[2]):
        children = (table.paths.parents[2] == node).nonzero()[:, 0]
        best = children[table.popularity[children].argsort(descending=True)]
        parts = [scores[:, child] for child in best[:2]]
        if len(best) > 2:  # logs of a mass: as often as they are many, e to the score of the mean row
            parts.append(scores[:, best[2:]].mean(1) + np.log(len(best) - 2))
        expected.append(torch.stack(parts).logsumexp(0))
    wanted = torch.stack(expected, 1).log_softmax(1)
    assert int(trie.first_child[2][:].diff().max()) > 3
    assert torch.allclose(model.depth.joint_log_probs(states, table), wanted, atol=1e-4)


def test_with_every_child_exact_the_joint_nodes_have_the_probabilities_of_a_softmax_over_items(sids) -> None:
    model, states = make_model("additive", sids, joint_levels=2, exact_children=N_ITEMS), torch.randn(3, WIDTH)
    table = model.table()
    over_items = (states @ table.item_rows.T + table.item_bias).softmax(1)
    masses = torch.zeros(3, model.trie.n_nodes[2]).index_add(1, table.paths.parents[2], over_items)
    assert torch.allclose(model.depth.joint_log_probs(states, table).exp(), masses, atol=1e-5)


def test_the_probabilities_of_all_items_sum_to_one_and_are_the_products_of_their_codes(model) -> None:
    states, table, trie = torch.randn(3, WIDTH), model.table(), model.trie
    leaf = model.depth.leaf_log_probs(states, table)
    assert torch.allclose(leaf.exp().sum(1), torch.ones(3), atol=1e-5)
    product = torch.zeros(3, N_ITEMS)
    for level in range(3):
        nodes = torch.arange(trie.n_nodes[level])
        child, _, exists = trie.padded_children(level, nodes)
        steps = model.depth.child_log_probs(states.expand(len(nodes), -1, -1), level, nodes, child, exists, table)
        flat = torch.full((3, trie.n_nodes[level + 1]), torch.nan)
        flat[:, child[exists]] = steps.transpose(0, 1)[:, exists]
        product += flat[:, table.paths.ancestors[level]]
    assert torch.allclose(product, leaf, atol=1e-4)
    losses = model.depth.item_losses(states, torch.tensor([4, 0, 39]), table)
    assert torch.allclose(-losses, leaf[torch.arange(3), [4, 0, 39]], atol=1e-4)


def test_from_outside_it_is_a_causal_model_of_flat_tokens(model, sids) -> None:
    """Logits of each code, teacher forced, give the same log π as the fast path; what comes later changes nothing; padding neither."""
    renderer, trie = renderer_of(sids), model.trie
    history, target = np.array([3, 17, 3, 9]), 21
    ids = torch.cat([renderer.tokens(history), renderer.tokens_of(torch.tensor([target]))[0]])[None]
    logits = model(input_ids=ids).logits
    at = torch.arange(12, 15)
    forced = logits.log_softmax(-1)[0, at, ids[0, at + 1]].sum()
    fast = model.leaf_log_probs(ids[:, :13], torch.ones(1, 13).long(), trie)[0, trie.leaf_of_item(torch.tensor(target))]
    assert torch.allclose(forced, fast, atol=1e-4)
    assert torch.allclose(model(input_ids=ids[:, :8]).logits, logits[:, :8], atol=1e-5)
    padded, mask = renderer.batch([history, history[-2:], np.array([5])])
    alone = [model(input_ids=renderer.tokens(h)[None]).logits[0, -1] for h in (history, history[-2:], np.array([5]))]
    assert torch.allclose(model(input_ids=padded, attention_mask=mask).logits[:, -1], torch.stack(alone), atol=1e-4)
    last = model(input_ids=padded, attention_mask=mask, logits_to_keep=1, output_hidden_states=True)
    assert last.logits.shape == (3, 1, 40)
    assert last.hidden_states[-1].shape == (3, padded.shape[1], WIDTH)


def test_generate_without_constraints_writes_items_that_exist(model, sids) -> None:
    padded, mask = renderer_of(sids).batch([np.array([1, 2, 3]), np.array([8])])
    written = model.generate(padded, attention_mask=mask, max_new_tokens=3, num_beams=4, do_sample=False)
    codes = written[:, -3:] - torch.tensor(FIRST)
    best = beam_search(model, padded, mask, SidVocabulary(START, FIRST, SIZES), model.trie, 4)
    assert (model.trie.descend(codes) >= 0).all()
    assert model.trie.item_of(codes).tolist() == best.items[:, 0].tolist()


def test_losses_are_log_pi_of_every_answer(model, sids) -> None:
    renderer = renderer_of(sids)
    history = np.array([3, 17, 8, 9])
    ids = renderer.tokens(history)[None]
    answers = torch.full_like(ids, -1)
    answers[0, 1::3] = torch.from_numpy(history)
    output = model(input_ids=nn.functional.pad(ids, (0, 6)), answers=nn.functional.pad(answers, (0, 6), value=-1))
    assert len(output.answer_losses) == 3, "a first item has no history to be learnt from"
    for place, item in enumerate(history[1:], 1):
        prompt = ids[:, : 1 + 3 * place]
        log_probs = model.leaf_log_probs(prompt, torch.ones_like(prompt), model.trie)
        leaf = model.trie.leaf_of_item(torch.tensor(item))
        assert torch.allclose(-output.answer_losses[place - 1], log_probs[0, leaf], atol=1e-4)
    assert (output.item_losses is None) == (model.config.depth_head == "marginal")


def test_saved_and_loaded_it_is_the_same(model, sids, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, RqTransformerForCausalLM)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    ids = renderer_of(sids).tokens(np.array([2, 30]))[None]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_kept_table_follows_the_weights(model, sids) -> None:
    ids = renderer_of(sids).tokens(np.array([2, 30]))[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        before = model.leaf_log_probs(ids, mask, model.trie)
        model.nodes.own["2"].add_(torch.randn_like(model.nodes.own["2"]))
        after = model.leaf_log_probs(ids, mask, model.trie)
    assert not torch.allclose(before, after)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model.train()
    model.depth.item_losses(torch.randn(4, WIDTH), torch.arange(4), model.table()).sum().backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        last = model.leaf_log_probs(ids, mask, model.trie)
    assert not torch.allclose(last, after)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.allclose(fresh.leaf_log_probs(ids, mask, fresh.trie), last)


def test_items_that_come_later_start_from_their_codes_rows(model, sids) -> None:
    """A new item is ranked, may stand in a history, and has no row of its own; the others keep their scores among themselves."""
    free = free_code(sids)
    recommender = Recommender(
        model, renderer_of(sids), LiveCatalogue(SidTrie(torch.from_numpy(sids.codes), list(SIZES)))
    )
    before = recommender.recommend([np.array([1, 2])], N_ITEMS, exclude_seen=False)
    recommender.catalogue.insert(np.array([N_ITEMS]), np.array([free]))
    with torch.no_grad():
        rows = model.embed_items(torch.tensor([free]), model.table())
        code_rows = sum(
            model.embed_tokens(torch.tensor([first + code])) for first, code in zip(FIRST, free, strict=True)
        )
        prefix = model.trie.descend(torch.tensor([free[:2]]))
        own_row = model.nodes.own["1"][prefix] if prefix >= 0 else 0
    assert torch.allclose(rows, code_rows + own_row, atol=1e-5)
    after = recommender.recommend([np.array([1, 2])], N_ITEMS + 1, exclude_seen=False)
    assert sorted(after.items[0]) == list(range(N_ITEMS + 1))
    if model.config.depth_head == "marginal":
        assert [item for item in after.items[0] if item != N_ITEMS] == before.items[0].tolist()
    assert recommender.recommend([np.array([N_ITEMS])], 5, exclude_seen=True).items.shape == (1, 5)


def test_beams_down_from_the_joint_nodes_find_what_scoring_every_item_finds(model, sids, monkeypatch) -> None:
    """With beams for every node the search is exact, whoever may not be given what; narrow ones give items of the right probability."""
    monkeypatch.setattr("sidrec.decoding.recommender.MOST_SCORED", 0)
    recommender = Recommender(
        model, renderer_of(sids), LiveCatalogue(SidTrie(torch.from_numpy(sids.codes), list(SIZES)))
    )
    recommender.catalogue.insert(np.array([N_ITEMS]), np.array([free_code(sids)]))
    recommender.catalogue.set_allow_list("even", np.arange(0, N_ITEMS, 2))
    histories = [np.array([1, 2, 8]), np.arange(N_ITEMS - 3), np.array([5])]
    for allow in (None, "even"):
        asked = {"exclude_seen": True, "allow": allow}
        exact = recommender.recommend(histories, 12, exact=True, **asked)
        wide = recommender.recommend(histories, 12, beams=N_ITEMS + 1, **asked)
        assert wide.items.tolist() == exact.items.tolist()
        assert np.allclose(wide.log_probs, exact.log_probs, atol=1e-4)
        assert wide.reachable.tolist() == exact.reachable.tolist()
        every = recommender.recommend(histories, N_ITEMS + 1, exact=True, **asked)
        narrow = recommender.recommend(histories, 3, beams=3, **asked)
        for row in range(3):
            log_prob_of = dict(zip(every.items[row], every.log_probs[row], strict=True))
            assert len(set(narrow.items[row]) - {-1}) == min(3, exact.reachable[row])
            assert [log_prob_of[item] for item in narrow.items[row]] == pytest.approx(narrow.log_probs[row], abs=1e-4)


def free_code(sids) -> tuple[int, ...]:
    return next(code for code in np.ndindex(*SIZES) if not (sids.codes == code).all(1).any())


def test_draws_without_replacement_follow_pi(sids) -> None:
    """Σ φ / q over draws is an unbiased estimate of Σ φ = 1, and items that may not be drawn never are."""
    model = make_model("marginal", sids)
    ids = renderer_of(sids).tokens(np.array([2, 30]))[None].expand(400, -1)
    generators = [torch.Generator().manual_seed(i) for i in range(400)]
    allowed = torch.ones(400, N_ITEMS, dtype=torch.bool)
    allowed[:, ::2] = False
    drawn = beam_search(
        model, ids, torch.ones_like(ids), SidVocabulary(START, FIRST, SIZES), model.trie, 8, allowed, generators
    )
    assert (drawn.items % 2 == 1).all()
    assert all(len(set(row)) == 8 for row in drawn.items.tolist())
    assert float(drawn.draws.weights.sum(1).mean()) == pytest.approx(1, abs=0.05)
    assert drawn.reachable.tolist() == [N_ITEMS // 2] * 400


@pytest.mark.parametrize("smoothing", [True, False])
def test_the_last_states_are_the_last_of_all_states(smoothing: bool) -> None:
    from sidrec.decoding.rq_transformer.model import SpatialTransformer

    torch.manual_seed(0)
    config = RqTransformerConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, smoothing=smoothing)
    spatial, items, place = SpatialTransformer(config).eval(), torch.randn(4, 7, 16), torch.tensor([6, 0, 3, 5])
    with torch.no_grad():
        expected = spatial(items)[torch.arange(4), place]
        torch.testing.assert_close(spatial.at(items, place), expected)
