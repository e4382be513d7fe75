"""What memory a training run will need, said before it starts.

Pure functions of numbers: what is known to be kept is counted, weights, gradients, AdamW's two moments, and what autograd saves of a
forward pass (the formulas of Qwen and Llama layers as transformers 5 runs them). Time is measured from the first steps, in sft/progress.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch import nn
from transformers import TrainingArguments

from sidrec.decoding.output_head import WORDS_AT_ONCE, causal_model
from sidrec.decoding.policy import is_sparse
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.decoding.trie import SidTrie

# none: every process holds everything. zero1: optimizer states divided among the processes; zero2: gradients too; zero3, fsdp: weights too
Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp"]
GIGABYTE = 1e9


@dataclass(frozen=True)
class ModelShape:
    """What the formulas need of a decoder.

    parameters, trained: numbers of them, a shared matrix once. weight_bytes: as the model is held now. trained_bytes: of the trained
    ones. matrices: parameters of the matrices in the layers, each used once a token.
    query, key: width of all query heads, of all key heads. query_norm: whether queries and keys are normalised (Qwen3). copied_rows:
    parameters of an embedding of which only some rows are trained, 0 where none is. dropped: widths, summed, of what LoRA's adapters
    draw dropout on.
    """

    parameters: int
    trained: int
    weight_bytes: int
    trained_bytes: int
    matrices: int
    layers: int
    hidden: int
    query: int
    key: int
    inner: int
    vocabulary: int
    query_norm: bool = False
    copied_rows: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> ModelShape:
        """The shape of a causal language model, bare or wrapped by PEFT, on any device."""
        causal = causal_model(model)
        config = causal.config.get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        tables = [causal.get_input_embeddings(), causal.get_output_embeddings(), getattr(causal, "nodes", None)]
        table_ids = {id(weight) for table in tables if table is not None for weight in table.parameters()}
        weights = list(model.parameters())
        matrices = [weight for weight in weights if _dimensions(weight) == 2 and id(weight) not in table_ids]
        trained = [weight for weight in weights if weight.requires_grad]
        only_rows = any(type(table).__name__ == "TrainableTokensWrapper" for table in tables)
        drops = [module for name, module in model.named_modules() if name.endswith("lora_dropout")]
        widths = [module.in_features for name, module in model.named_modules() if name.endswith("lora_A.default")]
        return cls(
            parameters=sum(map(_size, weights)),
            trained=sum(map(_size, trained)),
            weight_bytes=sum(_size(weight) * weight.element_size() for weight in weights),
            trained_bytes=sum(_size(weight) * weight.element_size() for weight in trained),
            matrices=sum(map(_size, matrices)),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            query=heads * width,
            key=(getattr(config, "num_key_value_heads", None) or heads) * width,
            inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            vocabulary=config.vocab_size,
            query_norm=any(name.endswith("q_norm") for name, _ in causal.named_modules()),
            copied_rows=config.vocab_size * config.hidden_size if only_rows else 0,
            dropped=sum(widths)
            if any(isinstance(part, nn.Dropout) for drop in drops for part in drop.children())
            else 0,
        )


@dataclass(frozen=True)
class LevelWidth:
    """codes: of a level of the semantic IDs; children: the most of them that a prefix has."""

    codes: int
    children: int

    @property
    def is_sparse(self) -> bool:
        """Whether the level is worked on child by child."""
        return is_sparse(self.codes, self.children)


def level_widths(trie: SidTrie) -> list[LevelWidth]:
    return [LevelWidth(size, trie.widest(depth)) for depth, size in enumerate(trie.level_sizes)]


@dataclass(frozen=True)
class Hardware:
    """One process's part of the machine.

    kind: "cpu" or "cuda". free: bytes that the process may come to hold, what it holds now included. held: bytes it holds now beside the
    weights.
    """

    kind: str
    processes: int
    sharding: Sharding
    free: int
    held: int


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process, at the worst moment. tokens: of all rows. longest: of the longest row. batch: rows."""

    shape: ModelShape
    hardware: Hardware
    tokens: int
    longest: int
    batch: int
    bf16: bool
    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def memory(self) -> int:
        """Bytes a process will hold at its worst moment."""
        parts = self.weights + self.gradients + self.optimizer + self.activations + self.head
        return parts + self.hardware.held

    def in_words(self) -> str:
        """What is trained, where, in how much memory."""
        shape, machine = self.shape, self.hardware
        trained = "" if shape.trained == shape.parameters else f", {shape.trained / 1e6:.2f}M of them trained,"
        processes = f"{machine.processes} processes on " if machine.processes > 1 else ""
        spread = "" if machine.sharding == "none" else f", divided by {machine.sharding}"
        return (
            f"{shape.parameters / 1e6:.2f}M parameters{trained} on {processes}{machine.kind} in {'bfloat16' if self.bf16 else 'float32'}"
            f"{spread}, about {show_bytes(self.memory)} of {show_bytes(machine.free)} memory"
        )

    def details(self) -> str:
        """What the memory is for."""
        return (
            f"memory of a process: {show_bytes(self.memory)} of {show_bytes(self.hardware.free)} (weights {show_bytes(self.weights)}, "
            f"gradients {show_bytes(self.gradients)}, AdamW {show_bytes(self.optimizer)}, activations of {self.batch} rows of "
            f"{self.longest} tokens {show_bytes(self.activations)}, answers' logits {show_bytes(self.head)}, programs "
            f"{show_bytes(self.hardware.held)}); {self.tokens / 1e6:.2f}M tokens an epoch"
        )

    def warning(self) -> str | None:
        """One sentence when the memory will not do, with what to change; None when it will."""
        if self.memory <= self.hardware.free:
            return None
        if self.activations + self.head > self.weights + self.gradients + self.optimizer:
            remedy = "lower per_device_train_batch_size (and raise gradient_accumulation_steps), or set activation_checkpointing"
        elif self.hardware.processes > 1 and self.hardware.sharding in ("none", "zero1", "zero2"):
            remedy = "divide the weights among the processes (ZeRO-3 or FSDP), or set train_weights to lora"
        else:
            remedy = "set train_weights to lora, take more processes under ZeRO-3 or FSDP, or take a smaller model"
        return f"warning: a process will need about {show_bytes(self.memory)} and has {show_bytes(self.hardware.free)}; {remedy}."


