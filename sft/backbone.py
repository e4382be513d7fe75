"""The language model that is fine-tuned: a pretrained one by name or folder, or a small Qwen3 made from scratch."""

from __future__ import annotations

import math

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.packaged_models import packaged_model
from sidrec.pipeline.screen import Screen
from sidrec.sft import smollm
from sidrec.sft.settings import BackboneConfig
from sidrec.sft.unsharded import load_whole


def load_backbone(config: BackboneConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (float32) and its tokenizer. Raises InputError when a named one cannot be loaded."""
    if config.model_name_or_path is None:
        make = {"rq_transformer": scratch_rq_transformer, "qwen3": scratch_qwen3}[config.architecture]
        return make(config, seed), byte_tokenizer()
    load_whole()
    name_or_folder = folder_of(config.model_name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_folder)
        model = AutoModelForCausalLM.from_pretrained(name_or_folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model_name_or_path={config.model_name_or_path!r} cannot be loaded ({reason}); give a hub name or a local folder."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if (packaged := packaged_model(config.model_name_or_path)) is not None:
        model.name_or_path = packaged.public_name  # what an adapter says that it belongs to
    return model, tokenizer


def folder_of(name: str, screen: Screen | None = None) -> str:
    """What transformers loads for a `model_name_or_path`: the name itself, or the folder of a packaged model, which is made once.

    Raises InputError for a packaged model that is not installed, or writes no words.
    """
    if packaged_model(name) is None:
        return name
    if name != smollm.NAME:
        raise InputError(f"model_name_or_path={name} is a text encoder and writes nothing; give it as --text_encoder.")
    return str(smollm.smollm_folder(screen))


def scratch_rq_transformer(config: BackboneConfig, seed: int) -> RqTransformerForCausalLM:
    """An RQ-Transformer without a catalogue (sft/node_init.py gives it one)."""
    torch.manual_seed(seed)
    return RqTransformerForCausalLM(
        RqTransformerConfig(
            vocab_size=len(byte_tokenizer()),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            dropout=config.dropout,
            smoothing=config.smoothing,
            depth_head=config.depth_head,
            joint_levels=config.joint_levels,
            exact_children=config.exact_children,
            item_loss_weight=config.item_loss_weight,
        )
    )


def scratch_qwen3(config: BackboneConfig, seed: int) -> PreTrainedModel:
    """A Qwen3 with tied embeddings and small initial weights (residual branches scaled by 1/√(2 · layers), as in GPT-2)."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(byte_tokenizer()),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
            initializer_range=0.02,
            attn_implementation="sdpa",
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    with torch.no_grad():
        for branch in residual_branches(model):
            branch.weight.div_(math.sqrt(2 * config.num_hidden_layers))
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that needs no training: `<pad>`, `<eos>` and the 256 bytes. It can write any title."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def residual_branches(model: PreTrainedModel) -> list[nn.Linear]:
    """The last linear map of every attention and feed-forward branch of a Qwen3."""
    return [branch for layer in model.model.layers for branch in (layer.self_attn.o_proj, layer.mlp.down_proj)]


def add_dropout(model: PreTrainedModel, rate: float) -> None:
    """Dropout on the embeddings and on every residual branch while the model trains.

    Forward hooks, so the saved model stays an ordinary Qwen3. Attention dropout would switch off the fused CPU kernel.
    """

    def drop(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return nn.functional.dropout(output, rate, training=module.training)

    for module in (model.get_input_embeddings(), *residual_branches(model)):
        module.register_forward_hook(drop)
