"""SID tokens in the vocabulary: whole and consecutive, in tied and untied models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_sids

from sidrec.pipeline.errors import InputError
from sidrec.sft.backbone import byte_tokenizer, load_backbone
from sidrec.sft.settings import BackboneConfig
from sidrec.sft.vocabulary import START_TOKEN, add_sid_tokens


def test_tokens_are_whole_and_consecutive_and_old_rows_stay(tiny_model):
    model, tokenizer = tiny_model
    before = model.get_input_embeddings().weight.detach().clone()
    old = len(tokenizer)
    sids = make_sids(20, [4, 6])
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * 20, "codebook", seed=0)
    text = START_TOKEN + sids.text(3) + " a title " + sids.text(5)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[:3] == [vocabulary.start_token, *(np.array(vocabulary.first_tokens) + sids.codes[3])]
    assert ids[-2:] == list(np.array(vocabulary.first_tokens) + sids.codes[5])
    assert tokenizer.decode(ids[3:-2]) == " a title "
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] % 64 == 0
    assert weight.shape[0] >= len(tokenizer)
    assert model.get_output_embeddings().weight is weight
    assert torch.equal(weight[:old], before[:old])
    with pytest.raises(InputError, match="already has the token"):
        add_sid_tokens(model, tokenizer, sids, [""] * 20, "codebook", seed=0)


def test_untied_heads_get_the_rows_too(tiny_model):
    model, tokenizer = tiny_model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 3)
    model.config.tie_word_embeddings = False
    vocabulary = add_sid_tokens(model, tokenizer, make_sids(20, [4, 6]), [""] * 20, "codebook", seed=0)
    span = slice(vocabulary.first_tokens[0], vocabulary.first_tokens[0] + 4)
    head, table = model.get_output_embeddings().weight[span], model.get_input_embeddings().weight[span]
    torch.testing.assert_close(head, table * (head.norm() / table.norm()))
    assert head.norm() > 2 * table.norm()


def test_byte_tokenizer_writes_any_title():
    tokenizer = byte_tokenizer()
    title = "Amélie (2001) – 東京 №5"
    assert tokenizer.decode(tokenizer(title)["input_ids"]) == title


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_backbone(BackboneConfig(model_name_or_path=str(tmp_path / "nothing")), seed=0)
    with pytest.raises(InputError, match="not a multiple"):
        load_backbone(BackboneConfig(architecture="qwen3", hidden_size=30, num_attention_heads=4), seed=0)
