"""Eligibility against counting items one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_sids
from hypothesis import given, settings
from hypothesis import strategies as st
from trie_cases import sid_sets

from sidrec.decoding.eligibility import AllowList, Eligibility
from sidrec.decoding.trie import SidTrie


def brute_force_open(codes: np.ndarray, depth: int, prefix: tuple, size: int, eligible: set[int]) -> list[bool]:
    """Of each code of the level, whether an eligible item has the prefix followed by it."""
    items = [i for i in eligible if tuple(codes[i, :depth]) == prefix]
    return [any(codes[i, depth] == code for i in items) for code in range(size)]


def assert_open_as_by_brute_force(trie: SidTrie, codes: np.ndarray, eligibility: Eligibility, sets: list[set[int]]):
    assert eligibility.n_eligible.tolist() == [len(one) for one in sets]
    for row, eligible in zip(eligibility.leaves(), sets, strict=True):
        assert set(trie.item_of_leaf[:][row].tolist()) == eligible
    for depth in range(trie.n_levels):
        prefixes = sorted({tuple(row[:depth]) for row in codes})
        # every node, and the first once more: a search pads with repeated nodes
        nodes = torch.tensor([*range(len(prefixes)), 0]).repeat(len(sets), 1)
        mask = trie.children_mask(depth, nodes.flatten()).view(*nodes.shape, -1)
        before = mask.clone()
        open_codes = eligibility.open_codes(depth, nodes, mask)
        assert torch.equal(mask, before)
        most = int(mask.sum(2).max())
        children = trie.first_child[depth][nodes][..., None] + torch.arange(most)
        inside = torch.arange(most) < mask.sum(2, keepdim=True)
        by_child = eligibility.open_children(depth, nodes, children.clamp(max=trie.n_nodes[depth + 1] - 1))
        assert torch.equal(by_child[inside], open_codes[mask])  # both go through a node's children in order of code
        for row, eligible in enumerate(sets):
            for column, node in enumerate(nodes[row].tolist()):
                wanted = brute_force_open(codes, depth, prefixes[node], trie.level_sizes[depth], eligible)
                assert open_codes[row, column].tolist() == wanted, (depth, row, node)


@st.composite
def requests(draw):
    """A trie, and for three requests: exclusions (with repeats and unknown items) and an allow-list, shared or not."""
    sids = draw(sid_sets())
    items = range(sids.n_items)
    excluded = [draw(st.lists(st.integers(-2, sids.n_items + 3), max_size=2 * sids.n_items)) for _ in range(3)]
    lists = [draw(st.none() | st.sets(st.sampled_from(items))) for _ in range(2)]
    chosen = draw(st.lists(st.integers(0, 1), min_size=3, max_size=3))
    return sids, excluded, lists, chosen


@settings(max_examples=80, deadline=None)
@given(requests())
def test_open_codes_children_and_counts_agree_with_brute_force(case):
    sids, excluded, lists, chosen = case
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    built = [None if one is None else allow_list(trie, one) for one in lists]
    eligibility = Eligibility(trie, 3, [np.array(row) for row in excluded], [built[i] for i in chosen])
    sets = [
        (set(range(sids.n_items)) if lists[i] is None else set(lists[i])) - set(row)
        for i, row in zip(chosen, excluded, strict=True)
    ]
    assert_open_as_by_brute_force(trie, sids.codes, eligibility, sets)


def allow_list(trie: SidTrie, items: set[int]) -> AllowList:
    allowed = torch.zeros(trie.n_slots, dtype=torch.bool)
    allowed[list(items)] = True
    return AllowList(trie, allowed)


def test_one_item_left_all_left_and_none_left():
    sids = make_sids(60, [4, 5, 6])
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    everything = np.arange(60)
    excluded = [np.delete(everything, 17), np.array([], dtype=int), everything]
    eligibility = Eligibility(trie, 3, excluded)
    assert_open_as_by_brute_force(trie, sids.codes, eligibility, [{17}, set(range(60)), set()])


def test_excluding_an_item_that_was_removed_changes_nothing():
    sids = make_sids(40, [4, 5, 6])
    items = torch.arange(0, 80, 2)  # 1, 3, … have no leaf
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes, items)
    eligibility = Eligibility(trie, 3, [np.array([4]), np.array([1, 3, 77, 500, -1]), np.array([1, 6])])
    allowed = [set(trie.item_of_leaf[:][row].tolist()) for row in eligibility.leaves()]
    everything = set(items.tolist())
    assert allowed == [everything - {4}, everything, everything - {6}]
    assert eligibility.n_eligible.tolist() == [39, 40, 39]


def test_exclusions_may_be_of_one_request_only_and_lists_of_all():
    sids = make_sids(60, [4, 5, 6])
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    stock = set(range(0, 60, 2))
    eligibility = Eligibility(trie, 2, [np.array([0, 2, 3]), np.array([], dtype=int)], allow_list(trie, stock))
    assert_open_as_by_brute_force(trie, sids.codes, eligibility, [stock - {0, 2}, stock])


def test_intersection_and_a_mask_of_bools():
    sids = make_sids(60, [4, 5, 6])
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    both = allow_list(trie, set(range(0, 60, 2))) & allow_list(trie, set(range(0, 60, 3)))
    assert both.n_allowed == 10
    assert_open_as_by_brute_force(trie, sids.codes, Eligibility(trie, 1, allowed=both), [set(range(0, 60, 6))])
    mask = torch.from_numpy(np.random.default_rng(0).random((3, 60)) > 0.8)
    sets = [set(row.nonzero().flatten().tolist()) for row in mask]
    assert_open_as_by_brute_force(trie, sids.codes, Eligibility.of_mask(trie, mask), sets)


def test_counts_of_allowed_leaves():
    sids = make_sids(100, [4, 5, 6])
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    allowed = torch.from_numpy(np.random.default_rng(1).random(100) > 0.3)
    counts = AllowList(trie, allowed).count_before(torch.arange(101))
    in_order = allowed[trie.item_of_leaf[:]].long()
    assert counts.tolist() == [int(in_order[:leaf].sum()) for leaf in range(101)]


def test_lists_of_another_trie_or_shape_are_refused():
    sids = make_sids(60, [4, 5, 6])
    trie, other = (SidTrie(torch.from_numpy(sids.codes), sids.level_sizes) for _ in range(2))
    with pytest.raises(AssertionError, match="another trie"):
        Eligibility(trie, 1, allowed=allow_list(other, {1}))
    with pytest.raises(AssertionError, match="item indices below 60"):
        AllowList(trie, torch.ones(59, dtype=torch.bool))
    with pytest.raises(AssertionError, match="2 allow-lists for 1"):
        Eligibility(trie, 1, allowed=[None, None])
