"""The output head: from a decoder's hidden states to the logits that the model itself would give, for as few tokens as are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

Computed = TypeVar("Computed", Tensor, tuple[Tensor, ...])

CPU_CHUNK = 1 << 18  # logits held at once while all tokens are summed over: 1 MB stays in a core's cache
GPU_CHUNK = 1 << 26  # 256 MB: few launches
WORDS_AT_ONCE = (
    512  # tokens whose logits over the whole vocabulary are held at once: 300 MB for a vocabulary of 152,000
)


@dataclass(frozen=True)
class OutputHead:
    """weight: [V, H], bias: [V]; `module` instead of both where only the whole head can be run (a LoRA on it, say).

    scale multiplies the logits (Cohere, Granite); softcap c then turns each z into c · tanh(z / c) (Gemma 2). owner: the module that
    holds weight and bias, where they are a model's.
    """

    weight: Tensor | None
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    module: nn.Module | None = None
    owner: Any = None

    @classmethod
    def of(cls, model: nn.Module) -> OutputHead:
        """The head of a causal language model, bare or wrapped by PEFT (adapters need not be merged)."""
        causal = causal_model(model)
        module = causal.get_output_embeddings()
        config = causal.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        if type(module) is nn.Linear or (isinstance(module, nn.Linear) and isinstance(module, FSDPModule)):
            return cls(module.weight, module.bias, softcap, scale, owner=module)
        from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

        if isinstance(module, TrainableTokensWrapper) and module.original_module.bias is None:
            return cls(module.weight, None, softcap, scale)  # its weight is the merged one
        if isinstance(module, ModulesToSaveWrapper) and len(module.active_adapters) == 1:
            active = module.modules_to_save[module.active_adapters[0]]
            return cls(active.weight, active.bias, softcap, scale, owner=active)
        return cls(None, None, softcap, scale, module)

    def call(self, compute: Callable[[OutputHead, Tensor], Computed], hidden: Tensor) -> Computed:
        """`compute(head, hidden)`, where `head` has its whole weight, also while each process holds only a part of every parameter.

        ZeRO-3 and FSDP2 put a module's parameters together for its forward and its backward, by hooks on its call. So `compute` is
        run as the forward of the head's module: what it returns must be tensors that depend on `hidden`.
        """
        owner = self.owner
        if owner is None or not _is_split(owner.weight):
            return compute(self if owner is None else self._with_present_weights(), hidden)
        owner.forward = lambda inputs: compute(self._with_present_weights(), inputs)
        try:
            return owner(hidden)
        finally:
            del owner.forward

    def _with_present_weights(self) -> OutputHead:
        """This head with the tensors that its module holds at this moment: FSDP2 exchanges them."""
        if self.owner.weight is self.weight:
            return self
        return replace(self, weight=self.owner.weight, bias=self.owner.bias)

    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """float32 [..., last - first]: logits of the tokens first … last - 1. hidden: [..., H]."""
        if self.module is not None:
            logits = self.module(hidden)[..., first:last]
        else:
            assert self.weight is not None
            bias = None if self.bias is None else self.bias[first:last]
            logits = nn.functional.linear(hidden, self.weight[first:last], bias)
        return self._scaled_and_capped(logits)

    def logits_at(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """float32 [R, B, M]: logits of the tokens, int64 [R, M], that row r's B states may be followed by. hidden: [R, B, H].

        Takes R · M · H numbers of memory.
        """
        assert self.weight is not None, "a head that only runs whole has no rows to pick"
        logits = torch.bmm(hidden, nn.functional.embedding(tokens, self.weight).transpose(1, 2))
        return self._scaled_and_capped(logits if self.bias is None else logits + self.bias[tokens][:, None])

    def _scaled_and_capped(self, logits: Tensor) -> Tensor:
        """Scaled and soft-capped, float32."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()

    def log_sum(self, hidden: Tensor) -> Tensor:
        """float32 [R]: logsumexp of the logits of all V tokens, a part of them at a time. hidden: [R, H]."""
        if self.weight is None:
            return self.logits(hidden, 0, torch.iinfo(torch.int64).max).logsumexp(-1)
        at_once = CPU_CHUNK if hidden.device.type == "cpu" else GPU_CHUNK
        n_tokens, chunk = len(self.weight), max(1024, at_once // max(1, len(hidden)))
        parts = [
            self.logits(hidden, first, min(first + chunk, n_tokens)).logsumexp(-1)
            for first in range(0, n_tokens, chunk)
        ]
        return torch.stack(parts, dim=1).logsumexp(-1)

    def token_log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """float32 [R]: log-softmax over the whole vocabulary at `tokens`, int64 [R]. hidden: [R, H].

        A part of the rows at a time; where a gradient is wanted, the parts are computed again for it, so that no two lie in memory.
        """
        return torch.cat(
            [
                checkpoint(self._token_log_probs, *part, use_reentrant=False)
                for part in zip(hidden.split(WORDS_AT_ONCE), tokens.split(WORDS_AT_ONCE), strict=True)
            ]
        )

    def _token_log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = self.logits(hidden, 0, torch.iinfo(torch.int64).max)
        return logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def _is_split(weight: Tensor) -> bool:
    """Whether a parameter is one of ZeRO-3 (DeepSpeed marks it) or of FSDP2, of which a process holds a part."""
    return "ds_id" in vars(weight) or isinstance(weight, DTensor)


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The language model itself: `model`, or what PEFT (or another wrapper) has wrapped, its adapters still in place."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))
