"""Search with an RQ-Transformer: one state a request scores the nodes of the joint levels, and beams go down from the best of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sidrec.decoding.beams import Beams, best_first, refuse_nan
from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.leaf_search import exact_top, items_at
from sidrec.decoding.rq_transformer.depth_heads import DepthHead
from sidrec.decoding.rq_transformer.node_rows import NodeTable
from sidrec.decoding.trie import SidTrie


@torch.inference_mode()
def depth_search(
    head: DepthHead, states: Tensor, table: NodeTable, beams: int, eligible: Eligibility | None = None
) -> Beams:
    """min(beams, eligible items) items of every request, exactly the best ones where all levels are joint. states: float32 [B, H].

    Costs a product of `states` with the joint nodes, and one of every beam with its node's children a level below, whatever the catalogue's
    size. Raises InputError when scores are not numbers.
    """
    trie, depth = table.trie, head.joint_levels
    log_probs = head.joint_log_probs(states, table)
    refuse_nan(log_probs)
    nodes, scores = exact_top(log_probs if eligible is None else eligible.close(log_probs, depth), beams)
    for level in range(depth, trie.n_levels):
        n_requests, width = nodes.shape
        child, _, exists = trie.padded_children(level, nodes.flatten())
        each = states.repeat_interleave(width, 0)[:, None]
        steps = head.child_log_probs(each, level, nodes.flatten(), child, exists, table)
        steps, child = steps.view(n_requests, width, -1), child.view(n_requests, width, -1)
        if eligible is not None:
            steps = steps.masked_fill(~eligible.open_children(level, nodes, child), -torch.inf)
        candidates = (scores[..., None] + steps).flatten(1)
        best = best_first(candidates, child.flatten(1), min(beams, candidates.shape[1], trie.n_nodes[level + 1]))
        nodes, scores = child.flatten(1).gather(1, best), candidates.gather(1, best)
    refuse_nan(scores)
    items = items_at(trie, nodes, scores)
    reachable = torch.full_like(nodes[:, 0], trie.n_items) if eligible is None else eligible.n_eligible
    return Beams(items, scores, reachable)


def depth_search_scores(head: DepthHead, trie: SidTrie, beams: int) -> int:
    """The most numbers that the search holds at once for one request: of the joint nodes' entries, or of rows of the beams' children."""
    widest = max((trie.widest(level) for level in range(head.joint_levels, trie.n_levels)), default=0)
    entries = trie.n_nodes[head.joint_levels] * (1 + head.exact_children)
    return max(entries, beams * widest * head.hidden_size)
