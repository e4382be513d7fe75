"""The trie of the semantic IDs that exist: which codes may follow a prefix, and which item a full path is.

Rows of `codes` are sorted; the nodes of one depth are numbered in lexicographic order of their prefixes. So the children of a
node, and the items below it, are contiguous ranges: the trie holds one pointer per node and one code per child, and no table of next
states. Both are stored narrow (about two bytes each); reading them gives int64.

A trie never changes once it is built: a search that holds one is not disturbed by a new catalogue (see `sidrec.decoding.catalogue`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDE_LEVEL = (
    0.1  # where nodes have more than this share of the level's codes as children, a row of bools is read faster
)
SMALL_TABLE = 1 << 24  # bytes; a level's [nodes, K] table of bools within it is kept too, however narrow the level is
SMALL_CATALOGUE = 1 << 20  # items; up to here every item's nodes are kept in tables, above they are found by a search
BLOCK = 256  # pointers that share one int32 base
LOW_BITS = 0xFFFF
LARGEST_INT16 = 0x7FFF


@dataclass(frozen=True)
class Pointers:
    """Rising integers at about two bytes each: entry i is base[i // BLOCK] + low[i].

    base: int32. low: int16 holding the 16 bits of an unsigned number, or int32 where a block spans more than that.
    """

    base: Tensor
    low: Tensor

    @classmethod
    def pack(cls, values: Tensor) -> Pointers:
        """values: int64 [n], not falling, below 2^31."""
        base = values[torch.arange(0, len(values), BLOCK)]
        low = values - base.repeat_interleave(BLOCK)[: len(values)]
        if int(low.max()) <= LOW_BITS:
            low = torch.where(low > LARGEST_INT16, low - LOW_BITS - 1, low).to(torch.int16)
        return cls(base.to(torch.int32), low.to(torch.int16 if low.dtype == torch.int16 else torch.int32))

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, index: Any) -> Tensor:
        """int64, of the shape of `index` (an integer tensor, a number or a slice)."""
        if not isinstance(index, Tensor):
            return self.values()[index]
        flat = index.flatten()
        return self._add(self.base.index_select(0, flat >> 8), self.low.index_select(0, flat)).view(index.shape)

    def ranges(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The entries at `index` and at `index + 1`, each int64 [R]."""
        both = self[torch.stack([index, index + 1])]
        return both[0], both[1]

    def holder(self, values: Tensor) -> Tensor:
        """int64 [R]: the entry i with entry i ≤ value < entry i + 1, of each of `values` [R]. No two entries may be equal."""
        low = (torch.searchsorted(self.base, values.to(torch.int32), right=True) - 1) * BLOCK
        high = (low + BLOCK).clamp(max=len(self.low))  # the answer is in low … high - 1
        for _ in range(BLOCK.bit_length()):
            middle = (low + high) >> 1
            is_after = self[middle.clamp(max=len(self.low) - 1)] > values
            low, high = torch.where(is_after | (high - low <= 1), low, middle), torch.where(is_after, middle, high)
        return low

    def values(self) -> Tensor:
        """All of them, int64 [n]."""
        return self._add(self.base.repeat_interleave(BLOCK)[: len(self.low)], self.low)

    def to(self, device: torch.device | str) -> Pointers:
        return Pointers(self.base.to(device), self.low.to(device))

    def _add(self, base: Tensor, low: Tensor) -> Tensor:
        low = low.long()
        return base + (low & LOW_BITS if self.low.dtype == torch.int16 else low)


@dataclass(frozen=True)
class Codes:
    """Small numbers stored as int16 or int32 [n] and read as int64."""

    stored: Tensor

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Any) -> Tensor:
        """int64, of the shape of `index` (an integer tensor, a number or a slice)."""
        if not isinstance(index, Tensor):
            return self.stored[index].long()
        return self.stored.index_select(0, index.flatten()).long().view(index.shape)


@dataclass(frozen=True)
class Leaves:
    """The leaves below the nodes of one depth, found by following the pointers of the depths below it."""

    first_child: list[Pointers]
    n_nodes: int
    device: torch.device

    def __getitem__(self, index: Any) -> Tensor:
        """int64: the first leaf of each node of `index`; of the number of nodes: the number of leaves."""
        if not isinstance(index, Tensor):
            index = torch.arange(self.n_nodes + 1, device=self.device)[index]
        for pointers in self.first_child:
            index = pointers[index]
        return index


