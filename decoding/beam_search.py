"""Constrained search for exactly L codes: one prefill a request, then L - 1 steps in which a request's beams are query positions
of one sequence, told apart by a 4-D attention mask. The KV cache is only appended to, never copied or reordered, and only the
current level's rows of the head are computed.

Deterministic: the `beams` items of largest π that beam search finds. Stochastic: Gumbel top-k (arXiv 1903.06059), `beams` distinct
items drawn from π without replacement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from decoding.policy import SidVocabulary, child_log_probs
from decoding.trie import SidTrie


@dataclass(frozen=True)
class Beams:
    """items: int64 [B, W], best first (in sampling order when stochastic), -1 where there are fewer; log_probs: float32 [B, W]."""

    items: Tensor
    log_probs: Tensor


@dataclass
class _Frontier:
    """The beams of every request after some codes. node, log_prob, key: [B, W]; token: [B, W]; sees: bool [B, W, appended]."""

    node: Tensor
    log_prob: Tensor
    key: Tensor
    token: Tensor
    sees: Tensor


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie,
    beams: int,
    eligible: Tensor | None = None,
    generators: list[torch.Generator] | None = None,
) -> Beams:
    """Search the next item of every request. All tensors, the model and the trie are on one device.

    input_ids, attention_mask: int64 [B, T], left-padded. eligible: bool [B, N] over items, None for all. generators: one a
    request; they make the search stochastic, each request with its own randomness.
    Returns min(beams, eligible items) distinct eligible items a request; `log_probs` are log π over the whole catalogue: what is
    not eligible is passed over, not renormalised away.
    """
    assert input_ids.shape == attention_mask.shape
    n_requests = len(input_ids)
    head = model.get_output_embeddings().weight
    decoder = model.get_decoder()
    open_leaves = _count_eligible_leaves(eligible, trie)

    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    prefill = decoder(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, past_key_values=cache)
    hidden = prefill.last_hidden_state[:, -1:]  # [B, 1, H]
    root = torch.zeros(n_requests, 1, device=input_ids.device)
    frontier = _Frontier(
        root.long(), root, root.clone(), root.long(), root.new_zeros(n_requests, 1, 0, dtype=torch.bool)
    )
    for level in range(trie.n_levels):
        frontier, parent = _expand(frontier, hidden, head, vocabulary, trie, level, beams, open_leaves, generators)
        if level + 1 == trie.n_levels:
            break
        width, appended = frontier.node.shape[1], frontier.sees.shape[2]
        inherited = frontier.sees.gather(1, parent[..., None].expand(-1, -1, appended))
        itself = torch.eye(width, dtype=torch.bool, device=input_ids.device).expand(n_requests, -1, -1)
        frontier.sees = torch.cat([inherited, itself], dim=2)
        hidden = _step(decoder, frontier, attention_mask, positions[:, -1] + level + 1, cache, head.dtype)

    exists = frontier.log_prob > -torch.inf
    items = trie.item_of_leaf[frontier.node.clamp(max=trie.n_items - 1)].masked_fill(~exists, -1)
    return Beams(items, frontier.log_prob)


def _step(
    decoder: Any, frontier: _Frontier, attention_mask: Tensor, position: Tensor, cache: DynamicCache, dtype: torch.dtype
) -> Tensor:
    """Hidden states [B, W, H] of the beams' newest tokens, each seeing the prompt, its own ancestors and itself."""
    n_requests, width = frontier.token.shape
    prompt = attention_mask.bool()[:, None, :].expand(-1, width, -1)
    visible = torch.cat([prompt, frontier.sees], dim=2)[:, None]  # [B, 1, W, T + appended]
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
    return decoder(
        input_ids=frontier.token,
        attention_mask=mask,
        position_ids=position[:, None].expand(n_requests, width),
        past_key_values=cache,
    ).last_hidden_state


def _expand(
    frontier: _Frontier,
    hidden: Tensor,
    head: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie,
    level: int,
    beams: int,
    open_leaves: Tensor | None,
    generators: list[torch.Generator] | None,
) -> tuple[_Frontier, Tensor]:
    """Give every beam its children and keep the best `beams` of each request; also returns each new beam's parent [B, W']."""
    n_requests, width = frontier.node.shape
    size = trie.level_sizes[level]
    nodes = frontier.node.flatten()
    mask = trie.children_mask(level, nodes)
    logits = vocabulary.level_logits(hidden.reshape(n_requests * width, -1), head, level)
    step_log_probs = child_log_probs(logits, mask).view(n_requests, width, size)
    log_probs = frontier.log_prob[..., None] + step_log_probs

    # the child reached by a code is the first child plus the number of existing codes before it
    child = trie.first_child[level][nodes][:, None] + mask.long().cumsum(1) - 1
    child = child.clamp(0, trie.n_nodes[level + 1] - 1).view(n_requests, width, size)
    if open_leaves is not None:
        leaves = trie.first_leaf[level + 1]
        rows = torch.arange(n_requests, device=nodes.device)[:, None, None]
        has_eligible = open_leaves[rows, leaves[child + 1]] > open_leaves[rows, leaves[child]]
        log_probs = log_probs.masked_fill(~has_eligible, -torch.inf)

    keys = log_probs if generators is None else _gumbel_keys(frontier.key, log_probs, generators)
    keys = keys.masked_fill(log_probs == -torch.inf, -torch.inf)
    kept = min(beams, width * size)
    best_keys, best = keys.flatten(1).topk(kept, dim=1)
    # drop columns in which no request has a beam
    used = max(1, int((best_keys > -torch.inf).sum(1).max()))
    best_keys, best = best_keys[:, :used], best[:, :used]
    chosen = _Frontier(
        node=child.flatten(1).gather(1, best),
        log_prob=log_probs.flatten(1).gather(1, best),
        key=best_keys,
        token=best % size + vocabulary.first_tokens[level],
        sees=frontier.sees,
    )
    return chosen, best // size


def _gumbel_keys(parent_keys: Tensor, log_probs: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Gumbel-perturbed log-probabilities of the children, conditioned on their maximum being the parent's key.

    arXiv 1903.06059, appendix B.3. parent_keys [B, W]; log_probs [B, W, K], -inf for what does not exist or is not eligible.
    The root's key is 0: a constant shift of all keys, which changes no order.
    """
    noise = [torch.rand(log_probs.shape[1:], generator=generator) for generator in generators]
    uniform = torch.stack(noise).to(log_probs.device)
    uniform = uniform.clamp_(1e-20, 1 - 1e-7)
    perturbed = log_probs - torch.log(-torch.log(uniform))
    largest = perturbed.amax(dim=2, keepdim=True)
    parent = parent_keys[..., None]
    # the largest child takes the parent's key exactly; log1p(-exp(0)) is -inf there, which the formula handles
    v = parent - perturbed + torch.log1p(-torch.exp(perturbed - largest))
    keys = parent - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return torch.where(torch.isfinite(largest), keys, -torch.inf).nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def _count_eligible_leaves(eligible: Tensor | None, trie: SidTrie) -> Tensor | None:
    """int32 [B, N + 1]: eligible leaves before each leaf, so that a node's count is a difference; None when all are eligible."""
    if eligible is None:
        return None
    assert eligible.shape[1] == trie.n_items, f"eligible {tuple(eligible.shape)} for {trie.n_items} items"
    counts = eligible[:, trie.item_of_leaf[:]].to(torch.int32).cumsum(1, dtype=torch.int32)
    return torch.nn.functional.pad(counts, (1, 0))
