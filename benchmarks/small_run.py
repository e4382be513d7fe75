"""A run directory so small that each of its stages takes seconds, for benchmarks that run stages many times."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.harness import EMBED, EVALUATE, PREPARE, QUANTIZE, RL, SFT
from sidrec.pipeline.files import read_json, sha256

N_USERS, N_ITEMS, MOST_EVENTS = 60, 48, 14
THINGS = ("tea", "lamp", "boot", "drum")  # an item is one of them, with a number


@dataclass(frozen=True)
class Kind:
    """A stage: its command without --run_dir, the folders it reads, and the files that are its result."""

    command: list[str]
    reads: tuple[str, ...]
    result: tuple[str, ...]


def kinds(raw: Path) -> dict[str, Kind]:
    """The stages by name, in their order, small. raw: the folder with the files of `write_raw`."""
    own_data = ["--dataset", "own", "--interactions", str(raw / "log.csv"), "--items", str(raw / "items.csv")]
    vectors = ["--text_dim", "8", "--collaborative_dim", "8"]
    training = shlex.split(
        "--learning_rate 0.01 --eval_strategy steps --save_strategy steps --logging_steps 1 --valid_users 60 --bf16 false --use_cpu true "
        "--disable_tqdm true"
    )
    scratch = shlex.split(
        "--architecture qwen3 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --intermediate_size 24 --max_items 12"
    )
    sft = shlex.split("--per_device_train_batch_size 8 --max_steps 12 --eval_steps 4 --save_steps 4")
    rl = shlex.split("--per_device_train_batch_size 32 --num_generations 8 --max_steps 6 --eval_steps 2 --save_steps 2")
    prepared, tokenized = ("data",), ("data", "embeddings", "sid")
    return {
        "data": Kind(
            [*PREPARE, *own_data, "--k_user", "1", "--k_item", "1"], (), ("items.parquet", "interactions.parquet")
        ),
        "embeddings": Kind([*EMBED, *vectors], prepared, ("text.npy", "collaborative.npy")),
        "sid": Kind(
            [*QUANTIZE, *vectors, "--level_sizes", "8", "8"],
            ("data", "embeddings"),
            ("codes_all.npy", "codebooks.npz", "sid.json"),
        ),
        "sft": Kind([*SFT, *scratch, *sft, *training], tokenized, ("model.safetensors",)),
        "rl": Kind([*RL, *rl, *training], (*tokenized, "sft"), ("model.safetensors",)),
        "evaluation": Kind(
            [*EVALUATE, "--models", "popularity", "item_knn", "sft"],
            (*tokenized, "sft"),
            ("metrics.json", "ranks.parquet", "table.md"),
        ),
    }


def write_raw(folder: Path) -> None:
    """log.csv and items.csv of a catalogue in four kinds; each user stays with one of them, mostly."""
    rng = np.random.default_rng(0)
    events = []
    for user in range(N_USERS):
        kind = np.where(rng.random(MOST_EVENTS) < 0.8, user % 4, rng.integers(0, 4, MOST_EVENTS))
        items = np.unique(4 * rng.integers(0, N_ITEMS // 4, MOST_EVENTS) + kind)
        events += [
            (f"u{user}", f"i{item}", 1_500_000_000 + 60 * step) for step, item in enumerate(rng.permutation(items))
        ]
    pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    titles = [f"{THINGS[item % 4]} number {item // 4}" for item in range(N_ITEMS)]
    pl.DataFrame({"item_id": [f"i{item}" for item in range(N_ITEMS)], "title": titles}).write_csv(folder / "items.csv")


def write_language_model(folder: Path) -> None:
    """A language model that has learnt nothing, for the titles of `write_raw`: what `--model_name_or_path` names."""
    words = ["<unk>", "<end>", *THINGS, "number", *(str(number) for number in range(N_ITEMS // 4))]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)


def output_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file that a stage's manifest lists and that is there, by name; nothing for a stage that is not finished."""
    manifest = folder / "manifest.json"
    if not manifest.exists() or not read_json(manifest)["finished"]:
        return {}
    return {name: sha256(folder / name) for name in read_json(manifest)["outputs"] if (folder / name).exists()}
