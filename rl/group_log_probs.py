"""log π of a group's items with the prompt run once: G · (L - 1) completion positions follow it under a tree mask.

The same loss and gradients as repeating the prompt G times, for a fraction of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidrec.decoding.output_head import OutputHead, causal_model
from sidrec.decoding.policy import SidVocabulary, leaked_mass, next_code_log_probs
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.decoding.trie import SidTrie


@dataclass(frozen=True)
class GroupLogProbs:
    """chosen: float32 [B, L], log π of the codes of B items. entropies: float32 [B, L], of each choice. levels: L tensors, float32
    [B, K_level], log π of every code of the level under the item's own prefix, -inf where it does not exist."""

    chosen: Tensor
    entropies: Tensor
    levels: tuple[Tensor, ...]


@dataclass(frozen=True)
class PackedGroups:
    """Rows of a batch, grouped by equal prompts.

    prompt_ids, prompt_mask: int64 [U, P], the distinct prompts, left-padded. row: int64 [U, C], which row of the batch each slot
    is; slots beyond a group's size repeat the group's first row, and `slot_of_row` (int64 [B], into the flattened slots) ignores
    them.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    row: Tensor
    slot_of_row: Tensor


def pack_groups(prompt_ids: Tensor, prompt_mask: Tensor) -> PackedGroups:
    """Group the rows [B, P] that share a prompt; TRL shuffles rows, so groups need not be neighbours."""
    both = torch.cat([prompt_ids, prompt_mask], dim=1)
    _, group, sizes = torch.unique(both, dim=0, return_inverse=True, return_counts=True)
    order = torch.argsort(group, stable=True)
    first = sizes.cumsum(0) - sizes
    position = torch.arange(len(group), device=group.device) - first[group[order]]  # within its group
    width = int(sizes.max())
    row = order[first][:, None].repeat(1, width)
    row[group[order], position] = order
    slot_of_row = torch.empty_like(order)
    slot_of_row[order] = group[order] * width + position
    return PackedGroups(prompt_ids[row[:, 0]], prompt_mask[row[:, 0]], row, slot_of_row)


def group_log_probs(
    model: nn.Module,
    head: OutputHead,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    items: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie,
) -> GroupLogProbs:
    """log π and entropy of every row's codes under its prompt.

    model: the wrapped model. head: its own. prompt_ids, prompt_mask: int64 [B, P], left-padded. items: int64 [B].
    """
    if rq_transformer_of(model) is not None:
        chosen, *levels = _by_depth_head(model, prompt_ids, prompt_mask, items, trie)
    else:
        hidden = group_states(model, prompt_ids, prompt_mask, items, vocabulary, trie)
        chosen, *levels = head.call(
            lambda whole, inputs: _chosen_and_levels(inputs, items, whole, vocabulary, trie), hidden
        )
    entropies = [-(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0)).sum(1) for log_probs in levels]
    return GroupLogProbs(chosen, torch.stack(entropies, dim=1), tuple(levels))


def group_states(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    items: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie,
) -> Tensor:
    """[B, L, H]: the last hidden states that predict every row's L codes; arguments as of `group_log_probs`."""
    assert prompt_ids.shape == prompt_mask.shape
    assert len(prompt_ids) == len(items)
    packed = pack_groups(prompt_ids, prompt_mask)
    codes = torch.stack(
        [trie.code[level][trie.node_of_item[level + 1][items]] for level in range(trie.n_levels)], dim=1
    )
    tokens = codes + torch.tensor(vocabulary.first_tokens, device=codes.device)
    n_groups, width = packed.row.shape
    steps = trie.n_levels - 1
    completions = tokens[packed.row][..., :steps].reshape(n_groups, width * steps)

    mask, positions = _tree_mask(packed.prompt_mask, width, steps, causal_model(model).dtype)
    states = model(
        input_ids=torch.cat([packed.prompt_ids, completions], dim=1),
        attention_mask=mask,
        position_ids=positions,
        output_hidden_states=True,
        logits_to_keep=1,
        use_cache=False,
    ).hidden_states[-1]
    prompt_length = prompt_ids.shape[1]
    last = states[:, prompt_length - 1, None, None].expand(-1, width, 1, -1)  # predicts level 0
    later = states[:, prompt_length:].unflatten(1, (width, steps))
    return torch.cat([last, later], dim=2).flatten(0, 1)[packed.slot_of_row]


