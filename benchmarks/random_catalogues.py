"""Random semantic IDs of large catalogues, without the items, and random models to search them with."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.decoding.trie import SidTrie
from sidrec.sft.node_init import levels_with_own_rows
from sidrec.tokenizer.semantic_ids import SemanticIds

LEVEL_SIZES, START_TOKEN = [64, 256, 256], 258
ZIPF_EXPONENT = 0.8


def uniform_codes(n_items: int, level_sizes: list[int], seed: int) -> torch.Tensor:
    """int16 [N, L], unique rows in random order, every one equally likely: prefixes are shared least, so a trie is largest."""
    return _unique_rows(n_items, level_sizes, seed, exponent=0.0)


def skewed_codes(n_items: int, level_sizes: list[int], seed: int) -> torch.Tensor:
    """int16 [N, L], unique rows in random order. Below every prefix the codes follow Zipf's law of exponent 0.8, in an order of the
    prefix's own: a few prefixes have many children and most have few, as in catalogues of real items."""
    return _unique_rows(n_items, level_sizes, seed, ZIPF_EXPONENT)


def _unique_rows(n_items: int, level_sizes: list[int], seed: int, exponent: float) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    numbers = np.empty(0, dtype=np.int64)  # a row is one number in mixed radix
    while len(numbers) < n_items:
        numbers = np.unique(np.concatenate([numbers, _draw(n_items // 2 + 1000, level_sizes, rng, exponent)]))
    numbers = rng.permutation(numbers)[:n_items]
    columns = np.unravel_index(numbers, level_sizes)
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int16))


def _draw(n: int, level_sizes: list[int], rng: np.random.Generator, exponent: float) -> np.ndarray:
    numbers = np.zeros(n, dtype=np.int64)
    for size in level_sizes:
        weights = np.arange(1, size + 1) ** -exponent
        rank = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(n)).clip(max=size - 1)
        code = (rank + numbers * 40_503) % size
        numbers = numbers * size + code
    return numbers


def small_qwen3(n_tokens: int, seed: int) -> PreTrainedModel:
    """A random Qwen3 whose logits are spread (embeddings of standard deviation 0.05), so that its choices differ."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=n_tokens,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.05)
    return model


def random_sids(n_items: int, seed: int) -> SemanticIds:
    codes = skewed_codes(n_items, LEVEL_SIZES, seed).numpy().astype(np.int32)
    return SemanticIds(codes, codes, [np.zeros((size, 1), np.float32) for size in LEVEL_SIZES])


def random_model(
    sids: SemanticIds, depth_head: str, seed: int, layers: int = 1
) -> tuple[RqTransformerForCausalLM, SidVocabulary]:
    """An RQ-Transformer for the catalogue, and where its SID tokens lie."""
    torch.manual_seed(seed)
    first_tokens = tuple(int(START_TOKEN + 4 + sum(LEVEL_SIZES[:level])) for level in range(len(LEVEL_SIZES)))
    vocabulary = SidVocabulary(START_TOKEN, first_tokens, tuple(LEVEL_SIZES))
    config = RqTransformerConfig(
        vocab_size=first_tokens[-1] + LEVEL_SIZES[-1], depth_head=depth_head, num_hidden_layers=layers
    )
    model = RqTransformerForCausalLM(config)
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    model.add_catalogue(trie, START_TOKEN, first_tokens, levels_with_own_rows(trie, config.hidden_size))
    return model, vocabulary
