"""A catalogue that changes while requests run: items come and go, the model stays.

Tries never change. A change builds the next trie from the old one's sorted rows, by a merge, and then swaps one reference; a request
takes the snapshot of the moment when it begins and keeps it to its end. So requests wait for nothing, and see either all of a change
or nothing of it. An item keeps its index for ever: a removed one leaves a hole.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.eligibility import AllowList
from sidrec.decoding.item_indices import item_indices
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError


@dataclass(frozen=True)
class Snapshot:
    """The catalogue at one moment: its trie, and the allow-lists of that trie by name.

    codes: int16 or int32 [n_slots, L], on the CPU, the SID of every item that is or was there, by which histories are rendered: an item
    that was removed keeps it; -1 in the rows of items that never were.
    """

    trie: SidTrie
    codes: Tensor
    allow_lists: Mapping[str, AllowList]

    def never_held(self, items: Tensor) -> Tensor:
        """The ones of `items` (int64 [R]) that the catalogue does not hold and never held."""
        outside = (items < 0) | (items >= len(self.codes))
        return items[outside | (self.codes[items.masked_fill(outside, 0), 0] < 0)]

    def allow_list(self, name: str) -> AllowList:
        """Raises InputError when there is none of that name."""
        if name not in self.allow_lists:
            raise InputError(f"there is no allow-list {name!r}; make it first with `set_allow_list`.")
        return self.allow_lists[name]


class LiveCatalogue:
    """The current snapshot, and the ways to change it.

    snapshot: what a request takes, once, and searches in. Any number of threads may read it and change it; changes wait for each
    other. Allow-lists are carried over to every new snapshot.
    """

    def __init__(self, trie: SidTrie, codes: Tensor | None = None) -> None:
        """codes: integers [n_slots, L], the SIDs of the trie's items and, in the rows of its holes, of those that were there before; None:
        nothing ever was in a hole."""
        by_item = _codes_by_item(trie)
        assert codes is None or codes.shape == by_item.shape, (
            f"codes {tuple(codes.shape)}, a trie of {trie.n_slots} items"
        )
        self.snapshot = Snapshot(trie, by_item if codes is None else codes.to("cpu", by_item.dtype), {})
        self._allowed: dict[str, Tensor] = {}  # bool, by item index; what lies beyond its end is not allowed
        self._changing = threading.Lock()

    def insert(self, items: np.ndarray, codes: np.ndarray, allow_lists: tuple[str, ...] = ()) -> None:
        """Add items under semantic IDs that no item has.

        items: int64 [M], new indices or those of removed items. codes: integers [M, L]. allow_lists: names of the lists that the new
        items join. Raises InputError when an item or a semantic ID is there already, twice in the call, or out of range.
        """
        items = item_indices(items, "items")
        with self._changing:
            for name in allow_lists:
                self.snapshot.allow_list(name)
            trie = with_items(self.snapshot.trie, items, codes)
            codes_after = _with_rows(self.snapshot.codes, trie.n_slots)
            codes_after[torch.as_tensor(items).long()] = torch.as_tensor(codes).to(codes_after.dtype)
            lists = {name: _with_rows(allowed, trie.n_slots) for name, allowed in self._allowed.items()}
            for name, allowed in lists.items():
                allowed[torch.as_tensor(items).long()] = name in allow_lists
            self._swap(trie, codes_after, lists)

    def remove(self, items: np.ndarray) -> None:
        """Take items (int64 [M]) out. Raises InputError when one is not in the catalogue, or none would be left."""
        items = item_indices(items, "items")
        with self._changing:
            self._swap(without_items(self.snapshot.trie, items), self.snapshot.codes, self._allowed)

    def set_allow_list(self, name: str, items: np.ndarray) -> None:
        """Make or replace an allow-list: the items (int64 [M]) that it allows."""
        with self._changing:
            now, trie, items = self.snapshot, self.snapshot.trie, item_indices(items, "items")
            _refuse_outside(items, trie)
            allowed = torch.zeros(trie.n_slots, dtype=torch.bool)
            allowed[torch.as_tensor(items)] = True
            self._allowed = self._allowed | {name: allowed}
            self.snapshot = Snapshot(trie, now.codes, {**now.allow_lists, name: AllowList(trie, allowed)})

    def _swap(self, trie: SidTrie, codes: Tensor, allowed: dict[str, Tensor]) -> None:
        self._allowed = allowed
        self.snapshot = Snapshot(trie, codes, {name: AllowList(trie, items) for name, items in allowed.items()})


def with_items(trie: SidTrie, items: np.ndarray, codes: np.ndarray) -> SidTrie:
    """The trie with more items: the old leaves and the new rows, merged. Raises InputError as `LiveCatalogue.insert` does."""
    new_items, new_codes = torch.as_tensor(items).long(), torch.as_tensor(codes).long()
    assert new_codes.shape == (len(new_items), trie.n_levels), f"codes {tuple(new_codes.shape)}, {len(new_items)} items"
    if len(new_items) == 0:
        return trie
    device, trie = trie.device, trie.to("cpu")
    new_codes, new_items = new_codes.to("cpu"), new_items.to("cpu")
    _refuse_bad_items(trie, new_items)
    _refuse_bad_codes(trie, new_items, new_codes)
    order = torch.from_numpy(np.lexsort(new_codes.numpy().T[::-1]))
    new_codes, new_items = new_codes[order], new_items[order]
    repeated = (new_codes[1:] == new_codes[:-1]).all(1).nonzero().flatten()
    if len(repeated):
        i = int(repeated[0])
        raise InputError(
            f"items {int(new_items[i])} and {int(new_items[i + 1])} have the same semantic ID; give one another code."
        )

    inserted = _insertion_points(trie, new_items, new_codes) + torch.arange(
        len(order)
    )  # the new rows' numbers among all
    is_old = torch.ones(trie.n_items + len(order), dtype=torch.bool)
    is_old[inserted] = False
    old_rows = trie.sorted_codes()
    rows = torch.empty((len(is_old), trie.n_levels), dtype=old_rows.dtype)
    rows[is_old], rows[inserted] = old_rows, new_codes.to(old_rows.dtype)
    leaves = torch.empty(len(is_old), dtype=torch.int32)
    leaves[is_old], leaves[inserted] = trie.item_of_leaf.stored, new_items.to(torch.int32)
    n_slots = max(trie.n_slots, int(new_items.max()) + 1)
    return SidTrie.of_sorted(rows, trie.level_sizes, leaves, n_slots).to(device)


def without_items(trie: SidTrie, items: np.ndarray) -> SidTrie:
    """The trie without some items. Raises InputError when one of them is not in it, or none would be left."""
    gone = torch.unique(torch.as_tensor(items).long())
    if len(gone) == 0:
        return trie
    device, trie = trie.device, trie.to("cpu")
    _refuse_outside(gone.numpy(), trie)
    leaves = trie.leaf_of_item(gone)
    if bool((leaves < 0).any()):
        raise InputError(f"item {int(gone[leaves < 0][0])} is not in the catalogue, so it cannot be removed.")
    if len(gone) == trie.n_items:
        raise InputError(f"all {trie.n_items} items would be removed; leave at least one in the catalogue.")
    is_kept = torch.ones(trie.n_items, dtype=torch.bool)
    is_kept[leaves] = False
    rows, remaining = trie.sorted_codes()[is_kept], trie.item_of_leaf.stored[is_kept]
    return SidTrie.of_sorted(rows, trie.level_sizes, remaining, trie.n_slots).to(device)


def _insertion_points(trie: SidTrie, items: Tensor, codes: Tensor) -> Tensor:
    """int64 [M]: the number of leaves that come before each SID, int64 [M, L]. Raises InputError when an item has one of them."""
    node = torch.zeros(len(codes), dtype=torch.long)
    n_before = torch.full_like(node, -1)
    for depth in range(trie.n_levels):
        child = trie.find(depth, node, codes[:, depth])
        leaves_here = (child < 0) & (n_before < 0)
        first_larger = trie.lower_bound(depth, node.clamp(min=0), codes[:, depth])
        n_before = torch.where(leaves_here, trie.first_leaf[depth + 1][first_larger], n_before)
        node = child
    if bool((n_before < 0).any()):
        i = int((n_before < 0).nonzero()[0, 0])
        raise InputError(
            f"item {int(items[i])} has the semantic ID of item {int(trie.item_of_leaf[node[i, None]])}; give it another."
        )
    return n_before


def _refuse_bad_items(trie: SidTrie, items: Tensor) -> None:
    if bool((items < 0).any()) or int(items.max()) > np.iinfo(np.int32).max - 1:
        raise InputError("an item index is negative or above 2,147,483,646; item indices count from 0.")
    unique, counts = torch.unique(items, return_counts=True)
    if len(unique) < len(items):
        raise InputError(f"item {int(unique[counts > 1][0])} is given twice; insert every item once.")
    known = unique[unique < trie.n_slots]
    present = known[trie.leaf_of_item(known) >= 0]
    if len(present):
        raise InputError(f"item {int(present[0])} is in the catalogue already; remove it first.")


def _refuse_bad_codes(trie: SidTrie, items: Tensor, codes: Tensor) -> None:
    outside = (codes < 0) | (codes >= torch.tensor(trie.level_sizes))
    if bool(outside.any()):
        row, level = outside.nonzero()[0].tolist()
        raise InputError(
            f"item {int(items[row])} has code {int(codes[row, level])} at level {level}, which has {trie.level_sizes[level]} codes."
        )


def _refuse_outside(items: np.ndarray, trie: SidTrie) -> None:
    wrong = items[(items < 0) | (items >= trie.n_slots)]
    if len(wrong):
        raise InputError(f"item {wrong[0]} is not in the catalogue, whose item indices are below {trie.n_slots}.")


def _codes_by_item(trie: SidTrie) -> Tensor:
    """int16 or int32 [n_slots, L]: the SID of every item of the trie, -1 in the rows of holes."""
    trie = trie.to("cpu")
    rows = trie.sorted_codes()
    codes = rows.new_full((trie.n_slots, trie.n_levels), -1)
    codes[trie.item_of_leaf.stored.long()] = rows
    return codes


def _with_rows(table: Tensor, n: int) -> Tensor:
    """A copy with n rows, the new ones false, or -1."""
    grown = table.new_full((n, *table.shape[1:]), False if table.dtype == torch.bool else -1)
    grown[: len(table)] = table
    return grown