def estimate_training(
    shape: ModelShape,
    training: TrainingArguments,
    row_tokens: np.ndarray,
    levels: Sequence[LevelWidth],
    hardware: Hardware,
    words: bool = False,
    batch_tokens: int | None = None,
) -> Estimate:
    """What `training` will need. row_tokens: integers [rows], tokens of every training row. words: some answers are texts. batch_tokens:
    of a process's batch, where it is not a number of rows."""
    bf16, longest = bool(training.bf16), int(np.max(row_tokens))
    batch = training.per_device_train_batch_size if batch_tokens is None else max(1, batch_tokens // longest)
    weights, gradients, optimizer = state_bytes(shape, hardware.sharding, hardware.processes, bf16)
    # autocast's, kept for the backward pass
    copies = 2 * shape.matrices if bf16 and not hardware.sharding.startswith("zero") else 0
    activations = activation_bytes(shape, batch * longest, bf16, again=bool(training.activation_checkpointing))
    return Estimate(
        shape=shape,
        hardware=hardware,
        tokens=int(np.sum(row_tokens)),
        longest=longest,
        batch=batch,
        bf16=bf16,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations + copies + 12 * shape.copied_rows,
        head=head_bytes(batch * longest, batch, shape, levels, words),
    )


def estimate_of(trainer: Any, row_tokens: Sequence[int], words: bool) -> Estimate:
    """The estimate of a trainer that is about to train rows of these lengths on this machine as it is now."""
    shape, lengths = ModelShape.of(trainer.model), np.asarray(row_tokens)
    hardware = measure_hardware(trainer.accelerator, shape)
    n_levels, batch_items = trainer.trie.n_levels, getattr(trainer.batches, "batch_items", None)
    batch_tokens = None if batch_items is None else batch_items * n_levels // hardware.processes
    levels = level_widths(trainer.trie)
    estimate = estimate_training(shape, trainer.args, lengths, levels, hardware, words, batch_tokens)
    if rq_transformer_of(trainer.model) is None:
        return estimate
    positions, bf16 = estimate.batch * estimate.longest // n_levels, estimate.bf16
    per_item = activation_bytes(shape, 1, bf16, again=False) + smoothing_bytes(shape, estimate.longest // n_levels)
    table = 4 * shape.hidden * sum(trainer.trie.n_nodes[1:]) * 3
    scores = positions * trainer.trie.n_items * (2 if bf16 else 4)
    return replace(estimate, activations=positions * per_item, head=table + scores)


def smoothing_bytes(shape: ModelShape, longest: int) -> int:
    """Bytes that autograd keeps an item of the smoothing branches: a sum for each doubling up to the longest history."""
    return 4 * shape.hidden * shape.layers * (longest.bit_length() + 2)


def state_bytes(shape: ModelShape, sharding: Sharding, processes: int, bf16: bool) -> tuple[int, int, int]:
    """Bytes of weights, of gradients and of AdamW's states in one process.

    DeepSpeed trains bfloat16 weights under bf16, and keeps a float32 copy of its part beside the two moments; all else trains the
    float32 weights themselves. Processes that divide nothing hold their gradients twice: in place and in buckets to be sent.
    """
    parts = processes
    if sharding == "none":
        return shape.weight_bytes, shape.trained_bytes * (2 if processes > 1 else 1), 8 * shape.trained
    if sharding == "fsdp":
        return shape.weight_bytes // parts, shape.trained_bytes // parts, 8 * shape.trained // parts
    weights = 2 * shape.parameters if bf16 else shape.weight_bytes
    gradients = 2 * shape.trained if bf16 else shape.trained_bytes
    weights = weights // parts if sharding == "zero3" else weights
    gradients = gradients if sharding == "zero1" else gradients // parts
    return weights, gradients, 12 * shape.trained // parts


def activation_bytes(shape: ModelShape, tokens: int, bf16: bool, again: bool) -> int:
    """Bytes that autograd keeps of `tokens` tokens in the decoder's layers. again: activation checkpointing.

    A layer keeps, per token, the inputs and normalised inputs of its two norms and what they give (6 of the model's width), queries
    and what attention gives, keys and values (twice each), and four of the inner width; queries and keys twice more where they are
    normalised. Under bf16 the norms stay float32, and every product keeps its own bfloat16 input. An
    adapter's dropout keeps its mask and what it gives, about.
    """
    hidden, query, key, inner = shape.hidden, shape.query, shape.key, shape.inner
    if bf16:
        layer = 26 * hidden + 4 * query + 4 * key + 8 * inner + (6 * (query + key) if shape.query_norm else 0)
    else:
        layer = 4 * (6 * hidden + 2 * query + 2 * key + 4 * inner + (2 * (query + key) if shape.query_norm else 0))
    layer += shape.dropped // shape.layers * (4 if bf16 else 5)
    if again:
        return tokens * (4 * hidden * shape.layers + layer)
    return tokens * layer * shape.layers


def head_bytes(tokens: int, rows: int, shape: ModelShape, levels: Sequence[LevelWidth], words: bool) -> int:
    """Bytes of the answers' states, logits and log-probabilities, were every token of a batch a code that is asked for.

    For each code that may come next autograd keeps 17 bytes (its number, logit, log-probability and mask), or, in a level worked on
    child by child, 13 and its row of the head. While a level is worked on there are its logits and their gradients, or the rows'. The
    model's own forward gives one row of the vocabulary's logits a row of the batch. words: also a block of answers in words.
    """
    answers, row_bytes = tokens // len(levels), 4 * shape.hidden
    saved = answers * sum((13 + row_bytes if level.is_sparse else 17) * level.children for level in levels)
    at_work = answers * max(row_bytes * level.children if level.is_sparse else 8 * level.codes for level in levels)
    text = 12 * WORDS_AT_ONCE * shape.vocabulary if words else 0
    return saved + at_work + 6 * tokens * shape.hidden + 6 * rows * shape.vocabulary + text


def measure_hardware(accelerator: Any, shape: ModelShape) -> Hardware:
    """The machine as it is now. accelerator: accelerate's, of the trainer."""
    kind = "cuda" if accelerator.device.type == "cuda" else "cpu"
    if kind == "cuda":
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        held = 0
    else:
        resident = psutil.Process().memory_info().rss
        neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        free = psutil.virtual_memory().available // neighbours + resident
        held = max(0, resident - shape.weight_bytes)
    return Hardware(kind, accelerator.num_processes, sharding_of(accelerator), free, held)


def sharding_of(accelerator: Any) -> Sharding:
    """What the launcher's config divides among the processes."""
    kind = str(accelerator.distributed_type.value)
    if kind == "FSDP":
        return "fsdp"
    if kind != "DEEPSPEED":
        return "none"
    stages: dict[int, Sharding] = {0: "none", 1: "zero1", 2: "zero2", 3: "zero3"}
    return stages[int(accelerator.state.deepspeed_plugin.zero_stage)]


def show_bytes(n: float) -> str:
    """`n` bytes for a reader: MB below one GB."""
    return f"{n / GIGABYTE:.1f} GB" if n >= GIGABYTE else f"{n / 1e6:.0f} MB"


def _size(weight: nn.Parameter) -> int:
    """Numbers in a parameter; ZeRO-3 leaves it empty and keeps its size aside."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def _dimensions(weight: nn.Parameter) -> int:
    return len(getattr(weight, "ds_shape", weight.shape))
