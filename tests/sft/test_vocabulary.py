"""SID tokens in the vocabulary: whole and consecutive, in tied and untied models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf
from conftest import make_sids
from tokenizers import Tokenizer

from sidrec.pipeline.errors import InputError
from sidrec.sft.backbone import byte_tokenizer, load_backbone
from sidrec.sft.portable_config import make_portable
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


def word_pieces(mark: str) -> dict[str, object]:
    """A vocabulary of letters and the merges of `the`, `mark` for a space."""
    letters = [mark, *"abcdefghijklmnopqrstuvwxyz<>_0123456789"]
    special = ["<unk>", "<s>", "</s>", "<pad>", "<eos>", "<bos>", "<|endoftext|>"]
    pieces = [*special, *letters, "th", "the", f"{mark}the"]
    return {"vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": [("t", "h"), ("th", "e"), (mark, "the")]}


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "Qwen2": lambda: tf.Qwen2Tokenizer(**word_pieces("Ġ")),
    "Llama": lambda: tf.LlamaTokenizer(**word_pieces("▁")),
    "Gemma": lambda: tf.GemmaTokenizer(**word_pieces("▁")),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_sids_outlive_a_servers_decoding(kind, tiny_model, tmp_path):
    """`skip_special_tokens=True`, which is the default of servers, in transformers and in plain `tokenizers`."""
    (model, _), tokenizer = tiny_model, TOKENIZERS[kind]()
    sids = make_sids(20, [4, 6])
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * 20, "codebook", seed=0)
    assert not set(tokenizer.all_special_ids) & set(range(vocabulary.start_token, len(tokenizer)))
    tokenizer.save_pretrained(tmp_path)
    make_portable(tmp_path)
    again, plain = tf.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = START_TOKEN + sids.text(3) + sids.text(5)
    codes = np.array(vocabulary.first_tokens) + sids.codes[[3, 5]]
    ids = [vocabulary.start_token, *codes.flatten().tolist()]
    for read in (tokenizer, again):
        assert read(text, add_special_tokens=False)["input_ids"] == ids
        assert read.decode(ids, skip_special_tokens=True) == text
    assert plain.encode(text, add_special_tokens=False).ids == ids
    assert plain.decode(ids, skip_special_tokens=True) == text
    among_words = again("the cat" + sids.text(3), add_special_tokens=False)["input_ids"]
    assert among_words[-2:] == codes[0].tolist()


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