@dataclass(frozen=True)
class Ancestors:
    """The node of each item at one depth."""

    trie: SidTrie
    depth: int

    def __getitem__(self, items: Any) -> Tensor:
        """int64, of the shape of `items` (an integer tensor, a number or a slice); -1 for an item that has no leaf."""
        return self.trie.ancestors(self.depth, items)


class SidTrie:
    """Trie over unique SIDs.

    codes: integers [N, L], unique rows, codes[:, l] in [0, level_sizes[l]). items: integers [N], the item of each row; None: its
    row number. n_slots: item indices are below it; None: one more than the largest (an item that was removed leaves a hole).

    n_nodes[d]: the number of distinct prefixes of length d (n_nodes[0] = 1, the root; n_nodes[L] = N leaves).
    first_child[d][s], s ≤ n_nodes[d]: the children of node s at depth d are first_child[d][s] … first_child[d][s + 1] - 1.
    code[d][c], c < n_nodes[d + 1]: the code by which a node of depth d + 1 is reached.
    first_leaf[d][s]: the same ranges as first_child, counted in leaves. item_of_leaf[i], i < N. leaf_of_item(items).
    node_of_item[d][i]: the ancestor of item i at depth d.
    All of them are indexed by integer tensors and give int64.
    """

    def __init__(
        self, codes: Tensor, level_sizes: list[int], items: Tensor | None = None, n_slots: int | None = None
    ) -> None:
        n_items, n_levels = codes.shape
        assert n_levels == len(level_sizes), f"codes have {n_levels} levels, level_sizes {len(level_sizes)}"
        assert n_items > 0, "a trie needs an item"
        assert bool((codes >= 0).all()), "codes are 0-based"
        assert bool((codes < torch.tensor(level_sizes)).all()), "a code is outside its level"
        order = _lexicographic_order(codes, level_sizes)
        rows = _narrow(codes, max(level_sizes))[order]
        items = order if items is None else items[order]
        self._set_tables(list(level_sizes), *_tables_of_sorted(rows), items.to(torch.int32), n_slots)

    @classmethod
    def of_sorted(cls, rows: Tensor, level_sizes: list[int], items: Tensor, n_slots: int) -> SidTrie:
        """The trie of rows [N, L] that are in lexicographic order already; items: [N], the item of each."""
        return cls.of_tables(level_sizes, *_tables_of_sorted(rows), items.to(torch.int32), n_slots)

    @classmethod
    def of_tables(
        cls, level_sizes: list[int], first_child: list[Pointers], code: list[Tensor], items: Tensor, n_slots: int
    ) -> SidTrie:
        """The trie of tables made before; items: int32 [N], the item of each leaf."""
        trie = cls.__new__(cls)
        trie._set_tables(list(level_sizes), first_child, code, items, n_slots)
        return trie

    def _set_tables(
        self,
        level_sizes: list[int],
        first_child: list[Pointers],
        code: list[Tensor],
        items: Tensor,
        n_slots: int | None,
    ) -> None:
        self.level_sizes = level_sizes
        self.first_child = first_child
        self.code = [Codes(stored) for stored in code]
        self.item_of_leaf = Codes(items)
        self.n_nodes = [1] + [len(stored) for stored in code]
        self.n_slots = int(items.max()) + 1 if n_slots is None else n_slots
        self.first_leaf = [Leaves(first_child[d:], self.n_nodes[d], items.device) for d in range(self.n_levels + 1)]
        # tables made when they are first asked for; two threads that make one at once make the same
        self._mask_tables: list[Tensor | None] = [None] * self.n_levels
        self._leaf_of_item: Tensor | None = None
        self._node_tables: dict[int, Tensor] = {}
        self._widest: dict[int, int] = {}

    @property
    def n_items(self) -> int:
        return self.n_nodes[-1]

    @property
    def n_levels(self) -> int:
        return len(self.level_sizes)

    @property
    def node_of_item(self) -> list[Ancestors]:
        return [Ancestors(self, depth) for depth in range(self.n_levels + 1)]

    @property
    def device(self) -> torch.device:
        return self.item_of_leaf.stored.device

    @property
    def index_bytes(self) -> int:
        """Bytes of the pointers, the codes and the tables of wide levels; without the item map."""
        tensors = [tensor for pointers in self.first_child for tensor in (pointers.base, pointers.low)]
        tensors += [codes.stored for codes in self.code]
        tables = sum(self.n_nodes[d] * self.level_sizes[d] for d in range(self.n_levels) if self.has_mask_table(d))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + tables

    def to(self, device: torch.device | str) -> SidTrie:
        """This trie with its tables on `device`; this very one when they are there."""
        if torch.device(device) == self.device:
            return self
        pointers = [table.to(device) for table in self.first_child]
        code = [codes.stored.to(device) for codes in self.code]
        return self.of_tables(self.level_sizes, pointers, code, self.item_of_leaf.stored.to(device), self.n_slots)

    def has_mask_table(self, depth: int) -> bool:
        """Whether the level after `depth` codes is wide, or small, enough for a table of bools."""
        size = self.n_nodes[depth] * self.level_sizes[depth]
        return size <= SMALL_TABLE or self.is_wide(depth)

    def is_wide(self, depth: int) -> bool:
        return self.n_nodes[depth + 1] > WIDE_LEVEL * self.n_nodes[depth] * self.level_sizes[depth]

    def widest(self, depth: int) -> int:
        """The most children that a node at `depth` has."""
        if depth not in self._widest:
            self._widest[depth] = int(self.first_child[depth][:].diff().max())
        return self._widest[depth]

    def children_mask(self, depth: int, nodes: Tensor) -> Tensor:
        """bool [R, K_depth]: the codes that exist under each of `nodes` (int64 [R], numbered within `depth`)."""
        assert nodes.ndim == 1
        if not self.has_mask_table(depth):
            return self.mask_of(depth, *self.children(depth, nodes), len(nodes))
        table = self._mask_tables[depth]
        if table is None:
            everything = torch.arange(self.n_nodes[depth], device=self.device)
            table = self._mask_tables[depth] = self.mask_of(depth, *self.children(depth, everything), len(everything))
        return table.index_select(0, nodes)

    def children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """All children of `nodes` (int64 [R]), one after another: (0…R-1, which node's; the child), each int64 [total]."""
        first, last = self.first_child[depth].ranges(nodes)
        counts = last - first
        rows = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        shift = first - (counts.cumsum(0) - counts)
        return rows, torch.arange(len(rows), device=nodes.device).add_(shift.index_select(0, rows))

    def padded_children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The children of `nodes` (int64 [R]) and their codes, both int64 [R, M], M the most that any node of the depth has; and which of
        them exist, bool [R, M]: what fills a row up is some other node."""
        first, end = self.first_child[depth].ranges(nodes)
        child = first[:, None] + torch.arange(self.widest(depth), device=nodes.device)
        exists = child < end[:, None]
        child.clamp_(max=self.n_nodes[depth + 1] - 1)
        return child, self.code[depth][child], exists

    def mask_of(self, depth: int, rows: Tensor, children: Tensor, n_rows: int) -> Tensor:
        """bool [n_rows, K_depth], true at each child's row and code. rows, children: int64 [total], as `children` gives them."""
        size = self.level_sizes[depth]
        mask = torch.zeros(n_rows * size, dtype=torch.bool, device=rows.device)
        codes = self.code[depth].stored.index_select(0, children)
        return mask.index_fill_(0, (rows * size).add_(codes), True).view(n_rows, size)

    def lower_bound(self, depth: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """int64 [R]: the first child of each node whose code is not below `codes`; the end of its children when there is none."""
        low, high = self.first_child[depth].ranges(nodes)
        for _ in range(self.level_sizes[depth].bit_length()):
            middle = (low + high) >> 1
            is_below = (low < high) & (self.code[depth][middle.clamp(max=self.n_nodes[depth + 1] - 1)] < codes)
            low, high = torch.where(is_below, middle + 1, low), torch.where(is_below, high, middle)
        return low

    def find(self, depth: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """int64 [R]: the node at depth + 1 reached from `nodes` [R] by `codes` [R]; -1 where there is none, or a node is -1."""
        child = self.lower_bound(depth, nodes.clamp(min=0), codes)
        existing = child.clamp(max=self.n_nodes[depth + 1] - 1)
        inside = child < self.first_child[depth][nodes.clamp(min=0) + 1]
        return torch.where(inside & (nodes >= 0) & (self.code[depth][existing] == codes), child, -1)

    def child(self, depth: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """int64 [R]: the node at depth + 1 reached from `nodes` [R] by `codes` [R]. Every one must exist."""
        children = self.find(depth, nodes, codes)
        assert bool((children >= 0).all()), "no item has this prefix"
        return children

    def descend(self, codes: Tensor) -> Tensor:
        """int64 [R]: the node at depth D of each prefix (int64 [R, D]); -1 where no item has it."""
        assert codes.ndim == 2
        nodes = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        for depth in range(codes.shape[1]):
            nodes = self.find(depth, nodes, codes[:, depth])
        return nodes

    def item_of(self, codes: Tensor) -> Tensor:
        """int64 [R]: the item of each full SID (int64 [R, L]). Every one must exist."""
        leaves = self.descend(codes)
        assert bool((leaves >= 0).all()), "no item has this prefix"
        return self.item_of_leaf[leaves]

    def leaf_of_item(self, items: Tensor) -> Tensor:
        """int64, of the shape of `items` (each in 0 … n_slots - 1): the item's leaf, -1 where it has none."""
        if self._leaf_of_item is None:
            table = torch.full((self.n_slots,), -1, dtype=torch.int32, device=self.device)
            table[self.item_of_leaf.stored.long()] = torch.arange(self.n_items, dtype=torch.int32, device=self.device)
            self._leaf_of_item = table
        return self._leaf_of_item[items].long()

    def ancestors(self, depth: int, items: Any) -> Tensor:
        """int64, of the shape of `items` (integers, or a slice): each item's node at `depth`; -1 where it has no leaf."""
        if self.n_slots > SMALL_CATALOGUE:
            leaves = self.leaf_of_item(items)
            nodes = leaves.clamp(min=0).flatten()
            for below in reversed(range(depth, self.n_levels)):
                nodes = self.parent(below, nodes)
            return torch.where(leaves >= 0, nodes.view(leaves.shape), -1)
        if depth not in self._node_tables:
            leaves = self.first_leaf[depth][:]
            nodes = torch.arange(self.n_nodes[depth], dtype=torch.int32, device=self.device)
            table = torch.full((self.n_slots,), -1, dtype=torch.int32, device=self.device)
            table[self.item_of_leaf.stored.long()] = nodes.repeat_interleave(leaves.diff())
            self._node_tables[depth] = table
        return self._node_tables[depth][items].long()

    def parent(self, depth: int, children: Tensor) -> Tensor:
        """int64 [R]: the node at `depth` above each of `children` (int64 [R], nodes at depth + 1)."""
        return self.first_child[depth].holder(children)

    def sorted_codes(self) -> Tensor:
        """int16 or int32 [N, L]: the SID of every leaf, in order."""
        columns = []
        for depth in range(self.n_levels):
            leaves = self.first_leaf[depth + 1][:]
            columns.append(self.code[depth].stored.repeat_interleave(leaves.diff()))
        return torch.stack(columns, dim=1)


def _narrow(codes: Tensor, largest_size: int) -> Tensor:
    return codes.to(torch.int16 if largest_size <= LARGEST_INT16 + 1 else torch.int32)


def _lexicographic_order(codes: Tensor, level_sizes: list[int]) -> Tensor:
    """int64 [N]: row numbers in lexicographic order of the rows; of equal rows the first stays first."""
    bits = [(size - 1).bit_length() for size in level_sizes]
    if sum(bits) < 64:  # one number a row
        key = torch.zeros(len(codes), dtype=torch.long)
        for level, width in enumerate(bits):
            key = (key << width).bitwise_or_(codes[:, level].long())
        return torch.sort(key, stable=True).indices
    order = torch.arange(len(codes))
    for level in reversed(range(codes.shape[1])):
        order = order[torch.argsort(codes[order, level], stable=True)]
    return order


def _tables_of_sorted(rows: Tensor) -> tuple[list[Pointers], list[Tensor]]:
    """Pointers and codes of every depth, from rows [N, L] in lexicographic order."""
    n_items = len(rows)
    first_child, code = [], []
    is_new = torch.zeros(n_items, dtype=torch.bool)  # whether a node of the depth begins at this row
    is_new[0] = True
    for level in range(rows.shape[1]):
        is_new_child = is_new.clone()
        is_new_child[1:] |= rows[1:, level] != rows[:-1, level]
        begins = is_new_child.nonzero().flatten()
        first_child.append(Pointers.pack(torch.cat([is_new[begins].nonzero().flatten(), torch.tensor([len(begins)])])))
        code.append(rows[:, level][begins])
        is_new = is_new_child
    assert bool(is_new.all()), "two items share a semantic ID"
    return first_child, code
