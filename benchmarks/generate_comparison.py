"""Beam search against transformers' generate(num_beams, prefix_allowed_tokens_fn), end to end, on the same model and prompts.

A random Qwen3 (4 layers, 256 wide, tied, 152k tokens), 4,000 items of 3 codes of 256, batches of 8 prompts of 128 tokens, 20 beams.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.harness import timed
from benchmarks.random_catalogues import skewed_codes, small_qwen3
from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.beams import Beams
from sidrec.decoding.normaliser import Normaliser
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.trie import SidTrie

NORMALISERS: tuple[Normaliser, ...] = ("level", "full", "children")
N_ITEMS, LEVEL_SIZES = 4000, [256, 256, 256]
N_WORDS = 151_936  # tokens before the SIDs': Qwen3's
N_REQUESTS, PROMPT_LENGTH, N_BEAMS = 8, 128, 20


def compare_generate(repeats: int, seed: int) -> dict[str, float]:
    """CPU seconds of a batch, medians of `repeats` batches of new prompts; the ratios to `generate()`; and whether it finds the same.

    generate_ratio_level, generate_ratio_full: generate's seconds over the search's, by what scores are normalised over.
    same_order: share of the requests in which the full normaliser gives generate's 20 items in generate's order.
    largest_difference: of the scores of the two.
    """
    trie, vocabulary = _catalogue(seed)
    root = nested_dictionaries(trie.sorted_codes().long() + torch.tensor(vocabulary.first_tokens))
    model = small_qwen3(N_WORDS + 64 + sum(LEVEL_SIZES), seed)
    generator = torch.Generator().manual_seed(seed)
    seconds: dict[str, list[float]] = {name: [] for name in ("generate", "level", "full", "children")}
    same: list[bool] = []
    differences: list[float] = []
    for repeat in range(repeats + 1):  # the first is not counted
        prompts = torch.randint(N_WORDS, (N_REQUESTS, PROMPT_LENGTH), generator=generator)
        (items, scores), generate_seconds = timed(partial(by_generate, model, prompts, trie, vocabulary, root))
        searched: dict[str, Beams] = {}
        times = {"generate": generate_seconds}
        for normaliser in NORMALISERS:
            beams, times[normaliser] = timed(partial(search, model, prompts, trie, vocabulary, normaliser))
            searched[normaliser] = beams
        same += (searched["full"].items == items).all(1).tolist()
        differences.append(float((searched["full"].log_probs - scores).abs().max()))
        for name, one in times.items():
            if repeat:
                seconds[name].append(one)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "generate_ratio_level": round(median["generate"] / median["level"], 1),
        "generate_ratio_full": round(median["generate"] / median["full"], 1),
        "generate_ratio_children": round(median["generate"] / median["children"], 1),
        "same_order": sum(same) / len(same),
        "compared_requests": len(same),
        "largest_difference": max(differences),
        **{f"{name}_seconds": round(value, 3) for name, value in median.items()},
    }


def _catalogue(seed: int) -> tuple[SidTrie, SidVocabulary]:
    firsts = [N_WORDS + 64 + sum(LEVEL_SIZES[:level]) for level in range(len(LEVEL_SIZES))]
    vocabulary = SidVocabulary(N_WORDS, tuple(firsts), tuple(LEVEL_SIZES))
    return SidTrie(skewed_codes(N_ITEMS, LEVEL_SIZES, seed), LEVEL_SIZES), vocabulary


def search(
    model: PreTrainedModel, prompts: Tensor, trie: SidTrie, vocabulary: SidVocabulary, normaliser: Normaliser
) -> Beams:
    return beam_search(model, prompts, torch.ones_like(prompts), vocabulary, trie, N_BEAMS, normaliser=normaliser)


def nested_dictionaries(tokens: Tensor) -> dict[int, Any]:
    """The trie as it is usually given to `prefix_allowed_tokens_fn`. tokens: int64 [N, L], the token ids of every item's SID."""
    root: dict[int, Any] = {}
    for row in tokens.tolist():
        node = root
        for token in row:
            node = node.setdefault(token, {})
    return root


@torch.inference_mode()
def by_generate(
    model: PreTrainedModel, prompts: Tensor, trie: SidTrie, vocabulary: SidVocabulary, root: dict[int, Any]
) -> tuple[Tensor, Tensor]:
    """Items int64 and scores float32, both [B, N_BEAMS], of transformers' beam search with the dictionaries below `root`."""
    length = prompts.shape[1]

    def allowed(_request: int, row: Tensor) -> list[int]:
        node = root
        for token in row[length:].tolist():
            node = node.get(token, {})
        return list(node) or [0]

    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        num_beams=N_BEAMS,
        num_return_sequences=N_BEAMS,
        do_sample=False,
        min_new_tokens=trie.n_levels,
        max_new_tokens=trie.n_levels,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    codes = output.sequences[:, length:] - torch.tensor(vocabulary.first_tokens)
    return trie.item_of(codes).view(len(prompts), -1), output.sequences_scores.view(len(prompts), -1)
