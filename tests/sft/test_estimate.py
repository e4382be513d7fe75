"""The estimate before training: against arithmetic by hand, against the bytes of real tensors, against the figures in the configs."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_dirs import ROOT, make_run_dir, run_stage
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import SidVocabulary, item_log_probs
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.config import parse_configs
from sidrec.sft import train
from sidrec.sft.estimate import (
    Hardware,
    LevelWidth,
    ModelShape,
    activation_bytes,
    estimate_training,
    head_bytes,
    level_widths,
    sharding_of,
    show_bytes,
    state_bytes,
)
from sidrec.sft.settings import CONFIGS, WeightsConfig
from sidrec.sft.weights import with_adapters

KINDS = {"Qwen3": (Qwen3Config, Qwen3ForCausalLM), "Llama": (LlamaConfig, LlamaForCausalLM)}
TWO_LEVELS = [LevelWidth(16, 16)] * 2
MACHINE = Hardware("cpu", 1, "none", free=10**10, held=10**8)


def build(kind: str, layers: int = 2, tied: bool = True) -> PreTrainedModel:
    config, model = KINDS[kind]
    return model(
        config(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            tie_word_embeddings=tied,
        )
    )


def settings(**changed: object) -> SimpleNamespace:
    chosen = {
        "per_device_train_batch_size": 4,
        "bf16": False,
        "activation_checkpointing": False,
        "train_sampling_strategy": "random",
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2,
        "max_steps": -1,
    }
    return SimpleNamespace(**chosen | changed)


@pytest.mark.parametrize("tied", [True, False])
def test_states_are_the_bytes_of_real_tensors(tied):
    model = build("Qwen3", tied=tied)
    shape = ModelShape.of(model)
    weights, gradients, optimizer = state_bytes(shape, "none", 1, bf16=False)
    optimiser = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(10)[None]).logits.sum().backward()
    optimiser.step()
    tensors = list(model.parameters())
    moments = [value for entry in optimiser.state.values() for value in entry.values() if value.ndim]
    for predicted, tensors_of in (
        (weights, tensors),
        (gradients, [weight.grad for weight in tensors]),
        (optimizer, moments),
    ):
        assert predicted == sum(tensor.numel() * tensor.element_size() for tensor in tensors_of)
    assert shape.parameters == shape.trained == sum(weight.numel() for weight in tensors)
    assert shape.matrices == sum(
        m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)
    )
    assert shape.query_norm
    assert not ModelShape.of(build("Llama")).query_norm


@pytest.mark.parametrize("how", ["lora", "sid_rows"])
def test_only_the_trained_weights_have_gradients_and_states(how):
    model = with_adapters(build("Qwen3"), WeightsConfig(train_weights=how, lora_rank=4), list(range(300, 320)))
    shape = ModelShape.of(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert shape.trained == sum(weight.numel() for weight in trained) < shape.parameters
    assert state_bytes(shape, "none", 1, bf16=False)[1:] == (4 * shape.trained, 8 * shape.trained)
    assert shape.copied_rows == 320 * 64
    # the layers' matrices, and the adapters' (rows alone have one that does nothing)
    layers = 2 * (64 * 96 + 64 * 48 + 64 * 48 + 96 * 64 + 3 * 64 * 160)
    adapters = [weight for name, weight in model.named_parameters() if "lora_" in name]
    assert shape.matrices == layers + sum(weight.numel() for weight in adapters)
    assert any(weight.requires_grad for weight in adapters) == (how == "lora")


def test_states_divided_among_processes():
    shape = replace(ModelShape.of(build("Llama")), parameters=800, trained=800, weight_bytes=3200, trained_bytes=3200)
    by_hand = {
        ("none", False): (3200, 6400, 6400),
        ("zero1", False): (3200, 3200, 2400),
        ("zero2", False): (3200, 800, 2400),
        ("zero3", False): (800, 800, 2400),
        ("fsdp", False): (800, 800, 1600),
        ("zero1", True): (1600, 1600, 2400),
        ("zero2", True): (1600, 400, 2400),
        ("zero3", True): (400, 400, 2400),
    }
    for (sharding, bf16), expected in by_hand.items():
        assert state_bytes(shape, sharding, 4, bf16) == expected, sharding


def saved_bytes(model: PreTrainedModel, rows: int, length: int, bf16: bool) -> int:
    """Bytes of all tensors that autograd keeps of a forward pass, the weights and their bfloat16 copies left out."""
    weight_storages = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    copies = {tuple(weight.shape) for weight in model.parameters()} | {tuple(w.shape[::-1]) for w in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weight_storages and tuple(tensor.shape) not in copies:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        kept_alive = model(input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=False, logits_to_keep=1)
    assert kept_alive.logits.shape[:2] == (rows, 1)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_what_autograd_keeps(kind, bf16):
    rows, length = 2, 50
    per_layer = (saved_bytes(build(kind, 3), rows, length, bf16) - saved_bytes(build(kind, 1), rows, length, bf16)) / 2
    formula = activation_bytes(ModelShape.of(build(kind, 1)), rows * length, bf16, again=False)
    assert formula == pytest.approx(per_layer, rel=0.02)


@pytest.mark.parametrize("bf16", [False, True])
def test_adapters_with_dropout_keep_more(bf16):
    def build_lora(layers: int) -> PreTrainedModel:
        adapters = WeightsConfig(train_weights="lora", lora_rank=4, lora_dropout=0.05)
        return with_adapters(build("Llama", layers), adapters, list(range(300, 320))).train()

    per_layer = (saved_bytes(build_lora(3), 2, 50, bf16) - saved_bytes(build_lora(1), 2, 50, bf16)) / 2
    shape = ModelShape.of(build_lora(1))
    assert shape.dropped == 5 * 64 + 96 + 160
    assert activation_bytes(shape, 100, bf16, again=False) == pytest.approx(per_layer, rel=0.1)


def test_activation_checkpointing_keeps_the_layers_inputs_and_one_layer():
    shape = ModelShape.of(build("Llama", 5))
    one = activation_bytes(replace(shape, layers=1), 100, bf16=False, again=False)
    assert activation_bytes(shape, 100, bf16=False, again=True) == 5 * 100 * 64 * 4 + one


def test_logits_of_the_answers():
    shape = ModelShape.of(build("Llama"))
    # 12 tokens: 4 items of 3 codes, the last of a level of 600 codes of which a prefix has 5; 2 rows over 320 tokens of the vocabulary
    levels = [LevelWidth(10, 10), LevelWidth(20, 8), LevelWidth(600, 5)]
    by_hand = 4 * (10 * 17 + 8 * 17 + 5 * (13 + 4 * 64)) + 4 * 5 * 4 * 64 + 12 * 64 * 6 + 2 * 320 * 6
    assert head_bytes(12, 2, shape, levels, words=False) == by_hand
    assert head_bytes(12, 2, shape, levels, words=True) == by_hand + 512 * 320 * 12
    assert [level.is_sparse for level in levels] == [False, False, True]


@pytest.mark.parametrize("own_tokens", [False, True])
def test_what_is_kept_for_an_answer_is_what_autograd_keeps(own_tokens):
    hidden, answers, sizes = 24, 50, [50, 2000 if own_tokens else 40]
    items = torch.arange(2000)
    trie = SidTrie(torch.stack([items % 50, items if own_tokens else items // 50], dim=1), sizes)
    head, vocabulary = (
        OutputHead(torch.randn(sum(sizes), hidden, requires_grad=True)),
        SidVocabulary(0, (0, 50), tuple(sizes)),
    )
    states, saved = torch.randn(answers, 2, hidden, requires_grad=True), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        item_log_probs(states, torch.randint(0, 2000, (answers,)), head, vocabulary, trie)
    given = {tensor.untyped_storage().data_ptr() for tensor in (states, head.weight)}
    saved_by_autograd = sum(tensor.untyped_storage().nbytes() for at, tensor in saved.items() if at not in given)
    levels = level_widths(trie)
    assert levels == [LevelWidth(50, 50), LevelWidth(sizes[1], 40)]
    shape = replace(ModelShape.of(build("Llama")), hidden=hidden, vocabulary=0)
    at_work = answers * max(400, 40 * 4 * hidden if own_tokens else 320)
    formula = head_bytes(2 * answers, 0, shape, levels, words=False) - at_work - 6 * 2 * answers * hidden
    assert formula == pytest.approx(saved_by_autograd, rel=0.02)


def test_memory_is_the_sum_of_its_parts():
    shape, lengths = ModelShape.of(build("Llama")), np.array([30, 9, 30, 12])
    one = estimate_training(shape, settings(), lengths, TWO_LEVELS, MACHINE)
    assert one.memory == 16 * shape.parameters + one.activations + one.head + 10**8
    assert one.activations == activation_bytes(shape, 4 * 30, bf16=False, again=False)
    assert (one.tokens, one.longest) == (81, 30)
    bf16 = estimate_training(shape, settings(bf16=True), lengths, TWO_LEVELS, MACHINE)
    assert bf16.activations == activation_bytes(shape, 120, bf16=True, again=False) + 2 * shape.matrices


def test_the_warning_names_what_helps():
    shape, lengths = ModelShape.of(build("Llama")), np.full(8, 30)

    def warning(hardware: Hardware, **changed: object) -> str | None:
        return estimate_training(shape, settings(**changed), lengths, TWO_LEVELS, hardware).warning()

    assert warning(MACHINE) is None
    small = replace(MACHINE, free=10**8)
    assert "lower per_device_train_batch_size" in warning(small, per_device_train_batch_size=64)
    assert "set train_weights to lora" in warning(small, per_device_train_batch_size=1)
    assert "ZeRO-3" in warning(replace(small, processes=2), per_device_train_batch_size=1)
    assert "a process will need about 10" in warning(small)


def test_bytes_in_words():
    assert [show_bytes(n) for n in (5e5, 2e7, 1.25e9)] == ["0 MB", "20 MB", "1.2 GB"]


def test_what_the_launcher_divides():
    def accelerator(kind: str, stage: int = 0) -> SimpleNamespace:
        state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
        return SimpleNamespace(distributed_type=SimpleNamespace(value=kind), state=state)

    assert [sharding_of(accelerator(kind)) for kind in ("NO", "MULTI_GPU", "FSDP")] == ["none", "none", "fsdp"]
    assert [sharding_of(accelerator("DEEPSPEED", stage)) for stage in range(4)] == ["none", "zero1", "zero2", "zero3"]


def test_a_batch_of_items_is_as_many_rows_as_it_holds_of_the_longest():
    shape, lengths = ModelShape.of(build("Qwen3")), np.array([11, 41])
    rows = estimate_training(shape, settings(per_device_train_batch_size=4), lengths, TWO_LEVELS, MACHINE)
    items = estimate_training(shape, settings(), lengths, TWO_LEVELS, MACHINE, batch_tokens=4 * 41)
    assert (items.batch, items.memory) == (4, rows.memory)


def test_training_says_it_in_one_line(tmp_path, capsys):
    run_dir = make_run_dir(tmp_path / "run")
    run_stage(train, run_dir, max_steps=8)
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "item-KNN" not in line
    ]  # which it has not reached
    assert len(lines) == 3, "a line with the estimate, and two of the summary"
    assert re.fullmatch(
        r"sft: 0\.01M parameters on cpu in float32, about [\d.]+ [MG]B of [\d.]+ GB memory; 8 steps, about \d+ s to go",
        lines[0],
    )
    assert str(run_dir / "sft") in lines[2]
    log = (run_dir / "sft" / "log.txt").read_text(encoding="utf-8")
    assert log.index("memory of a process: ") < log.index('{"loss"')
    assert "warning: a process" not in log


NAMED = {
    "qwen3_0.6b": ("Qwen3", 151936, 1024, 3072, 28, 16, 8, 128),
    "qwen3_4b": ("Qwen3", 151936, 2560, 9728, 36, 32, 8, 128),
    "llama3.2_1b": ("Llama", 128256, 2048, 8192, 16, 32, 8, 64),
}
EXPECTATION = re.compile(r"^#   (\d) GPUs?((?:, \w+)*): (.+ GB)$", re.MULTILINE)


def named_shape(name: str, weights: WeightsConfig) -> ModelShape:
    """A model of the hub by its published widths, without its weights; 1,028 tokens are added, rows a multiple of 64."""
    kind, words, hidden, inner, layers, heads, keys, width = NAMED[name]
    config, model = KINDS[kind]
    with torch.device("meta"):
        built = model(
            config(
                vocab_size=-(-(words + 1028) // 64) * 64,
                hidden_size=hidden,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=keys,
                head_dim=width,
                tie_word_embeddings=True,
            )
        )
    return ModelShape.of(with_adapters(built, weights, list(range(words, words + 1028))))


@pytest.mark.parametrize("name", list(NAMED))
def test_the_configs_of_named_models_state_what_the_estimate_says(name):
    path = ROOT / "configs" / "sft" / f"{name}.yaml"

    _, _, _, weights, training = parse_configs(CONFIGS, ["--config", str(path)])
    stated = EXPECTATION.findall(path.read_text(encoding="utf-8"))
    assert len(stated) == 3
    training.bf16 = True  # as on those GPUs
    for processes, words, memory in stated:
        chosen = replace(weights, train_weights="full") if "full" in words else weights
        machine = Hardware("cuda", int(processes), "zero2" if "zero2" in words else "none", 0, 0)
        lengths, levels = np.full(50_000, 801), [LevelWidth(256, 256)] * 4
        estimate = estimate_training(named_shape(name, chosen), training, lengths, levels, machine)
        assert memory == show_bytes(estimate.memory)
