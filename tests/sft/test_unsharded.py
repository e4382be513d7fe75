"""A loss computed inside the head's own call, and the copy of a split model, where nothing is split; tests/test_launchers.py splits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sidrec.decoding.output_head import OutputHead
from sidrec.pipeline.errors import InputError
from sidrec.sft import unsharded as whole_model
from sidrec.sft.backbone import scratch_qwen3
from sidrec.sft.settings import BackboneConfig
from sidrec.sft.unsharded import _whole_copy, refuse_adapters_in_parts


@pytest.fixture
def model():
    return scratch_qwen3(
        BackboneConfig(
            architecture="qwen3", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        seed=0,
    )


def test_the_heads_hooks_run_around_a_loss_only_when_its_weight_is_split(model, monkeypatch):
    """As ZeRO-3 gathers: the module's weight is whole between its two hooks, and empty outside."""
    module, hidden = model.get_output_embeddings(), torch.randn(5, 16)
    weight = module.weight.data
    head, shapes = OutputHead.of(model), []

    def loss(whole: OutputHead, states: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(whole.weight.shape))
        return whole.logits(states, 3, 7)

    expected = head.call(loss, hidden)
    monkeypatch.setattr("sidrec.decoding.output_head._is_split", lambda _: True)
    module.weight.data = torch.empty(0)
    module.register_forward_pre_hook(lambda *_: setattr(module.weight, "data", weight))
    module.register_forward_hook(lambda *_: setattr(module.weight, "data", torch.empty(0)))
    assert torch.equal(head.call(loss, hidden), expected)
    assert shapes == [tuple(weight.shape)] * 2
    assert len(module.weight) == 0
    with pytest.raises(ZeroDivisionError):
        head.call(lambda *_: 1 / 0, hidden)
    assert type(module).forward is nn.Linear.forward
    assert "forward" not in vars(module)


def test_a_head_takes_the_weight_that_its_module_holds_when_it_is_called(model):
    """FSDP2 exchanges the parameter between the making of the head and the loss."""
    head = OutputHead.of(model)
    weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.lm_head.weight = weight
    assert head.call(lambda whole, _: whole.weight, torch.zeros(1, 16)) is weight


def test_the_whole_copy_is_the_model(model):
    ids = torch.randint(0, 258, (2, 7))
    copy = _whole_copy(model)
    assert torch.equal(copy(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert copy.get_output_embeddings().weight is copy.get_input_embeddings().weight
    assert not any(parameter.is_meta for parameter in [*copy.parameters(), *copy.buffers()])


def test_adapters_are_refused_where_weights_are_split(monkeypatch):
    for train_weights in ("full", "lora", "sid_rows"):
        refuse_adapters_in_parts(train_weights)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refuse_adapters_in_parts("full")
    with pytest.raises(InputError, match=r"train_weights=lora needs whole weights.*zero2\.yaml"):
        refuse_adapters_in_parts("lora")
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setattr(whole_model, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(InputError, match="train_weights=sid_rows needs whole weights"):
        refuse_adapters_in_parts("sid_rows")
