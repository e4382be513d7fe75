"""Which items may be recommended to whom: lists of allowed items, shared by requests, and each request's own exclusions.

Both act inside the search, level by level: a code is open where some item below it is eligible, so that k results are k eligible
items and no beam ends in a place without one. What a request costs depends on its exclusions, not on the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.trie import Pointers, SidTrie


class AllowList:
    """Items of one trie that may be recommended (in stock, of a category, of a tenant): at every depth, one bit a node.

    trie: the trie that the list is for. allowed: bool [n_slots], by item index. A list takes about half a byte per item.
    """

    def __init__(self, trie: SidTrie, allowed: Tensor) -> None:
        assert allowed.shape == (trie.n_slots,), f"allowed {tuple(allowed.shape)} for item indices below {trie.n_slots}"
        self.trie = trie
        has_allowed = allowed.to(trie.device)[trie.item_of_leaf[:]]
        self.n_allowed = int(has_allowed.sum())
        self._bits: list[Tensor] = []  # of the nodes at depth 1, 2, …, L
        for depth in reversed(range(trie.n_levels)):
            bits = _pack_bits(has_allowed)
            if depth + 1 == trie.n_levels:
                counts = _BITS_OF_BYTE.to(trie.device)[bits.long()].cumsum(0)
                self._before = Pointers.pack(torch.nn.functional.pad(counts, (1, 0)))
            self._bits.insert(0, bits)
            counts = torch.nn.functional.pad(has_allowed.cumsum(0, dtype=torch.int32), (1, 0))
            has_allowed = counts[trie.first_child[depth].values()].diff() > 0

    def __and__(self, other: AllowList) -> AllowList:
        """The items on both lists."""
        assert other.trie is self.trie, "the two lists are of different tries"
        both = self._bits[-1] & other._bits[-1]
        allowed = torch.zeros(self.trie.n_slots, dtype=torch.bool, device=both.device)
        allowed[self.trie.item_of_leaf[:]] = _unpack_bits(both, self.trie.n_items)
        return AllowList(self.trie, allowed)

    def leaves(self) -> Tensor:
        """bool [N]: whether the item of each leaf is allowed."""
        return self.nodes(self.trie.n_levels)

    def nodes(self, depth: int) -> Tensor:
        """bool [n]: whether an allowed item is below each node at `depth`, 1 or more."""
        return _unpack_bits(self._bits[depth - 1], self.trie.n_nodes[depth])

    def children_mask(self, depth: int, nodes: Tensor) -> Tensor:
        """bool [R, K_depth]: the codes under each of `nodes` (int64 [R]) that lead to an allowed item."""
        rows, children = self.trie.children(depth, nodes)
        has_allowed = self.contains(depth + 1, children)
        return self.trie.mask_of(depth, rows[has_allowed], children[has_allowed], len(nodes))

    def contains(self, depth: int, nodes: Tensor) -> Tensor:
        """bool, of the shape of `nodes` (int64, numbered within `depth` ≥ 1): whether an allowed item is below each."""
        bits = self._bits[depth - 1].index_select(0, (nodes >> 3).flatten()).view(nodes.shape)
        return ((bits >> (nodes & 7)) & 1).bool()

    def count_before(self, leaves: Tensor) -> Tensor:
        """int64 [R]: the number of allowed items among the leaves before each of `leaves` (0 … n_items)."""
        byte = self._bits[-1][(leaves >> 3).clamp(max=len(self._bits[-1]) - 1)].long()
        return self._before[leaves >> 3] + _BITS_OF_BYTE.to(leaves.device)[byte & ((1 << (leaves & 7)) - 1)]


@dataclass(frozen=True)
class _Closed:
    """Children in which a request excludes all that was allowed, int64 [T] each: whose request, below which node, by which code,
    and as which of the node's children (0, 1, …)."""

    request: Tensor
    parent: Tensor
    code: Tensor
    child_number: Tensor


