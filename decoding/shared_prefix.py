"""`SharedPrefix`: prompts that are run once and then continued by many positions at a time, told apart by a 4-D attention mask.

Beams (or the trie's nodes) of a request are query positions of one sequence: each attends to the prompt, its own ancestors and itself.
The KV cache is only appended to, or truncated; it is never copied per beam or reordered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sidrec.decoding.output_head import OutputHead, causal_model
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.pipeline.errors import InputError

LAYER_KINDS = {"full_attention", "sliding_attention"}


class SharedPrefix:
    """A batch of prompts, prefilled: the model has run on them, and their keys and values lie in the cache.

    model: a causal language model of transformers with sdpa or eager attention that takes `position_ids`, bare or wrapped by PEFT.
    input_ids, attention_mask: int64 [B, T], left-padded.

    head: the model's output head. hidden: [B, 1, H], the last states of the prompts. n_appended: positions appended since.
    """

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
        assert input_ids.shape == attention_mask.shape, f"{tuple(input_ids.shape)}, {tuple(attention_mask.shape)}"
        causal = causal_model(model)
        self.head = OutputHead.of(model)
        self._decoder: Any = causal.get_decoder()
        config = causal.config.get_text_config()
        self._kinds = set(getattr(config, "layer_types", None) or ())
        self._window: Any = getattr(config, "sliding_window", None)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        # without the config every layer keeps all keys, those of sliding layers too: the mask says what is out of the window
        self._cache = DynamicCache()
        self.hidden = self._decoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, past_key_values=self._cache
        ).last_hidden_state[:, -1:]
        self._prompt_mask = attention_mask.bool()
        self._prompt_positions = positions
        self._appended_depths: list[tuple[int, int]] = []  # (positions, depth) of each extension

    @property
    def n_appended(self) -> int:
        return sum(count for count, _ in self._appended_depths)

    def extend(self, tokens: Tensor, attends_to: Tensor, depth: int) -> Tensor:
        """Append positions; returns their hidden states [B, W, H].

        tokens: int64 [B, W]. attends_to: bool [B, W, n_appended + W], which appended positions each one attends to, itself included;
        all attend to their prompt. depth: how many tokens after the prompt's end the new positions are (1 for the first).
        """
        n_requests, width = tokens.shape
        expected = (n_requests, width, self.n_appended + width)
        assert attends_to.shape == expected, f"{tuple(attends_to.shape)} for {width} tokens"
        self._appended_depths.append((width, depth))
        position = self._prompt_positions[:, -1] + depth  # [B]
        prompt = self._prompt_mask[:, None, :].expand(-1, width, -1)
        visible = torch.cat([prompt, attends_to], dim=2)  # [B, W, T + appended]
        return self._decoder(
            input_ids=tokens,
            attention_mask=self._masks(visible, position),
            position_ids=position[:, None].expand(n_requests, width),
            past_key_values=self._cache,
        ).last_hidden_state

    def truncate(self, n_appended: int) -> None:
        """Forget the last extensions, until `n_appended` positions are left."""
        surplus = self.n_appended - n_appended
        while self.n_appended > n_appended:
            self._appended_depths.pop()
        assert self.n_appended == n_appended, "extensions are forgotten whole"
        self._cache.crop(-surplus)

    def _masks(self, visible: Tensor, position: Tensor) -> Tensor | dict[str, Tensor]:
        """What the decoder takes as its attention mask: one additive tensor, or one for each kind of layer."""
        if "sliding_attention" not in self._kinds:
            is_windowed = self._window is not None and not self._kinds  # Mistral: every layer, and no list of kinds
            return self._additive(self._within_window(visible, position) if is_windowed else visible)
        masks = {"sliding_attention": self._additive(self._within_window(visible, position))}
        if "full_attention" in self._kinds:
            masks["full_attention"] = self._additive(visible)
        return masks

    def _within_window(self, visible: Tensor, position: Tensor) -> Tensor:
        """`visible` without the keys that lie a window or more before the queries' position (int64 [B])."""
        depths = [depth for count, depth in self._appended_depths for _ in range(count)]
        appended = self._prompt_positions[:, -1:] + torch.tensor(depths, device=position.device)
        key_positions = torch.cat([self._prompt_positions, appended], dim=1)  # [B, T + appended]
        return visible & (key_positions > position[:, None] - self._window)[:, None]

    def _additive(self, visible: Tensor) -> Tensor:
        """[B, 1, W, keys] in the model's dtype: 0 where visible, its lowest number elsewhere (eager attention adds it)."""
        dtype = self.hidden.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


@torch.inference_mode()
def check_decoder(model: nn.Module, vocabulary: SidVocabulary) -> None:
    """Raise InputError where prompts cannot be continued as `SharedPrefix` does, or the model's plain logits come out different.

    An RQ-Transformer is not continued at all.
    """
    if rq_transformer_of(model) is not None:
        return
    causal = causal_model(model)
    name = type(causal).__name__
    kinds = set(getattr(causal.config.get_text_config(), "layer_types", None) or ()) - LAYER_KINDS
    if kinds:
        raise InputError(
            f"{name} has layers of kind {sorted(kinds)[0]}; decoding needs a model whose layers all attend."
        )
    if causal.config._attn_implementation not in ("sdpa", "eager"):
        raise InputError(
            f"{name} was loaded with {causal.config._attn_implementation} attention; load it with attn_implementation='sdpa' or 'eager'."
        )
    first = vocabulary.first_tokens
    ids = torch.tensor([[vocabulary.start_token, first[0]]], device=causal.device)
    expected = model(input_ids=ids).logits[0, -1].float()
    prefix = SharedPrefix(model, ids[:, :1], torch.ones_like(ids[:, :1]))
    hidden = prefix.extend(ids[:, 1:], torch.ones(1, 1, 1, dtype=torch.bool, device=ids.device), depth=1)
    tolerance = 1e-3 if expected.dtype == prefix.hidden.dtype else 0.1
    for level, size in enumerate(vocabulary.level_sizes):
        shared = vocabulary.level_logits(hidden[0], prefix.head, level)[0]
        plain = expected[first[level] : first[level] + size]
        if not torch.allclose(shared, plain, atol=tolerance * max(1.0, float(plain.abs().max())), rtol=0):
            raise InputError(
                f"{name} does more to its logits than decoding knows of; use a model whose logits are its head's, scaled or soft-capped."
            )
