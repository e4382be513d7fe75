"""Both generations of transformers read the rotary base and the tokenizer's class that a finished folder says."""

from __future__ import annotations

import json

import pytest
import transformers as tf

from sidrec.sft.backbone import byte_tokenizer
from sidrec.sft.portable_config import make_portable, older_rope

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 64


@pytest.mark.parametrize(
    ("config", "rope", "older"),
    [
        (tf.Qwen3Config, {"rope_type": "default"}, None),
        (tf.LlamaConfig, LLAMA3, LLAMA3),
        (tf.MistralConfig, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (tf.GemmaConfig, {"rope_type": "default"}, None),
    ],
)
def test_the_rotary_base_stands_under_both_names(tmp_path, config, rope, older):
    made = config(**SMALL, rope_parameters={"rope_theta": 123456.0} | rope)
    made.save_pretrained(tmp_path)
    make_portable(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 123456.0
    assert written["rope_scaling"] == older
    again = tf.AutoConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == made.rope_parameters
    again.save_pretrained(tmp_path)  # as RL does with what SFT wrote
    make_portable(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 123456.0
    assert tf.AutoConfig.from_pretrained(tmp_path).rope_parameters == made.rope_parameters


def test_two_kinds_of_layers_have_two_bases():
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    scaling = {"rope_type": "linear", "factor": 8.0}
    assert older_rope(parameters) == {"rope_theta": 1e6, "rope_scaling": scaling, "rope_local_base_freq": 1e4}
    assert older_rope(None) == {}


def test_the_tokenizers_class_is_one_that_both_know(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    make_portable(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = "Amélie (2001)"
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
