"""The trie for those who stay with transformers' `generate()`: a logits processor, or a function for `prefix_allowed_tokens_fn`.

    prompt_length = input_ids.shape[1]
    output = model.generate(
        input_ids,
        attention_mask=attention_mask,
        logits_processor=[SidLogitsProcessor(trie, vocabulary, prompt_length, eos_token)],
        **beam_settings(k, trie.n_levels, eos_token),
    )
    items, scores = items_of(output.sequences, output.sequences_scores, trie, vocabulary, prompt_length, n_requests)

Where in the SID a row stands follows from one number, the prompts' common (padded) length. Nothing is counted from call to call and
nothing is searched for in the prompt: a prompt may end in any token and hold any SIDs, and one object serves any number of calls with
prompts of that length, at any number of beams, at once.

Scores are those of `generate()`: log-probabilities over the whole vocabulary. `sidrec.decoding.beam_search` finds the same items many times
faster; here the model computes every logit, and every beam repeats its prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.trie import SidTrie

NO_BEAM = -1e7  # transformers gives beams that do not exist -1e9, divided by the length


class SidLogitsProcessor(LogitsProcessor):
    """Leaves the codes that lead to an (eligible) item, and after the last code the end token.

    prompt_length: tokens a row, padding included, before the first code. eos_token: what a row is given, at no cost, when its SID is
    complete, or when no item has its prefix (`generate()` keeps such rows when it has fewer beams than it should): so no row is
    without a token, and `items_of` tells which rows are items. eligibility: of the requests, in the batch's order.
    """

    def __init__(
        self,
        trie: SidTrie,
        vocabulary: SidVocabulary,
        prompt_length: int,
        eos_token: int,
        eligibility: Eligibility | None = None,
    ) -> None:
        self.trie, self.vocabulary, self.prompt_length = trie, vocabulary, prompt_length
        self.eos_token, self.eligibility = eos_token, eligibility

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """float [R, V]: `scores` [R, V] where allowed, -inf elsewhere. input_ids: int64 [R, T]."""
        level = input_ids.shape[1] - self.prompt_length
        assert level >= 0, (
            f"prompts of {self.prompt_length} tokens were announced, these rows have {input_ids.shape[1]}"
        )
        allowed = torch.full_like(scores, -torch.inf)
        if level >= self.trie.n_levels:
            allowed[:, self.eos_token] = 0
            return allowed
        first = self.vocabulary.first_tokens[level]
        columns = slice(first, first + self.trie.level_sizes[level])
        allowed[:, columns] = scores[:, columns].masked_fill(~self._open_codes(input_ids, level), -torch.inf)
        is_dead = allowed[:, columns].amax(1) == -torch.inf
        allowed[:, self.eos_token] = torch.where(is_dead, 0.0, -torch.inf).to(scores.dtype)
        return allowed

    def _open_codes(self, input_ids: Tensor, level: int) -> Tensor:
        """bool [R, K_level]."""
        nodes = nodes_of(input_ids[:, self.prompt_length :], self.trie, self.vocabulary)
        mask = self.trie.children_mask(level, nodes.clamp(min=0)) & (nodes >= 0)[:, None]
        if self.eligibility is None:
            return mask
        n_requests = self.eligibility.n_requests
        by_request = nodes.clamp(min=0).view(n_requests, -1)
        return self.eligibility.open_codes(level, by_request, mask.view(*by_request.shape, -1)).view(mask.shape)


def prefix_allowed_tokens(
    trie: SidTrie, vocabulary: SidVocabulary, prompt_length: int, eos_token: int
) -> Callable[[int, Tensor], list[int]]:
    """The same as a function for `generate(prefix_allowed_tokens_fn=…)`, without eligibility; it is called row by row, so it is slower."""

    def allowed_tokens(batch_id: int, row: Tensor) -> list[int]:
        level = len(row) - prompt_length
        assert level >= 0, f"prompts of {prompt_length} tokens were announced, this row has {len(row)}"
        if level >= trie.n_levels:
            return [eos_token]
        node = nodes_of(row[None, prompt_length:], trie, vocabulary)
        if int(node) < 0:
            return [eos_token]
        _, children = trie.children(level, node)
        return (trie.code[level][children] + vocabulary.first_tokens[level]).tolist()

    return allowed_tokens


def nodes_of(tokens: Tensor, trie: SidTrie, vocabulary: SidVocabulary) -> Tensor:
    """int64 [R]: the node that each row's tokens (int64 [R, D]) lead to, at depth D; -1 where no item begins so."""
    first_tokens = torch.tensor(vocabulary.first_tokens[: tokens.shape[1]], dtype=torch.long, device=tokens.device)
    return trie.descend(tokens - first_tokens)


def beam_settings(k: int, n_levels: int, eos_token: int) -> dict[str, Any]:
    """Arguments of `generate()` for the k best items by beam search, and nothing else.

    Every setting that a checkpoint's generation_config.json might hold against it is named: left out, `do_sample=True, top_k=20`
    of a chat model would turn beam search into sampling.
    """
    return {
        "do_sample": False,
        "num_beams": k,
        "num_return_sequences": k,
        "min_new_tokens": 0,
        "max_new_tokens": n_levels,
        "eos_token_id": eos_token,
        "pad_token_id": eos_token,
        "length_penalty": 1.0,
        "early_stopping": False,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "renormalize_logits": False,
        "return_dict_in_generate": True,
        "output_scores": True,
    }


def items_of(
    sequences: Tensor, scores: Tensor, trie: SidTrie, vocabulary: SidVocabulary, prompt_length: int, n_requests: int
) -> tuple[Tensor, Tensor]:
    """The distinct items among what `generate()` returned, best first: int64 [B, k], -1 where fewer; and their log-probabilities.

    sequences: int64 [B · k, T], prompts included. scores: float32 [B · k], `sequences_scores` at length_penalty 1.0, which are
    log-probabilities divided by the number of tokens.
    """
    tokens = sequences[:, prompt_length : prompt_length + trie.n_levels]
    leaves = torch.full((len(sequences),), -1, device=sequences.device)
    if tokens.shape[1] == trie.n_levels:  # else every row ended before its last code
        leaves = nodes_of(tokens, trie, vocabulary)
    is_item = (leaves >= 0) & (scores > NO_BEAM)
    leaves, is_item = leaves.view(n_requests, -1), is_item.view(n_requests, -1)
    equal = (leaves[:, :, None] == leaves[:, None, :]) & is_item[:, None, :]
    is_item &= ~equal.tril(diagonal=-1).any(2)  # of equal rows the first stays
    order = torch.argsort(~is_item, dim=1, stable=True)
    is_item, leaves = is_item.gather(1, order), leaves.gather(1, order)
    log_probs = scores.view(n_requests, -1).gather(1, order) * trie.n_levels
    items = trie.item_of_leaf[leaves.clamp(min=0)].masked_fill(~is_item, -1)
    return items, log_probs.masked_fill(~is_item, -torch.inf)
