"""log π of a few chosen items a request, without scoring the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sidrec.decoding.normaliser import Normaliser
from sidrec.decoding.policy import SidVocabulary, item_log_probs
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.decoding.shared_prefix import SharedPrefix
from sidrec.decoding.trie import SidTrie


@torch.inference_mode()
def chosen_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie,
    leaves: Tensor,
    normaliser: Normaliser = "children",
) -> Tensor:
    """float32 [B, C]: log π of the items at `leaves` (int64 [B, C]). input_ids, attention_mask: int64 [B, T], left-padded."""
    n_requests, n_chosen = leaves.shape
    if (scorer := rq_transformer_of(model)) is not None:
        states = scorer.last_states(input_ids, attention_mask)
        return scorer.depth.chosen_log_probs(states, leaves, scorer.table(trie))
    items = trie.item_of_leaf[leaves]
    prefix = SharedPrefix(model, input_ids, attention_mask)
    by_level = [prefix.hidden.expand(-1, n_chosen, -1)]
    itself = torch.eye(n_chosen, dtype=torch.bool, device=leaves.device).expand(n_requests, -1, -1)
    for level in range(trie.n_levels - 1):
        tokens = trie.code[level][trie.node_of_item[level + 1][items]] + vocabulary.first_tokens[level]
        by_level.append(prefix.extend(tokens, itself.repeat(1, 1, level + 1), depth=level + 1))
    hidden = torch.stack(by_level, dim=2).flatten(0, 1)
    steps = item_log_probs(hidden, items.flatten(), prefix.head, vocabulary, trie, normaliser)
    return steps.sum(1).view(n_requests, n_chosen)
