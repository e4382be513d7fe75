"""The live catalogue against tries built from nothing, and under threads of requests."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from conftest import make_sids
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError

LEVELS = [4, 5, 6]


def assert_same_trie(trie: SidTrie, wanted: SidTrie) -> None:
    assert trie.n_nodes == wanted.n_nodes
    assert torch.equal(trie.item_of_leaf[:], wanted.item_of_leaf[:])
    for depth in range(wanted.n_levels):
        assert torch.equal(trie.first_child[depth].values(), wanted.first_child[depth].values())
        assert torch.equal(trie.code[depth][:], wanted.code[depth][:])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_changes_give_the_trie_of_what_is_there(data):
    """Over five changes: the tables equal those of a trie built from nothing, and items keep their indices."""
    every = make_sids(30, [3, 4, 5], seed=data.draw(st.integers(0, 99)))
    start = data.draw(st.integers(1, 30))
    present = list(range(start))
    catalogue = LiveCatalogue(SidTrie(torch.from_numpy(every.codes[:start]), every.level_sizes))
    before = catalogue.snapshot
    untouched = before.trie.item_of_leaf[:].clone()
    for _ in range(5):
        absent = sorted(set(range(30)) - set(present))
        if absent and data.draw(st.booleans()):
            new = data.draw(st.lists(st.sampled_from(absent), unique=True))
            catalogue.insert(np.array(new, dtype=int), every.codes[new])
            present += new
        else:
            old = data.draw(st.lists(st.sampled_from(present), unique=True, max_size=len(present) - 1))
            catalogue.remove(np.array(old, dtype=int))
            present = [item for item in present if item not in old]
        trie = catalogue.snapshot.trie
        assert_same_trie(
            trie, SidTrie(torch.from_numpy(every.codes[present]), every.level_sizes, torch.tensor(present))
        )
        items = torch.arange(trie.n_slots)
        assert set(items[trie.leaf_of_item(items) >= 0].tolist()) == set(present)
    assert torch.equal(before.trie.item_of_leaf[:], untouched)


def test_allow_lists_follow_the_catalogue():
    sids = make_sids(50, LEVELS)
    catalogue = LiveCatalogue(SidTrie(torch.from_numpy(sids.codes[:40]), LEVELS))
    catalogue.set_allow_list("in stock", np.arange(0, 40, 2))
    catalogue.set_allow_list("films", np.arange(10))
    catalogue.insert(np.arange(40, 50), sids.codes[40:], allow_lists=("films",))
    catalogue.remove(np.array([0, 1, 45]))
    assert allowed_items(catalogue, "in stock") == set(range(2, 40, 2))
    assert allowed_items(catalogue, "films") == set(range(2, 10)) | set(range(40, 50)) - {45}
    # an item that comes back is on the lists that it joins now, not on those it was on
    catalogue.insert(np.array([0]), sids.codes[[0]])
    assert allowed_items(catalogue, "in stock") == set(range(2, 40, 2))
    catalogue.set_allow_list("in stock", np.array([0]))
    assert allowed_items(catalogue, "in stock") == {0}


def allowed_items(catalogue: LiveCatalogue, name: str) -> set[int]:
    """By walking down the open codes only."""
    trie = catalogue.snapshot.trie
    eligibility = Eligibility(trie, 1, allowed=catalogue.snapshot.allow_lists[name])
    nodes = torch.zeros(1, 1, dtype=torch.long)
    for depth in range(trie.n_levels):
        mask = trie.children_mask(depth, nodes[0])[None]
        _, column, code = eligibility.open_codes(depth, nodes, mask).nonzero(as_tuple=True)
        nodes = trie.child(depth, nodes[0, column], code)[None]
    return set(trie.item_of_leaf[nodes[0]].tolist())


def test_wrong_changes_are_refused_and_change_nothing():
    sids = make_sids(50, LEVELS)
    catalogue = LiveCatalogue(SidTrie(torch.from_numpy(sids.codes[:40]), LEVELS))
    before = catalogue.snapshot
    free, in_use = sids.codes[40:42], sids.codes[[7]]
    for items, codes, message in (
        ([39], free[:1], "item 39 is in the catalogue already"),
        ([40, 40], free, "item 40 is given twice"),
        ([40, 41], free[[0, 0]], "items 40 and 41 have the same semantic ID"),
        ([40], in_use, "item 40 has the semantic ID of item 7"),
        ([40], np.array([[0, 5, 0]]), "item 40 has code 5 at level 1, which has 5 codes"),
        ([-1], free[:1], "negative"),
    ):
        with pytest.raises(InputError, match=message):
            catalogue.insert(np.array(items), codes)
    for items, message in (([40], "item 40 is not in the catalogue"), (range(40), "all 40 items would be removed")):
        with pytest.raises(InputError, match=message):
            catalogue.remove(np.array(items))
    with pytest.raises(InputError, match="no allow-list 'films'"):
        catalogue.insert(np.array([40]), free[:1], allow_lists=("films",))
    assert catalogue.snapshot is before


def test_requests_in_eight_threads_see_no_removed_item_while_the_catalogue_changes():
    """Items never return once removed, so one that was gone when a request began may not be in its answer."""
    sids = make_sids(120, LEVELS)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=16,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    vocabulary = SidVocabulary(0, (1, 5, 10), (4, 5, 6))
    catalogue = LiveCatalogue(SidTrie(torch.from_numpy(sids.codes[:40]), LEVELS))
    removed: list[int] = []  # appended to when a removal is over
    inserted = set(range(40))  # added to before an insertion begins
    finished, failures, answers = threading.Event(), [], [0] * 8

    def request(thread: int) -> None:
        try:
            while not finished.is_set():
                gone = set(removed)
                trie = catalogue.snapshot.trie
                beams = beam_search(
                    model, torch.tensor([[0, thread]]), torch.ones(1, 2, dtype=torch.long), vocabulary, trie, 30
                )
                items = beams.items[0].tolist()
                assert len(set(items)) == len(items) == min(30, trie.n_items)
                assert not gone & set(items), "a removed item"
                assert set(items) <= inserted, "an item that was never there"
                answers[thread] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=request, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for first in range(0, 80, 2):
        new = np.arange(40 + first, 42 + first)
        inserted.update(new.tolist())
        catalogue.insert(new, sids.codes[new])
        old = np.arange(first, first + 2)
        catalogue.remove(old)
        removed.extend(old.tolist())
        threading.Event().wait(0.02)
    finished.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert min(answers) > 0
    assert set(catalogue.snapshot.trie.item_of_leaf[:].tolist()) == set(range(80, 120))
