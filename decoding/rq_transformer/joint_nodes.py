"""What the nodes of the joint levels are scored with: entries, a node's mass the logsumexp of its own.

A node's mass is that of its children together, as in a softmax over the children, but only the `exact` most popular of them have an entry
each; the others share one, of their mean row, which counts as often as they are many. So a catalogue costs a few products a node and not
one an item. Without exact children a node has one entry, its own row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.decoding.rq_transformer.node_rows import NodeTable


@dataclass(frozen=True)
class JointNodes:
    """rows: float32 [E, H], of the entries, a node's next to each other. bias, popularity: float32 [E]. first: int64 [n + 1], where every
    node's entries begin. node: int64 [E], whose an entry is; None: every node has one."""

    rows: Tensor
    bias: Tensor
    popularity: Tensor
    first: Tensor
    node: Tensor | None

    @classmethod
    def of(cls, table: NodeTable, depth: int, exact: int) -> JointNodes:
        """The nodes at `depth`."""
        if exact == 0 or depth == table.trie.n_levels:
            rows = table.path_rows(depth)
            one_each = torch.arange(len(rows) + 1, device=rows.device)
            return cls(rows, table.path_bias(depth), table.path_popularity(depth), one_each, None)
        popularity = table.path_popularity(depth + 1)
        entry, first = table.paths.once(
            ("entries", depth, exact), lambda: entries_of_children(table.paths.parents[depth], popularity, exact)
        )
        n_entries = int(first[-1])
        members = torch.bincount(entry, minlength=n_entries).float()

        def means(values: Tensor) -> Tensor:
            sums = values.new_zeros(n_entries, *values.shape[1:]).index_add(0, entry, values)
            return sums / members.view(-1, *[1] * (values.ndim - 1))

        rows, bias = means(table.path_rows(depth + 1)), means(table.path_bias(depth + 1)) + members.log()
        node = torch.arange(len(first) - 1, device=first.device).repeat_interleave(first.diff())
        return cls(rows, bias, popularity.new_zeros(n_entries).index_add(0, entry, popularity), first, node)

    def scores(self, states: Tensor) -> Tensor:
        """float32 [B, n]: by node, the log of its mass before the softmax. states: [B, H]."""
        scores = (states @ self.rows.T + self.bias).float()
        return scores if self.node is None else logsumexp_by_group(scores, self.node, len(self.first) - 1)

    def further_mass(self, states: Tensor, nodes: Tensor) -> Tensor:
        """float32 [R]: by how much the mass of `nodes`, int64 [R], is above that of their first entries, in logs. states: [R, H]."""
        widest = int(self.first.diff().max())
        at = self.first[nodes, None] + torch.arange(widest, device=nodes.device)
        exists = at < self.first[nodes + 1, None]
        at = torch.where(exists, at, self.first[nodes, None])
        scores = torch.bmm(functional.embedding(at, self.rows), states[..., None])[..., 0] + self.bias[at]
        scores = scores.float()
        return scores.masked_fill(~exists, -torch.inf).logsumexp(1) - scores[:, 0]


def entries_of_children(parents: Tensor, popularity: Tensor, exact: int) -> tuple[Tensor, Tensor]:
    """int64 [n_children], the entry that each child counts in, and int64 [n + 1], where every parent's entries begin.

    A parent's `exact` most popular children have an entry each, the others one together. parents: int64 [n_children], ascending, all of
    0 … n - 1. popularity: float32 [n_children].
    """
    by_popularity = popularity.argsort(descending=True, stable=True)
    order = by_popularity[
        parents[by_popularity].argsort(stable=True)
    ]  # parents ascending, the most popular child first
    n_children = parents.bincount()
    begins = n_children.cumsum(0) - n_children
    place = torch.arange(len(parents), device=parents.device) - begins[parents]
    first = functional.pad(n_children.clamp(max=exact + 1).cumsum(0), (1, 0))
    entry = torch.empty_like(parents)
    entry[order] = first[parents] + place.clamp(max=exact)
    return entry, first


def logsumexp_by_group(scores: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """float32 [B, n_groups]: the logsumexp of the columns of `scores`, float32 [B, n], in each group. groups: int64 [n], each used."""
    columns = scores.T
    largest = columns.new_full((n_groups, scores.shape[0]), -torch.inf)
    largest = largest.scatter_reduce(0, groups[:, None].expand_as(columns), columns.detach(), "amax")
    sums = columns.new_zeros(n_groups, scores.shape[0]).index_add(0, groups, (columns - largest[groups]).exp())
    return (sums.log() + largest).T
