"""The trie against dictionaries of prefixes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_sids
from hypothesis import given, settings
from hypothesis import strategies as st

import decoding.trie
from decoding.trie import SidTrie


@st.composite
def sid_sets(draw):
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    total = int(np.prod(sizes))
    return make_sids(draw(st.integers(1, total)), sizes, draw(st.integers(0, 1000)))


@settings(max_examples=150, deadline=None)
@given(sid_sets())
def test_children_items_and_ranges_agree_with_brute_force(sids):
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    rows = [tuple(int(c) for c in row) for row in sids.codes]
    for depth in range(trie.n_levels + 1):
        prefixes = sorted({row[:depth] for row in rows})
        assert trie.n_nodes[depth] == len(prefixes)
        for item, row in enumerate(rows):
            assert int(trie.node_of_item[depth][item]) == prefixes.index(row[:depth])
        for node, prefix in enumerate(prefixes):
            below = {i for i, row in enumerate(rows) if row[:depth] == prefix}
            first, last = trie.first_leaf[depth][node : node + 2].tolist()
            assert set(trie.item_of_leaf[first:last].tolist()) == below
        if depth < trie.n_levels:
            mask = trie.children_mask(depth, torch.arange(len(prefixes)))
            for node, prefix in enumerate(prefixes):
                allowed = {row[depth] for row in rows if row[:depth] == prefix}
                assert set(mask[node].nonzero().flatten().tolist()) == allowed
    assert trie.item_of(torch.from_numpy(sids.codes).long()).tolist() == list(range(len(rows)))


def test_masks_built_on_request_equal_the_dense_ones(monkeypatch):
    sids = make_sids(40, [4, 5, 6])
    dense = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    monkeypatch.setattr(decoding.trie, "SMALL_TABLE", 0)
    monkeypatch.setattr(decoding.trie, "WIDE_LEVEL", 1)
    ragged = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    assert not any(ragged.has_mask_table(depth) for depth in range(3))
    for depth in range(3):
        nodes = torch.randint(dense.n_nodes[depth], (50,))
        assert torch.equal(dense.children_mask(depth, nodes), ragged.children_mask(depth, nodes))


def test_a_path_without_an_item_and_a_repeated_sid_are_refused():
    codes = torch.tensor([[0, 0], [1, 1]])
    trie = SidTrie(codes, [2, 2])
    with pytest.raises(AssertionError, match="no item has this prefix"):
        trie.item_of(torch.tensor([[0, 1]]))
    with pytest.raises(AssertionError, match="share a semantic ID"):
        SidTrie(torch.tensor([[0, 0], [0, 0]]), [2, 2])
    with pytest.raises(AssertionError, match="outside its level"):
        SidTrie(torch.tensor([[0, 2]]), [2, 2])
