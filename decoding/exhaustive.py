"""The log-probability of every item of the catalogue, each prefix of the trie computed once.

The history is prefilled once; then the trie is walked depth first, a chunk of neighbouring nodes at a time. A chunk's nodes are query
positions after the prompt and their ancestors' chunks, and each attends to the prompt, its own ancestors and itself: no mask is larger
than chunk x (prompt + L chunks), and the cache is truncated to the ancestors before the next chunk is run. It is the yardstick of
beam search, and the exact ranking of a small catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidrec.decoding.leaf_search import exact_top
from sidrec.decoding.normaliser import Normaliser
from sidrec.decoding.policy import SidVocabulary, code_log_probs
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.decoding.shared_prefix import SharedPrefix
from sidrec.decoding.trie import SidTrie

CHUNK_POSITIONS = 1024  # nodes run at once, summed over the batch's requests
CHUNK_NODES = 256  # most nodes of one request run at once


@torch.inference_mode()
def leaf_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie,
    normaliser: Normaliser = "children",
) -> Tensor:
    """float32 [B, N]: log π of the item at every leaf of the trie (`trie.item_of_leaf`). All on one device.

    input_ids, attention_mask: int64 [B, T], left-padded. Memory: B · N floats, and L chunks of keys and values.
    """
    if (scorer := rq_transformer_of(model)) is not None:
        return scorer.leaf_log_probs(input_ids, attention_mask, trie)
    n_requests = len(input_ids)
    prefix = SharedPrefix(model, input_ids, attention_mask)
    scores = torch.full((n_requests, trie.n_items), -torch.inf, device=input_ids.device)
    chunk = min(CHUNK_NODES, max(16, CHUNK_POSITIONS // n_requests))
    walk = _Walk(prefix, vocabulary, trie, normaliser, scores, chunk)
    root = torch.zeros(1, dtype=torch.long, device=input_ids.device)
    walk.score_children(0, root, scores.new_zeros(n_requests, 1), prefix.hidden, root.new_zeros(1, 0, dtype=torch.bool))
    return scores


@dataclass(frozen=True)
class Regret:
    """What a search's first k items lack of the true first k, both float32 [B].

    missed: share of the true k that the search did not return although they score above the last that it did. mass: the probability
    of the true k, less that of the search's k.
    """

    missed: Tensor
    mass: Tensor


def beam_regret(scores: Tensor, listed: Tensor, tolerance: float = 1e-4) -> Regret:
    """Regret@k of a search. scores: float32 [B, N], of every leaf (-inf: not eligible). listed: int64 [B, k], the search's leaves,
    best first, -1 where there is none. A score within `tolerance` of another is equal to it: of equal items either will do."""
    best, best_scores = exact_top(scores, listed.shape[1])  # [B, k'], k' ≤ k
    listed_scores = scores.gather(1, listed.clamp(min=0)).masked_fill(listed < 0, -torch.inf)[:, : best.shape[1]]
    is_listed = (best[:, :, None] == listed[:, None, :]).any(2)
    exists = best_scores > -torch.inf
    last = listed_scores.masked_fill(~exists, torch.inf).amin(dim=1, keepdim=True)
    missed = (exists & ~is_listed & (best_scores > last + tolerance)).sum(1)
    mass = best_scores.exp().sum(1) - listed_scores.exp().sum(1)
    return Regret(missed / exists.sum(1).clamp(min=1), mass.clamp(min=0))


@dataclass(frozen=True)
class _Walk:
    """The trie's walk for one batch of requests; `scores` [B, N] is filled as leaves are reached."""

    prefix: SharedPrefix
    vocabulary: SidVocabulary
    trie: SidTrie
    normaliser: Normaliser
    scores: Tensor
    chunk: int

    def score_children(self, depth: int, nodes: Tensor, log_probs: Tensor, hidden: Tensor, attends_to: Tensor) -> None:
        """Score the children of `nodes` and all that is below them.

        nodes: int64 [C], rising. log_probs: [B, C], of their prefixes. hidden: [B, C, H], their states. attends_to: bool
        [C, appended], the positions of their ancestors and their own.
        """
        trie = self.trie
        child, codes, exists = trie.padded_children(depth, nodes)  # [C, M]
        step = code_log_probs(
            hidden.transpose(0, 1), self.prefix.head, self.vocabulary, depth, codes, exists, self.normaliser
        )  # [C, B, M]
        below = (log_probs[..., None] + step.transpose(0, 1))[:, exists]  # [B, all children]
        parent, child, tokens = (
            exists.nonzero()[:, 0],
            child[exists],
            codes[exists] + self.vocabulary.first_tokens[depth],
        )
        if depth + 1 == trie.n_levels:
            self.scores[:, child] = below
            return
        leaves = trie.first_leaf[depth + 1]
        is_open = torch.ones_like(child, dtype=torch.bool)
        if self.normaliser == "children":  # where one item is left, its other codes are forced and have probability 1
            is_open = leaves[child + 1] - leaves[child] > 1
            self.scores[:, leaves[child[~is_open]]] = below[:, ~is_open]
        self.decode_nodes(depth + 1, child[is_open], below[:, is_open], tokens[is_open], attends_to[parent[is_open]])

    def decode_nodes(self, depth: int, nodes: Tensor, log_probs: Tensor, tokens: Tensor, ancestors: Tensor) -> None:
        """Run the model on `nodes` [n], a chunk at a time, and go on below.

        tokens: [n], of the nodes' last codes. log_probs: [B, n]. ancestors: bool [n, appended], the positions of the nodes above.
        """
        if len(nodes) == 0:
            return
        n_appended, n_requests = self.prefix.n_appended, len(log_probs)
        for rows in torch.arange(len(nodes), device=nodes.device).split(self.chunk):
            itself = torch.eye(len(rows), dtype=torch.bool, device=nodes.device)
            attends_to = torch.cat([ancestors[rows], itself], dim=1)
            hidden = self.prefix.extend(
                tokens[rows].expand(n_requests, -1), attends_to.expand(n_requests, -1, -1), depth
            )
            self.score_children(depth, nodes[rows], log_probs[:, rows], hidden, attends_to)
            self.prefix.truncate(n_appended)
