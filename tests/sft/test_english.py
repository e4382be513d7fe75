"""Perplexity of plain passages: by the formula, over the words alone where asked, and in the summary's words."""

from __future__ import annotations

import math

import pytest
import torch
from run_dirs import save_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidrec.sft.english import PASSAGES, english_in_words, perplexity


def test_perplexity_is_the_formula(tmp_path):
    save_pretrained(tmp_path, "Llama", tied=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path).train(), AutoTokenizer.from_pretrained(tmp_path)
    model.resize_token_embeddings(len(tokenizer) + 5)  # as with SID tokens
    for n_tokens in (None, len(tokenizer)):
        losses = []
        for passage in PASSAGES:
            ids = tokenizer(passage)["input_ids"]
            with torch.no_grad():
                log_probs = model(torch.tensor([ids])).logits[0, :, :n_tokens].log_softmax(-1)
            losses += [-log_probs[at, token].item() for at, token in enumerate(ids[1:])]
        assert perplexity(model, tokenizer, n_tokens) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert model.training
    assert perplexity(model, tokenizer, len(tokenizer)) < perplexity(model, tokenizer)


def test_the_summary_says_what_to_change_where_english_is_lost():
    assert english_in_words(20.0, 20.3) == "English: perplexity 20.00 before, 20.30 after (+1.5%)"
    assert "--train_weights lora" in english_in_words(20.0, 21.0)
