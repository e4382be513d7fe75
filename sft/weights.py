"""Which weights are trained: all of them, LoRA adapters and the new rows, or the new rows alone; and the plain model after it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel

from sidrec.sft.settings import WeightsConfig


def with_adapters(model: PreTrainedModel, config: WeightsConfig, new_tokens: list[int]) -> PreTrainedModel | PeftModel:
    """`model` with what `train_weights` names as its only trainable weights; the model itself for `full`.

    new_tokens: token ids whose rows are trained in the embedding and in the head, which may be the same matrix.
    """
    if config.train_weights == "full":
        return model
    _give_token_rows_a_bias()
    embedding, head = _name_of(model, model.get_input_embeddings()), _name_of(model, model.get_output_embeddings())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    matrices = [embedding] if tied else [embedding, head]
    everywhere = config.train_weights in ("lora", "dora")
    # PEFT has no adapter for token rows alone that TRL takes: for them, one of rank 1 that stays at zero, on one layer
    first_linear = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    lora = LoraConfig(
        r=config.lora_rank if everywhere else 1,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout if everywhere else 0,
        use_dora=config.train_weights == "dora",
        target_modules="all-linear" if everywhere else [first_linear],  # never the head
        trainable_token_indices=dict.fromkeys(matrices, new_tokens),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, lora)
    # PEFT would write every row of a table that has grown; those that are trained are among the adapter's weights anyway
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    if not everywhere:
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(False)
    return adapted


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    """The last part of the name of a module, which is how PEFT finds it."""
    return next(name for name, module in model.named_modules() if module is wanted).rpartition(".")[2]


def _give_token_rows_a_bias() -> None:
    """PEFT 0.21 wraps a head whose rows are trained without passing on its bias, which TRL 1.16 asks every head for."""
    TrainableTokensWrapper.bias = property(lambda wrapper: wrapper.token_adapter.base_layer.bias)


def merge(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """`base` (the model that training began with, its SID tokens added) with a saved adapter's weights merged into its own."""
    return PeftModel.from_pretrained(base, adapter).merge_and_unload()
