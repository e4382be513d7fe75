"""A model whose weights are split over the processes (DeepSpeed ZeRO-3, FSDP2), with all of its weights in every process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config
from trl.models import unwrap_model_for_generation

from sidrec.pipeline.errors import InputError


@contextmanager
def whole_model(trainer: Any) -> Iterator[nn.Module]:
    """A trainer's bare model to recommend with, as often as each process likes; where weights are split, put together for the time.

    All processes enter and leave together: a forward of a split model is a meeting of all of them. Each must have room for all weights.
    """
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
        yield _whole_copy(model) if isinstance(model, FSDPModule) else model


@torch.no_grad()
def _whole_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of an FSDP2 model without its hooks, which would take every forward for a step of training."""
    weights = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    with torch.device("meta"):
        copy = AutoModelForCausalLM.from_config(model.config, attn_implementation=model.config._attn_implementation)
    copy.load_state_dict(weights, assign=True)
    copy.tie_weights()
    for name, buffer in model.named_buffers():  # the rotary frequencies, which are not saved
        module, _, leaf = name.rpartition(".")
        copy.get_submodule(module).register_buffer(leaf, buffer, persistent=False)
    return copy.eval()


def refuse_adapters_in_parts(train_weights: str) -> None:
    """Raise InputError when adapters are to be trained while weights are split: PEFT puts new tokens' rows into a whole matrix.

    Asked before `load_whole`.
    """
    if train_weights != "full" and (is_deepspeed_zero3_enabled() or os.environ.get("ACCELERATE_USE_FSDP") == "true"):
        raise InputError(
            f"train_weights={train_weights} needs whole weights, which ZeRO-3 and FSDP split; "
            "use `--config_file configs/accelerate/zero2.yaml`."
        )


def load_whole() -> None:
    """From here on models are loaded whole in every process, and split when training starts: SID tokens' rows start from whole rows."""
    unset_hf_deepspeed_config()
