"""The product of two experts: what a model says of the next item, times what a memory of a few neighbours says.

    p(y | history) ∝ π(y | history) · exp(weight · gain(y | history)),   gain ≥ 0, above 0 for the few items that the memory proposes

The k best are among the k best by π and the proposals: an item without a gain has only items before it that are before it by π, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sidrec.decoding.beams import Beams, best_first
from sidrec.decoding.trie import SidTrie


class Proposer(Protocol):
    """What proposes items and says what each gains."""

    def gains(self, histories: list[np.ndarray], exclude_seen: bool = True) -> sparse.csr_array:
        """Sparse float32 [B, N], by item index, above 0. exclude_seen: an item of the history gains nothing."""
        ...


@dataclass(frozen=True)
class Expert:
    """A memory and its weight, 0 or more."""

    memory: Proposer
    weight: float

    def proposals(self, histories: list[np.ndarray], trie: SidTrie, exclude_seen: bool) -> Proposals:
        """Of every history, for the items that `trie` holds."""
        gains = self.memory.gains(histories, exclude_seen).tocoo()
        counts = np.bincount(gains.row, minlength=len(histories))
        order = np.argsort(gains.row, kind="stable")
        place = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        items = torch.full((len(histories), int(counts.max(initial=0))), -1)
        boosts = torch.zeros(items.shape)
        rows = torch.from_numpy(gains.row[order].astype(np.int64))
        items[rows, torch.from_numpy(place)] = torch.from_numpy(gains.col[order].astype(np.int64))
        boosts[rows, torch.from_numpy(place)] = torch.from_numpy(gains.data[order]) * self.weight
        items, boosts = items.to(trie.device), boosts.to(trie.device)
        known = (items >= 0) & (items < trie.n_slots)
        return Proposals(torch.where(known, trie.leaf_of_item(items * known), -1), boosts)


@dataclass(frozen=True)
class Proposals:
    """leaves: int64 [B, C], -1 where a request has fewer. boosts: float32 [B, C], weight · gain."""

    leaves: Tensor
    boosts: Tensor

    def times(self, log_probs: Tensor) -> Tensor:
        """float32 [B, N], by leaf: log-probabilities of the product. log_probs: [B, N], log π by leaf."""
        boosts = torch.zeros_like(log_probs).scatter_add_(
            1, self.leaves.clamp(min=0), self.boosts.masked_fill(self.leaves < 0, 0.0)
        )
        return (log_probs + boosts).log_softmax(1)

    def joined(self, beams: Beams, log_pi: Tensor, open_leaves: Tensor, trie: SidTrie, k: int) -> Beams:
        """The k best of the product; its log-probabilities, over the whole catalogue.

        beams: the k or more best by π of what each request may be given. log_pi: float32 [B, C], of the proposals. open_leaves: bool
        [B, C], the proposals that each request may be given.
        """
        assert log_pi.shape == open_leaves.shape == self.leaves.shape
        exists = self.leaves >= 0
        log_pi = log_pi.masked_fill(~exists, -torch.inf)
        log_total = (log_pi.exp() * self.boosts.expm1()).sum(1, keepdim=True).log1p()
        searched = trie.leaf_of_item(beams.items.clamp(min=0)).masked_fill(beams.items < 0, -1)
        proposed = (searched[:, :, None] == self.leaves[:, None]).any(2)
        leaves = torch.cat([searched, self.leaves], dim=1)
        scores = torch.cat(
            [
                beams.log_probs.masked_fill(proposed, -torch.inf),
                (log_pi + self.boosts).masked_fill(~(exists & open_leaves), -torch.inf),
            ],
            dim=1,
        )
        best = best_first(scores, leaves.clamp(min=0), min(k, scores.shape[1]))
        leaves, scores = leaves.gather(1, best), scores.gather(1, best)
        items = trie.item_of_leaf[leaves.clamp(min=0)].masked_fill(scores == -torch.inf, -1)
        return replace(beams, items=items, log_probs=scores - log_total)
