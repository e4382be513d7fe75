"""The trie of the semantic IDs that exist: which codes may follow a prefix, and which item a full path is.

Rows of `codes` are sorted; the nodes of one depth are numbered in lexicographic order of their prefixes. So the children of a
node, and the items below it, are contiguous ranges, and no table of next states is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

DENSE_MASK_LIMIT = (
    1 << 26
)  # bytes of one level's [nodes, K] bool table; above it, masks are built for the asked nodes only


class SidTrie:
    """Trie over unique SIDs.

    codes: integers [N, L], unique rows, codes[:, l] in [0, level_sizes[l]).

    n_nodes[d]: the number of distinct prefixes of length d (n_nodes[0] = 1, the root; n_nodes[L] = N leaves).
    first_child[d]: int64 [n_nodes[d] + 1]; the children of node s at depth d are first_child[d][s] … first_child[d][s + 1] - 1.
    code[d]: int64 [n_nodes[d + 1]]; the code by which each node of depth d + 1 is reached.
    first_leaf[d]: int64 [n_nodes[d] + 1]; the same ranges, counted in leaves.
    node_of_item[d]: int64 [N]; the ancestor of item i at depth d. item_of_leaf: int64 [N].
    """

    def __init__(self, codes: Tensor, level_sizes: list[int]) -> None:
        n_items, n_levels = codes.shape
        assert n_levels == len(level_sizes), f"codes have {n_levels} levels, level_sizes {len(level_sizes)}"
        assert bool((codes >= 0).all()), "codes are 0-based"
        assert bool((codes < torch.tensor(level_sizes)).all()), "a code is outside its level"
        self.level_sizes = list(level_sizes)
        self.item_of_leaf = _lexicographic_order(codes.long())
        rows = codes.long()[self.item_of_leaf]

        node_of_leaf = torch.zeros(n_items, dtype=torch.long)
        self.n_nodes = [1]
        self.first_child: list[Tensor] = []
        self.code: list[Tensor] = []
        self.first_leaf = [torch.tensor([0, n_items])]
        self.node_of_item = [torch.zeros(n_items, dtype=torch.long)]
        for level in range(n_levels):
            is_new = torch.ones(n_items, dtype=torch.bool)
            is_new[1:] = (node_of_leaf[1:] != node_of_leaf[:-1]) | (rows[1:, level] != rows[:-1, level])
            starts = is_new.nonzero().flatten()
            children_of_node = torch.bincount(node_of_leaf[starts], minlength=self.n_nodes[-1])
            self.first_child.append(torch.cat([torch.zeros(1, dtype=torch.long), children_of_node.cumsum(0)]))
            self.code.append(rows[starts, level])
            self.first_leaf.append(torch.cat([starts, torch.tensor([n_items])]))
            node_of_leaf = is_new.long().cumsum(0) - 1
            self.n_nodes.append(len(starts))
            node_of_item = torch.empty(n_items, dtype=torch.long)
            node_of_item[self.item_of_leaf] = node_of_leaf
            self.node_of_item.append(node_of_item)
        assert self.n_nodes[-1] == n_items, "two items share a semantic ID"
        self._dense_masks = [
            self._build_mask(depth, torch.arange(nodes)) if nodes * size <= DENSE_MASK_LIMIT else None
            for depth, (nodes, size) in enumerate(zip(self.n_nodes, self.level_sizes, strict=False))
        ]

    def to(self, device: torch.device | str) -> SidTrie:
        """This trie, its tables moved to `device`."""
        for name in ("first_child", "code", "first_leaf", "node_of_item"):
            setattr(self, name, [table.to(device) for table in getattr(self, name)])
        self.item_of_leaf = self.item_of_leaf.to(device)
        self._dense_masks = [mask if mask is None else mask.to(device) for mask in self._dense_masks]
        return self

    @property
    def n_items(self) -> int:
        return self.n_nodes[-1]

    @property
    def n_levels(self) -> int:
        return len(self.level_sizes)

    def children_mask(self, depth: int, nodes: Tensor) -> Tensor:
        """bool [R, K_depth]: the codes that exist under each of `nodes` (int64 [R], numbered within `depth`)."""
        assert nodes.ndim == 1
        dense = self._dense_masks[depth]
        return dense[nodes] if dense is not None else self._build_mask(depth, nodes)

    def child(self, depth: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """int64 [R]: the node at depth + 1 reached from `nodes` [R] by `codes` [R]. Every one must exist."""
        size = self.level_sizes[depth]
        numbers = torch.arange(self.n_nodes[depth], device=nodes.device)
        parents = torch.repeat_interleave(numbers, self.first_child[depth].diff())
        keys = parents * size + self.code[depth]  # increasing, because nodes are in lexicographic order
        wanted = nodes * size + codes
        found = torch.searchsorted(keys, wanted)
        assert bool((keys[found.clamp(max=len(keys) - 1)] == wanted).all()), "no item has this prefix"
        return found

    def item_of(self, codes: Tensor) -> Tensor:
        """int64 [R]: the item of each full SID (int64 [R, L]). Every one must exist."""
        assert codes.ndim == 2
        nodes = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        for level in range(self.n_levels):
            nodes = self.child(level, nodes, codes[:, level])
        return self.item_of_leaf[nodes]

    def _build_mask(self, depth: int, nodes: Tensor) -> Tensor:
        first, last = self.first_child[depth][nodes], self.first_child[depth][nodes + 1]
        counts = last - first
        rows = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), counts)
        before = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        offsets = torch.arange(len(rows), device=nodes.device) - before
        mask = torch.zeros(len(nodes), self.level_sizes[depth], dtype=torch.bool, device=nodes.device)
        mask[rows, self.code[depth][first[rows] + offsets]] = True
        return mask


def _lexicographic_order(codes: Tensor) -> Tensor:
    """int64 [N]: row numbers in lexicographic order of the rows (stable sorts from the last column to the first)."""
    order = torch.arange(len(codes))
    for level in reversed(range(codes.shape[1])):
        order = order[torch.argsort(codes[order, level], stable=True)]
    return order
