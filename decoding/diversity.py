"""Lists with at most so many items under one first code, and the best ones under that rule.

A list that is filled from the best item down, each item passed over whose first code is full, has the highest sum of log-probabilities of
all lists under the rule: the sets that it allows are the independent sets of a partition matroid, where the greedy choice is the best one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.beams import Beams, best_first
from sidrec.decoding.eligibility import AllowList, Eligibility
from sidrec.decoding.trie import SidTrie


def place_among_equals(groups: Tensor) -> Tensor:
    """int64 [B, W]: how many entries before each one in its row are equal to it. groups: int64 [B, W]."""
    in_order, order = groups.sort(dim=1, stable=True)
    place = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    starts = torch.ones_like(groups, dtype=torch.bool)
    starts[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    return torch.empty_like(place).scatter_(1, order, place - torch.where(starts, place, 0).cummax(1).values)


def first_nodes(trie: SidTrie, items: Tensor) -> Tensor:
    """int64, of the shape of `items` (-1 where there is none): the node of each item's first code, -1 where there is no item."""
    return trie.node_of_item[1][items.clamp(min=0)].masked_fill(items < 0, -1)


def within(trie: SidTrie, items: Tensor, log_probs: Tensor, k: int, diversity: int) -> tuple[Tensor, Tensor]:
    """The first k of each row that have fewer than `diversity` items of the same first code before them, -1 (and -inf) where there are
    fewer. items: int64 [B, W], best first, -1 for nothing. log_probs: float [B, W]."""
    fits = (items >= 0) & (place_among_equals(first_nodes(trie, items)) < diversity)
    order = (~fits).long().argsort(dim=1, stable=True)[:, :k]
    missing = ~fits.gather(1, order)
    return items.gather(1, order).masked_fill(missing, -1), log_probs.gather(1, order).masked_fill(missing, -torch.inf)


def reachable_within(trie: SidTrie, excluded: list[np.ndarray], allowed: AllowList | None, diversity: int) -> Tensor:
    """int64 [B], on the CPU: the most items that a list under the rule can have. excluded: of each request, item indices."""
    ends = trie.first_leaf[1][torch.arange(trie.n_nodes[1] + 1, device=trie.device)]
    counts = (ends if allowed is None else allowed.count_before(ends)).diff()
    most = int(counts.clamp(max=diversity).sum())
    reachable = []
    for row in excluded:
        items = torch.from_numpy(np.unique(row)).to(trie.device)
        items = items[(items >= 0) & (items < trie.n_slots)]
        leaves = trie.leaf_of_item(items)
        items, leaves = items[leaves >= 0], leaves[leaves >= 0]
        if allowed is not None:
            items = items[allowed.contains(trie.n_levels, leaves)]
        nodes, closed = trie.node_of_item[1][items].unique(return_counts=True)
        lost = counts[nodes].clamp(max=diversity) - (counts[nodes] - closed).clamp(max=diversity)
        reachable.append(most - int(lost.sum()))
    return torch.tensor(reachable)


def diverse_search(
    search: Callable[[list[int], Eligibility | None], Beams],
    trie: SidTrie,
    excluded: list[np.ndarray],
    allowed: AllowList | None,
    k: int,
    diversity: int,
) -> Beams:
    """The k best items of every request with at most `diversity` of one first code; k where there are k.

    search: gives the best items of some of the requests among those that are eligible. excluded: of each request, item indices. A list
    that is not full after a search is filled by another one, in which the codes that are full are closed.
    """
    n_requests, device = len(excluded), trie.device
    items = torch.full((n_requests, k), -1, device=device)
    scores = torch.full((n_requests, k), -torch.inf, device=device)
    closed, rows = list(excluded), list(range(n_requests))
    while rows:
        shut = [closed[row] for row in rows]
        eligible = Eligibility(trie, len(rows), shut if any(map(len, shut)) else None, allowed)
        best = search(rows, eligible)
        both = torch.cat([items[rows], best.items], dim=1), torch.cat([scores[rows], best.log_probs], dim=1)
        items[rows], scores[rows] = within(trie, *both, k, diversity)
        is_short = (items[rows, -1] < 0) & (best.items[:, -1] >= 0)
        rows = [row for row, short in zip(rows, is_short.tolist(), strict=True) if short]
        for row in rows:
            listed = items[row][items[row] >= 0]
            closed[row] = np.concatenate([excluded[row], listed.cpu().numpy(), _below_full(trie, listed, diversity)])
    order = best_first(scores, trie.leaf_of_item(items.clamp(min=0)).clamp(min=0), k)
    reachable = reachable_within(trie, excluded, allowed, diversity)
    return Beams(items.gather(1, order), scores.gather(1, order), reachable)


def _below_full(trie: SidTrie, items: Tensor, diversity: int) -> np.ndarray:
    """int64: every item under the first codes that `items` (int64 [n]) fill."""
    nodes, counts = trie.node_of_item[1][items].unique(return_counts=True)
    full = nodes[counts >= diversity]
    ranges = zip(trie.first_leaf[1][full].tolist(), trie.first_leaf[1][full + 1].tolist(), strict=True)
    leaves = torch.cat([torch.arange(0), *(torch.arange(start, end) for start, end in ranges)]).to(trie.device)
    below: np.ndarray = trie.item_of_leaf[leaves].cpu().numpy()
    return below