def leaked_mass_by_level(
    hidden: Tensor, items: Tensor, head: OutputHead, vocabulary: SidVocabulary, trie: SidTrie
) -> Tensor:
    """float32 [B, L]: how much of the softmax over the whole vocabulary falls on codes that do not exist. hidden: [B, L, H]."""
    shares = []
    for level in range(trie.n_levels):
        logits = vocabulary.level_logits(hidden[:, level], head, level)
        exists = trie.children_mask(level, trie.node_of_item[level][items])
        shares.append(leaked_mass(logits, exists, head.log_sum(hidden[:, level])))
    return torch.stack(shares, dim=1).clamp(min=0)


def _chosen_and_levels(
    hidden: Tensor, items: Tensor, head: OutputHead, vocabulary: SidVocabulary, trie: SidTrie
) -> tuple[Tensor, ...]:
    """log π of the items' codes [B, L], then the L levels' distributions [B, K_level]. hidden: [B, L, H]."""
    chosen, levels = [], []
    for level in range(trie.n_levels):
        log_probs, code = next_code_log_probs(hidden[:, level], items, head, vocabulary, trie, level)
        chosen.append(log_probs.gather(1, code[:, None])[:, 0])
        levels.append(log_probs)
    return torch.stack(chosen, dim=1), *levels


def _by_depth_head(
    model: nn.Module, prompt_ids: Tensor, prompt_mask: Tensor, items: Tensor, trie: SidTrie
) -> tuple[Tensor, ...]:
    """As `_chosen_and_levels`, of an RQ-Transformer: one state a prompt is all that the codes depend on."""
    scorer = rq_transformer_of(model)
    assert scorer is not None
    packed = pack_groups(prompt_ids, prompt_mask)
    output = model(
        input_ids=packed.prompt_ids, attention_mask=packed.prompt_mask, output_hidden_states=True, logits_to_keep=1
    )
    states = output.hidden_states[-1][packed.slot_of_row // packed.row.shape[1], -1]
    chosen, levels = [], []
    for level, size in enumerate(trie.level_sizes):
        node, child = (trie.node_of_item[depth][items] for depth in (level, level + 1))
        children, codes, exists = trie.padded_children(level, node)
        log_probs = scorer.depth.child_log_probs(states[:, None], level, node, children, exists, scorer.table(trie))
        chosen.append(log_probs[:, 0].gather(1, (child - children[:, 0])[:, None])[:, 0])
        by_code = log_probs.new_full((len(items), size + 1), -torch.inf)  # what fills a row up goes to the last column
        levels.append(by_code.scatter(1, torch.where(exists, codes, size), log_probs[:, 0])[:, :size])
    return torch.stack(chosen, dim=1), *levels


def _tree_mask(prompt_mask: Tensor, width: int, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Additive mask [U, 1, S, S] and positions [U, S] of a prompt followed by `width` completions of `steps` tokens."""
    n_groups, prompt_length = prompt_mask.shape
    device = prompt_mask.device
    branch = torch.cat(
        [
            torch.full((prompt_length,), -1, device=device),
            torch.arange(width, device=device).repeat_interleave(steps),
        ]
    )
    index = torch.arange(len(branch), device=device)
    related = (branch[None, :] == -1) | (
        branch[None, :] == branch[:, None]
    )  # a key in the prompt, or in the same completion
    present = torch.cat(
        [prompt_mask.bool(), torch.ones(n_groups, width * steps, dtype=torch.bool, device=device)], dim=1
    )
    visible = ((index[None, :] <= index[:, None]) & related)[None] & present[:, None, :]
    mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
    in_prompt = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    after = prompt_mask.sum(1, keepdim=True) + torch.arange(steps, device=device).repeat(width)
    return mask[:, None], torch.cat([in_prompt, after], dim=1)