class Eligibility:
    """What each of a batch of requests may be recommended.

    excluded: of each request, item indices (integers, in any order, repeated or not; those without a leaf change nothing); None:
    nothing is excluded. allowed: one list for all requests, or one (or None) a request; None: every item.
    """

    def __init__(
        self,
        trie: SidTrie,
        n_requests: int,
        excluded: Sequence[np.ndarray] | None = None,
        allowed: AllowList | Sequence[AllowList | None] | None = None,
    ) -> None:
        lists = list(allowed) if isinstance(allowed, Sequence) else [allowed] * n_requests
        assert len(lists) == n_requests, f"{len(lists)} allow-lists for {n_requests} requests"
        assert excluded is None or len(excluded) == n_requests, "one array of exclusions a request"
        assert all(one is None or one.trie is trie for one in lists), "an allow-list of another trie"
        self.trie = trie
        self.n_requests = n_requests
        self._lists = [
            (one, torch.tensor([row for row in range(n_requests) if lists[row] is one], device=trie.device))
            for one in dict.fromkeys(lists)
            if one is not None
        ]
        counts = [trie.n_items if one is None else one.n_allowed for one in lists]
        self.n_eligible = torch.tensor(
            counts, device=trie.device
        )  # int64 [B]: the items that each request can be given
        self._closed = None if excluded is None else self._close(excluded)

    @classmethod
    def of_mask(cls, trie: SidTrie, eligible: Tensor) -> Eligibility:
        """From bool [B, n_slots]: builds one allow-list per row, so it suits few requests or small catalogues."""
        return cls(trie, len(eligible), allowed=[AllowList(trie, row) for row in eligible])

    def open_codes(self, depth: int, nodes: Tensor, mask: Tensor) -> Tensor:
        """bool [B, W, K_depth]: the codes of `mask` that lead to an item which the request may be given.

        nodes: int64 [B, W], numbered within `depth`. mask: bool [B, W, K_depth], trie.children_mask of them; it is left as it is.
        """
        assert mask.shape == (*nodes.shape, self.trie.level_sizes[depth])
        is_open = mask.clone()
        for allowed, requests in self._lists:
            theirs = allowed.children_mask(depth, nodes[requests].flatten())
            is_open[requests] &= theirs.view(len(requests), *mask.shape[1:])
        if self._closed is not None:
            closed, entry, column = self._closed[depth], *self._find_closed(depth, nodes)
            is_open[closed.request[entry], column, closed.code[entry]] = False
        return is_open

    def open_children(self, depth: int, nodes: Tensor, children: Tensor) -> Tensor:
        """bool [B, W, M]: whether the request may be given an item below each child of its nodes.

        nodes: int64 [B, W], numbered within `depth`. children: int64 [B, W, M], the children of each in order, padded at will; what
        comes back for padding means nothing. M may not be below the children of any node of `nodes`.
        """
        assert children.shape[:2] == nodes.shape
        is_open = torch.ones(children.shape, dtype=torch.bool, device=nodes.device)
        for allowed, requests in self._lists:
            is_open[requests] = allowed.contains(depth + 1, children[requests])
        if self._closed is not None:
            closed, entry, column = self._closed[depth], *self._find_closed(depth, nodes)
            is_open[closed.request[entry], column, closed.child_number[entry]] = False
        return is_open

    def contains(self, leaves: Tensor) -> Tensor:
        """bool [B, C]: whether each request may be given the items at its `leaves`, int64 [B, C]."""
        is_open = torch.ones(leaves.shape, dtype=torch.bool, device=leaves.device)
        for allowed, requests in self._lists:
            is_open[requests] = allowed.contains(self.trie.n_levels, leaves[requests])
        if self._closed is not None:
            request, closed = self._closed_nodes(self.trie.n_levels)
            shut = torch.isin(
                torch.arange(len(leaves), device=leaves.device)[:, None] * self.trie.n_items + leaves,
                request * self.trie.n_items + closed,
            )
            is_open &= ~shut
        return is_open

    def leaves(self) -> Tensor:
        """bool [B, N]: whether each request may be given the item of each leaf."""
        is_open = torch.ones(self.n_requests, self.trie.n_items, dtype=torch.bool, device=self.trie.device)
        for allowed, requests in self._lists:
            is_open[requests] = allowed.leaves()
        if self._closed is not None:
            is_open[self._closed_nodes(self.trie.n_levels)] = False
        return is_open

    def close(self, scores: Tensor, depth: int | None = None) -> Tensor:
        """`scores`, float [B, n] by node at `depth` (None: by leaf), with -inf written to it where a request may be given no item below."""
        depth = self.trie.n_levels if depth is None else depth
        assert scores.shape == (self.n_requests, self.trie.n_nodes[depth]), tuple(scores.shape)
        for allowed, requests in self._lists:
            scores[requests] = scores[requests].masked_fill(~allowed.nodes(depth), -torch.inf)
        if self._closed is not None:
            scores[self._closed_nodes(depth)] = -torch.inf
        return scores

    def _closed_nodes(self, depth: int) -> tuple[Tensor, Tensor]:
        """Requests and the nodes at `depth` that each excludes with all below, int64 [T]."""
        assert self._closed is not None
        closed = self._closed[depth - 1]
        return closed.request, self.trie.first_child[depth - 1][closed.parent] + closed.child_number

    def _find_closed(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Entries of `_closed` whose node is among its request's `nodes` [B, W], and the column it stands in.

        A node may stand in several columns (a search pads with nodes of beams that do not exist): each of them is found.
        """
        assert self._closed is not None
        assert len(nodes) == self.n_requests
        closed = self._closed[depth]
        entry, column = (nodes[closed.request] == closed.parent[:, None]).nonzero(as_tuple=True)
        return entry, column

    def _close(self, excluded: Sequence[np.ndarray]) -> list[_Closed]:
        """For every depth, the children to close; also takes the exclusions off `n_eligible`."""
        trie, device = self.trie, self.trie.device
        items = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in excluded])).to(device)
        lengths = torch.tensor([len(row) for row in excluded], device=device)
        request = torch.arange(self.n_requests, device=device).repeat_interleave(lengths)
        known = (items >= 0) & (items < trie.n_slots)
        leaf, request = trie.leaf_of_item(items[known]), request[known]
        key = torch.unique((request * trie.n_items + leaf)[leaf >= 0])  # in order of request, then leaf
        request, node = key // trie.n_items, key % trie.n_items
        is_allowed = torch.ones_like(node, dtype=torch.bool)
        for allowed, requests in self._lists:
            is_allowed &= allowed.contains(trie.n_levels, node) | ~torch.isin(request, requests)
        request, node = request[is_allowed], node[is_allowed]
        self.n_eligible -= torch.bincount(request, minlength=self.n_requests)

        count = torch.ones_like(node)  # excluded leaves below each node
        closed: list[_Closed] = []
        for depth in reversed(range(trie.n_levels)):
            is_closed = count == self._allowed_below(depth + 1, node, request)
            parent = trie.parent(depth, node)
            shut, above = node[is_closed], parent[is_closed]
            child_number = shut - trie.first_child[depth][above]
            closed.insert(0, _Closed(request[is_closed], above, trie.code[depth][shut], child_number))
            key, position = torch.unique_consecutive(request * trie.n_nodes[depth] + parent, return_inverse=True)
            count = torch.zeros_like(key).index_add_(0, position, count)
            request, node = key // trie.n_nodes[depth], key % trie.n_nodes[depth]
        return closed

    def _allowed_below(self, depth: int, node: Tensor, request: Tensor) -> Tensor:
        """int64 [T]: the number of allowed leaves below each node."""
        first, end = self.trie.first_leaf[depth][node], self.trie.first_leaf[depth][node + 1]
        below = end - first
        for allowed, requests in self._lists:
            theirs = torch.isin(request, requests)
            below = torch.where(theirs, allowed.count_before(end) - allowed.count_before(first), below)
        return below


_BITS_OF_BYTE = torch.tensor([byte.bit_count() for byte in range(256)])


def _pack_bits(flags: Tensor) -> Tensor:
    """uint8 [ceil(n / 8)] of bool [n], the first flag in the lowest bit."""
    return torch.from_numpy(np.packbits(flags.cpu().numpy(), bitorder="little")).to(flags.device)


def _unpack_bits(bits: Tensor, n: int) -> Tensor:
    """bool [n]: what `_pack_bits` packed."""
    flags = np.unpackbits(bits.cpu().numpy(), count=n, bitorder="little")
    return torch.from_numpy(flags).bool().to(bits.device)
