"""The first rows of SID tokens in a pretrained model: as long as its own, and no code far more likely than the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_sids
from transformers import LlamaConfig, LlamaForCausalLM

from sidrec.decoding.renderer import Renderer
from sidrec.sft.backbone import byte_tokenizer
from sidrec.sft.quiet_rows import head_inputs, levels_of, quiet_rows, sid_span, without
from sidrec.sft.vocabulary import add_sid_tokens

N_ITEMS, SIZES, WIDTH = 60, [8, 12], 64


def start(tied: bool):
    """A Llama whose head's input is long and nearly the same everywhere, as a pretrained one's is."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:  # its states are what the layers make, and not the row that was read
            layer.self_attn.v_proj.weight.mul_(30)
            layer.self_attn.o_proj.weight.mul_(30)
        model.model.norm.weight.mul_(4)
        model.model.norm.weight[:4].mul_(8)
        model.get_input_embeddings().weight.normal_(0, 0.15)
        model.get_output_embeddings().weight.normal_(0, 0.15)
    old_rows, sids = len(tokenizer), make_sids(N_ITEMS, SIZES)
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * N_ITEMS, "codebook", seed=0)
    return model, Renderer.build(sids, vocabulary, 50), old_rows


def spread(model, renderer) -> float:
    """Standard deviation of the logits of a level's codes, where one is asked for."""
    rng = np.random.default_rng(5)
    with torch.no_grad():
        states = head_inputs(model, renderer, [rng.integers(0, N_ITEMS, 20) for _ in range(8)])
        logits = states @ model.get_output_embeddings().weight[sid_span(renderer.vocabulary)].T
    return max(logits[:, level].std(dim=1).mean().item() for level in levels_of(renderer.vocabulary))


@pytest.mark.parametrize("tied", [True, False])
def test_rows_keep_their_length_and_logits_lie_near_each_other(tied):
    model, renderer, old_rows = start(tied)
    model.train()
    span, before, table = sid_span(renderer.vocabulary), spread(model, renderer), model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    old, first, read = head[:old_rows].clone(), head[span].clone(), table[span].clone()
    rng = np.random.default_rng(0)
    quiet_rows(model, renderer, [rng.integers(0, N_ITEMS, 30) for _ in range(20)], old_rows)
    assert spread(model, renderer) < before / 2
    assert model.training
    assert torch.equal(head[:old_rows], old)
    mean = old.mean(0)
    for level in levels_of(renderer.vocabulary):
        norms = [(rows[level] - mean).norm(dim=1).mean().item() for rows in (head[span], first)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
        rows = head[span][level]
        assert torch.pdist(rows).min() > 0.2 * torch.pdist(first[level]).min(), "codes are still told apart"
    assert torch.equal(table[span], read) != tied, "an untied embedding stays as it is"


def test_without_leaves_nothing_of_the_main_directions():
    states = torch.randn(40, 1) @ torch.randn(1, 16) + 1e-3 * torch.randn(40, 16)
    rows = without(torch.randn(5, 16), states)
    assert (states @ rows.T).abs().max() < 0.05
    assert rows.norm(dim=1).min() > 0.5
