"""A language model of the Llama kind as a GGUF file, which llama.cpp opens, and its semantic IDs as a grammar of tokens.

What is written is what llama.cpp's own converter writes: query and key rows in the order of rotary pairs that lie side by side, matrices
in float16 or float32, vectors in float32. SID tokens are user-defined ones: they are matched whole in a prompt, and written out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json

# how a byte-level tokenizer splits text before its merges: the kinds of its parts, and llama.cpp's name of it
SPLITS = {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm", ("Split", "ByteLevel"): "llama-bpe"}


def write_gguf(folder: Path, path: Path, weights: str) -> None:
    """Write the model of a Hugging Face folder, tokenizer included. weights: "float16" or "float32".

    Raises InputError when the model is of another kind than Llama, or its positions or its tokenizer have no counterpart in the file.
    """
    from gguf import MODEL_ARCH, GGUFWriter, LlamaFileType, get_tensor_name_map

    config = read_json(folder / "config.json")
    check_kind(folder, config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    writer = GGUFWriter(path, "llama")
    add_sizes(writer, config)
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if weights == "float16" else LlamaFileType.ALL_F32)
    add_tokenizer(writer, folder, tokenizer, config["vocab_size"])
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            numbers = file.get_tensor(name).to(torch.float32)
            heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
            for part, n_heads in heads.items():
                numbers = side_by_side(numbers, n_heads) if part in name else numbers
            new = names.get_name(name, try_suffixes=(".weight",))
            if new is None or not name.endswith(".weight"):
                raise InputError(
                    f"{folder} has weights that a GGUF file of a Llama has not ({name}); it cannot be written as one."
                )
            half = weights == "float16" and numbers.ndim == 2
            writer.add_tensor(new, numbers.numpy().astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_kind(folder: Path, config: dict[str, Any]) -> None:
    """Raise InputError unless it is a Llama with plain rotary positions."""
    if config["model_type"] != "llama":
        raise InputError(
            f"--format gguf is for models of the Llama kind (SmolLM2), and {folder} is of the kind {config['model_type']!r}; serve the "
            "folder with transformers, vLLM or SGLang, or an RQ-Transformer with `--format onnx`."
        )
    if config.get("rope_scaling") is not None:
        kind = config["rope_scaling"].get("rope_type")
        raise InputError(
            f"{folder} stretches its positions ({kind!r}), which `--format gguf` does not write; serve the folder as it is."
        )


def side_by_side(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """[n_heads · width, H]: rows i and width/2 + i of each head, which are a rotary pair in transformers, one after the other."""
    width = len(weight) // n_heads
    return weight.view(n_heads, 2, width // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def add_sizes(writer: Any, config: dict[str, Any]) -> None:
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer: Any, folder: Path, tokenizer: PreTrainedTokenizerBase, n_rows: int) -> None:
    """Tokens and merges of a byte-level BPE; rows of the embedding that no token has are unused ones."""
    from gguf import TokenType

    saved = read_json(folder / "tokenizer.json")
    split = split_of(saved)
    if split is None:
        raise InputError(
            f"the tokenizer of {folder} is no byte-level BPE that `--format gguf` knows; serve the folder as it is."
        )
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [f"[PAD{row}]" for row in range(n_rows)], [TokenType.UNUSED] * n_rows
    for token, row in tokenizer.get_vocab().items():
        tokens[row], kinds[row] = token, TokenType.NORMAL
    for row, token in added.items():
        kinds[row] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in saved["model"]["merges"]])
    for kind, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if kind is not None:
            add(kind)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def split_of(saved: dict[str, Any]) -> str | None:
    """llama.cpp's name of how the tokenizer of a tokenizer.json splits text; None for other tokenizers."""
    first = saved.get("pre_tokenizer") or {}
    parts = first.get("pretokenizers", [first])
    return SPLITS.get(tuple(part.get("type") for part in parts)) if saved["model"]["type"] == "BPE" else None


def write_grammar(trie: SidTrie, vocabulary: SidVocabulary, path: Path) -> None:
    """The catalogue as a grammar for llama.cpp's `--grammar-file`: one rule a prefix, whose answers are tokens by their numbers.

    So no piece of a word can stand for a SID token. Needs a llama.cpp with tokens in grammars (December 2025).
    """
    lines = []
    for depth in range(trie.n_levels):
        pointers = trie.first_child[depth][:].tolist()
        tokens = (trie.code[depth][:] + vocabulary.first_tokens[depth]).tolist()
        for node in range(trie.n_nodes[depth]):
            children = range(pointers[node], pointers[node + 1])
            below = (f" n{depth + 1}-{child}" if depth + 1 < trie.n_levels else "" for child in children)
            answers = " | ".join(f"<[{tokens[child]}]>{rest}" for child, rest in zip(children, below, strict=True))
            lines.append(f"{'root' if depth == 0 else f'n{depth}-{node}'} ::= {answers}\n")
    path.write_text("".join(lines), encoding="ascii")
