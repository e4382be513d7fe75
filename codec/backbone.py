"""The language model on both sides of the codec: tokens become states in the encoder, and states become tokens in the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sidrec.codec.layers import SwiGLUTransformerLayer
from sidrec.codec.settings import CodecNetworkSettings
from sidrec.pipeline.errors import InputError
from sidrec.sft.backbone import folder_of
from sidrec.sft.unsharded import load_whole


class ScratchBackbone(nn.Module):
    """Layers over a table of token vectors that the encoder and the decoder share; untrained, both are the table alone.

    writes: whether it makes logits, as the decoder's does.
    """

    def __init__(self, table: nn.Embedding, settings: CodecNetworkSettings, *, writes: bool) -> None:
        super().__init__()
        self.table = table
        width = settings.hidden_size
        self.layers = nn.ModuleList(
            SwiGLUTransformerLayer(width, settings.num_attention_heads, settings.dropout, causal=settings.causal)
            for _ in range(settings.num_layers)
        )
        if writes:
            self.norm = nn.RMSNorm(width)
            self.scale = nn.Parameter(torch.ones(()))  # of the logits
            self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    def states(self, input_ids: Tensor, exists: Tensor | None = None) -> Tensor:
        """[B, T, H] of input_ids int64 [B, T]. exists: bool [B, T], tokens that are no padding."""
        return self.over(self.table(input_ids), exists)

    def over(self, hidden: Tensor, exists: Tensor | None = None) -> Tensor:
        """hidden, and what is returned: [B, T, H]."""
        for layer in self.layers:
            hidden = layer(hidden, exists)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, T, V] of states [B, T, H]."""
        states = self.norm(hidden) * (self.scale / hidden.shape[-1] ** 0.5)
        return functional.linear(states, self.table.weight, self.bias)


class PretrainedBackbone(nn.Module):
    """A causal language model of transformers: its states in the encoder, its answer to given states, in one pass, in the decoder."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def states(self, input_ids: Tensor, exists: Tensor | None = None) -> Tensor:
        """[B, T, H] of input_ids int64 [B, T]; padding at the end changes nothing before it."""
        body: Any = self.model.base_model
        return body(input_ids=input_ids, use_cache=False).last_hidden_state

    def over(self, hidden: Tensor, exists: Tensor | None = None) -> Tensor:
        """hidden, and what is returned: [B, T, H]."""
        body: Any = self.model.base_model
        return body(inputs_embeds=hidden, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, T, V] of states [B, T, H]."""
        head: Any = self.model.get_output_embeddings()
        return head(hidden)


Backbone = ScratchBackbone | PretrainedBackbone


def backbones(
    settings: CodecNetworkSettings, vocabulary: int, configuration: dict[str, Any] | None = None
) -> tuple[Backbone, Backbone, int]:
    """The encoder's, the decoder's, and their width.

    configuration: of the language model when a codec is loaded, whose weights come from its own file.
    """
    if settings.model_name_or_path is None:
        table = nn.Embedding(vocabulary, settings.hidden_size)
        encoding, decoding = (ScratchBackbone(table, settings, writes=writes) for writes in (False, True))
        return encoding, decoding, settings.hidden_size
    models = [language_model(settings.model_name_or_path, configuration) for _ in range(2)]
    n_read = models[0].get_input_embeddings().num_embeddings
    if n_read < vocabulary:
        raise InputError(
            f"{settings.model_name_or_path} reads {n_read:,} tokens, and the text has a vocabulary of {vocabulary:,}; make the text by "
            f"`sidrec codec text --tokenizer {settings.model_name_or_path}`."
        )
    inputs, outputs = (models[0].get_input_embeddings(), models[0].get_output_embeddings())
    if inputs.weight is not outputs.weight:  # the encoder makes no logits, the decoder reads no tokens
        outputs.requires_grad_(False)
        models[1].get_input_embeddings().requires_grad_(False)
    return PretrainedBackbone(models[0]), PretrainedBackbone(models[1]), int(models[0].config.hidden_size)


def language_model(name: str, configuration: dict[str, Any] | None) -> PreTrainedModel:
    """The model of that name or folder in float32; with a configuration, one of that architecture, not yet filled.

    Raises InputError when it cannot be loaded.
    """
    if configuration is not None:
        fields = dict(configuration)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    load_whole()
    try:
        return AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model_name_or_path={name!r} cannot be loaded ({reason}); give a hub name or a local folder."
        ) from error
