"""Rows of the trie's nodes: the shared row of the node's code (an ordinary SID token) plus a row of the node's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.decoding.trie import SidTrie

Made = TypeVar("Made")


class NodeRows(nn.Module):
    """What the nodes of the training catalogue's trie have of their own, by level: a row [n, H], on the levels of `own_levels`, and a
    bias [n] that is added to the node's score."""

    def __init__(self, n_nodes: list[int], own_levels: list[int], hidden_size: int) -> None:
        super().__init__()
        self.own = nn.ParameterDict(
            {str(level): nn.Parameter(torch.zeros(n_nodes[level], hidden_size)) for level in own_levels}
        )
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in n_nodes)

    def own_rows(self, level: int) -> Tensor | None:
        """float32 [n, H] of the nodes at depth level + 1; None where they have none."""
        return self.own.get(str(level))


class TriePaths:
    """How the nodes of a trie lie above one another, and which of them the training catalogue's trie had. By level, of int64 numbers:

    codes: [n], the code of every node at depth level + 1. parents: [n], the node above it. ancestors: [N], the node at depth level + 1
    above every leaf. trained: [n], the node's number in the training catalogue's trie, -1 where it had none; None: this is that very one.
    """

    def __init__(self, trie: SidTrie, trained: SidTrie) -> None:
        self.trie, depths = trie, range(trie.n_levels)
        self._once: dict[object, Any] = {}
        with torch.inference_mode(False):  # they are kept, and may be used in training later
            self.codes = [codes[:] for codes in trie.code]
            self.parents = [self._repeated(depth, trie.first_child[depth][:]) for depth in depths]
            self.ancestors = [self._repeated(depth + 1, trie.first_leaf[depth + 1][:]) for depth in depths]
            self.trained = None if trie is trained else self._numbers_in(trained)

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` gives, made the first time: what no weight decides."""
        if key not in self._once:
            with torch.inference_mode(False):
                self._once[key] = make()
        return self._once[key]

    def _repeated(self, depth: int, pointers: Tensor) -> Tensor:
        return torch.arange(self.trie.n_nodes[depth], device=pointers.device).repeat_interleave(pointers.diff())

    def _numbers_in(self, trained: SidTrie) -> list[Tensor]:
        above, numbers = torch.zeros(1, dtype=torch.long, device=self.trie.device), []
        for depth, (parents, codes) in enumerate(zip(self.parents, self.codes, strict=True)):
            above = trained.find(depth, above[parents], codes)
            numbers.append(above)
        return numbers

    def of_trained(self, level: int, values: Tensor) -> Tensor:
        """`values` [n_trained, …] of the training trie's nodes at depth level + 1, for this trie's; 0 for nodes that it did not have."""
        if self.trained is None:
            return values
        return rows_or_zero(values, self.trained[level])

    def above(self, depth: int, upper: int) -> Tensor:
        """int64 [n]: the node at depth `upper`, 1 or more, above each node at `depth`."""
        if depth == self.trie.n_levels:
            return self.ancestors[upper - 1]
        nodes = torch.arange(self.trie.n_nodes[depth], device=self.trie.device)
        for level in reversed(range(upper, depth)):
            nodes = self.parents[level][nodes]
        return nodes

    def upwards(self, depth: int, nodes: Tensor) -> list[Tensor]:
        """By level below `depth`: int64 [R], the node at depth level + 1 above `nodes` (int64 [R], at `depth`), themselves the last."""
        path: list[Tensor] = []
        for level in reversed(range(depth)):
            path.insert(0, nodes)
            nodes = self.parents[level][nodes]
        return path


def rows_or_zero(values: Tensor, numbers: Tensor) -> Tensor:
    """values[numbers], 0 where a number is -1."""
    rows = values.index_select(0, numbers.clamp(min=0))
    return rows.masked_fill((numbers < 0).view(-1, *[1] * (rows.ndim - 1)), 0)


@dataclass(frozen=True)
class NodeTable:
    """The rows of a trie's nodes. rows: by level, float32 [n, H]. bias: by level, float32 [n]. popularity: float32 [N], by leaf, shares of
    the training interactions, which sum to 1; 0 for items that came later."""

    paths: TriePaths
    rows: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    popularity: Tensor
    _once: dict[object, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: NodeRows, code_rows: list[Tensor], paths: TriePaths, popularity: Tensor) -> NodeTable:
        """code_rows: by level, float32 [K_l, H], the rows of the level's SID tokens. popularity: by leaf of the training catalogue."""
        rows = []
        for level, shared in enumerate(code_rows):
            row = functional.embedding(paths.codes[level], shared)
            own_rows = nodes.own_rows(level)
            rows.append(row if own_rows is None else row + paths.of_trained(level, own_rows))
        bias = tuple(paths.of_trained(level, bias) for level, bias in enumerate(nodes.bias))
        return cls(paths, tuple(rows), bias, paths.of_trained(-1, popularity))

    @property
    def trie(self) -> SidTrie:
        return self.paths.trie

    @property
    def item_rows(self) -> Tensor:
        """float32 [N, H]: by leaf, the sum of the rows on its path: an item's embedding."""
        return self.path_rows(self.trie.n_levels)

    @property
    def item_bias(self) -> Tensor:
        """float32 [N], by leaf."""
        return self.path_bias(self.trie.n_levels)

    def with_items(self, leaves: Tensor, rows: Tensor, bias: Tensor) -> NodeTable:
        """The table in which the items at `leaves` (int64 [m]) have other embeddings, float32 [m, H], and biases, float32 [m]: the last
        nodes of their paths make up the difference."""
        above = self.paths.parents[-1][leaves]
        if len(self.rows) > 1:
            rows, bias = (
                rows - self.path_rows(len(self.rows) - 1)[above],
                bias - self.path_bias(len(self.bias) - 1)[above],
            )
        last = self.rows[-1].index_copy(0, leaves, rows), self.bias[-1].index_copy(0, leaves, bias)
        return NodeTable(self.paths, (*self.rows[:-1], last[0]), (*self.bias[:-1], last[1]), self.popularity)

    def path_rows(self, depth: int) -> Tensor:
        """float32 [n, H]: by node at `depth`, the sum of the rows on its path."""
        return self._path_sums("rows", self.rows, depth)

    def path_bias(self, depth: int) -> Tensor:
        """float32 [n], by node at `depth`."""
        return self._path_sums("bias", self.bias, depth)

    def path_popularity(self, depth: int) -> Tensor:
        """float32 [n]: by node at `depth`, the popularity of the items below it."""
        if depth == self.trie.n_levels:
            return self.popularity
        sums = self.popularity.new_zeros(self.trie.n_nodes[depth])
        return sums.index_add(0, self.paths.ancestors[depth - 1], self.popularity)

    def _path_sums(self, name: str, values: tuple[Tensor, ...], depth: int) -> Tensor:
        def summed() -> Tensor:
            *above, sums = values[:depth]
            for level, value in enumerate(above):
                sums = sums + value.index_select(0, self.paths.above(depth, level + 1))
            return sums

        return self.once((name, depth), summed)

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` gives of the table's rows, made the first time."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]
