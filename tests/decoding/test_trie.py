"""The trie against dictionaries of prefixes, and its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_sids
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trie_cases import sid_sets

from sidrec.decoding import trie as trie_module
from sidrec.decoding.trie import Pointers, SidTrie
from sidrec.decoding.trie_file import open_trie, save_trie
from sidrec.pipeline.errors import InputError


@settings(max_examples=80, deadline=None)
@given(sid_sets(), st.booleans())
def test_children_items_and_ranges_agree_with_brute_force(sids, as_a_large_one):
    with pytest.MonkeyPatch.context() as patch:
        if as_a_large_one:
            patch.setattr(trie_module, "SMALL_CATALOGUE", 0)
            patch.setattr(trie_module, "SMALL_TABLE", 0)
        agrees_with_brute_force(sids)


def agrees_with_brute_force(sids):
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
                codes = torch.arange(sids.level_sizes[depth])
                children = trie.find(depth, torch.full_like(codes, node), codes).tolist()
                deeper = sorted({row[: depth + 1] for row in rows})
                wanted = [deeper.index((*prefix, code)) if code in allowed else -1 for code in codes.tolist()]
                assert children == wanted
                assert trie.parent(depth, torch.tensor(children)[mask[node]]).tolist() == [node] * len(allowed)
            assert trie.widest(depth) == int(mask.sum(1).max())
    assert trie.sorted_codes().tolist() == [list(row) for row in sorted(rows)]
    assert trie.item_of(torch.from_numpy(sids.codes).long()).tolist() == list(range(len(rows)))


def test_masks_built_on_request_equal_the_dense_ones(monkeypatch):
    sids = make_sids(40, [4, 5, 6])
    dense = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    monkeypatch.setattr(trie_module, "SMALL_TABLE", 0)
    monkeypatch.setattr(trie_module, "WIDE_LEVEL", 1)
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


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1200), st.sampled_from([1, 40, 400, 100_000]), st.integers(0, 99))
def test_pointers_are_read_as_they_were_packed(n, largest_step, seed):
    """Within one block and over several, with spans that fit 16 bits (also the upper half of them) and spans that do not."""
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(1, largest_step + 1, n).cumsum())
    packed = Pointers.pack(values)
    assert torch.equal(packed.values(), values)
    index = torch.from_numpy(rng.integers(0, n, (3, 50)))
    assert torch.equal(packed[index], values[index])
    assert torch.equal(packed[2:], values[2:])
    wanted = torch.from_numpy(rng.integers(int(values[0]), int(values[-1]) + 1, 200))
    assert torch.equal(packed.holder(wanted), torch.searchsorted(values, wanted, right=True) - 1)
    spans = [int(values[min(i + 255, n - 1)] - values[i]) for i in range(0, n, 256)]
    assert packed.low.dtype == (torch.int16 if max(spans) <= 65_535 else torch.int32)


def test_rows_too_long_for_one_number_are_sorted_too():
    codes = np.random.default_rng(0).permutation(40_000)[:6000].reshape(1000, 6)  # 6 levels of 16 bits
    trie = SidTrie(torch.from_numpy(codes), [40_000] * 6)
    order = np.lexsort(codes.T[::-1])
    assert trie.item_of_leaf[:].tolist() == order.tolist()
    assert trie.sorted_codes().tolist() == codes[order].tolist()
    assert trie.item_of(torch.from_numpy(codes)).tolist() == list(range(1000))


def test_items_with_holes_keep_their_indices():
    sids = make_sids(10, [4, 5])
    items = torch.tensor([3, 9, 20, 1, 0, 7, 15, 8, 4, 2])
    trie = SidTrie(torch.from_numpy(sids.codes), [4, 5], items, n_slots=30)
    assert trie.item_of(torch.from_numpy(sids.codes).long()).tolist() == items.tolist()
    assert trie.leaf_of_item(torch.tensor([5, 29])).tolist() == [-1, -1]
    assert trie.node_of_item[1][torch.tensor([5, 3])].tolist() == [
        -1,
        int(trie.child(0, torch.tensor([0]), torch.from_numpy(sids.codes[0, :1]))),
    ]


def test_ten_million_items_take_under_nine_bytes_an_item():
    """A fiftieth of them, at level sizes that give as many nodes an item as four levels of 2,048 do; the codes are uniform, which is
    when prefixes are shared least."""
    sizes = [290, 290, 2048, 2048]
    numbers = np.unique(np.random.default_rng(0).integers(0, int(np.prod(sizes)), 200_000))
    codes = np.stack(np.unravel_index(numbers, sizes), axis=1)
    trie = SidTrie(torch.from_numpy(codes), sizes)
    assert 7 < trie.index_bytes / trie.n_items < 9


def test_a_file_gives_the_same_trie(tmp_path):
    sids = make_sids(90, [4, 5, 6])
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes, torch.randperm(200)[:90], n_slots=200)
    save_trie(trie, tmp_path / "trie")
    opened = open_trie(tmp_path / "trie", verify=True)
    assert (opened.level_sizes, opened.n_nodes, opened.n_slots) == (trie.level_sizes, trie.n_nodes, 200)
    assert torch.equal(opened.item_of_leaf[:], trie.item_of_leaf[:])
    for depth in range(3):
        nodes = torch.arange(trie.n_nodes[depth])
        assert torch.equal(opened.children_mask(depth, nodes), trie.children_mask(depth, nodes))
    save_trie(trie, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "trie").read_bytes()


def test_wrong_files_are_refused(tmp_path):
    sids = make_sids(90, [4, 5, 6])
    path, broken = tmp_path / "trie", tmp_path / "broken"
    save_trie(SidTrie(torch.from_numpy(sids.codes), sids.level_sizes), path)
    content = path.read_bytes()
    with pytest.raises(InputError, match="does not exist"):
        open_trie(broken)
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        broken.write_bytes(content[:length])
        with pytest.raises(InputError, match="cut short"):
            open_trie(broken)
    broken.write_bytes(content.replace(b'\\"version\\": 1', b'\\"version\\": 2'))
    with pytest.raises(InputError, match="has format 2, this version reads 1"):
        open_trie(broken)
    save_file({"weight": torch.zeros(3)}, broken, metadata={"format": "pt"})
    with pytest.raises(InputError, match="is not a trie file"):
        open_trie(broken)
    changed = bytearray(content)
    changed[-3] ^= 1
    broken.write_bytes(changed)
    open_trie(broken)  # the tables are not read before they are needed
    with pytest.raises(InputError, match="its checksum is another"):
        open_trie(broken, verify=True)
    tables = load_file(path)
    tables["code_1"] = tables["code_1"][:-1].clone()
    with safe_open(path, framework="pt") as file:
        save_file(tables, broken, metadata=file.metadata())
    with pytest.raises(InputError, match="do not fit together"):
        open_trie(broken)
