"""Small run directories, and the entry points called in this process or as a user calls them."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers as tf
from conftest import make_sids
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer

from sidrec.data.dataset import Dataset
from sidrec.data.filters import LEFT_OUT
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.stage import Stage
from sidrec.rl import grpo, practice
from sidrec.sft import fine_tuning, train
from sidrec.tokenizer.config import TokenizerConfig, parse_arguments
from sidrec.tokenizer.semantic_ids import SemanticIds

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ["red", "blue", "green", "black", "white", "golden"]
THINGS = ["tea", "lamp", "boot", "drum", "rope", "vase", "coin", "harp", "kite", "sled"]
N_ITEMS = len(COLOURS) * len(THINGS)
N_USERS = 60
LEVEL_SIZES = [4, 4, 5]
LEFT_OUT_ROWS = [
    ("user", "rare", None, "k_core", 2),
    ("item", "i60", "The silver spoon (2001)", "k_core", 1),
    ("item", "i61", "The silver bell (2002)", "not_taken", 0),
]

WORDS = ["<unk>", "<end>", *(f"word{i}" for i in range(38))]

SFT_FLAGS: dict[str, object] = {
    "architecture": "qwen3",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "dropout": 0.1,
    "vocabulary_loss_weight": 0,
    "max_items": 12,
    "per_device_train_batch_size": 8,
    "learning_rate": 0.02,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0,
    "adam_beta2": 0.98,
    "max_grad_norm": 1,
    "train_sampling_strategy": "group_by_length",
    "max_steps": 12,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 4,
}
RQ_FLAGS: dict[str, object] = {"architecture": "rq_transformer", "batch_items": 96, "item_dropout": 0.1}
RL_FLAGS: dict[str, object] = {
    "num_generations": 8,
    "per_device_train_batch_size": 32,
    "positions_per_user": 2,
    "open_questions": "false",
    "early_stopping_patience": 0,
    "learning_rate": 0.003,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "objective": "dr_grpo",
    "draw": "gumbel",
    "importance_weights": "true",
    "inject_target": "false",
    "rewards": ["exact_hit", "prefix_credit"],
    "reward_weights": [1, 0.2],
    "kl_weight": 0,
    "sft_loss_weight": 0,
    "token_credit": 0,
    "max_steps": 6,
    "eval_steps": 2,
    "save_steps": 2,
}
# every field that decides a result is set here, so that the defaults may change
COMMON_FLAGS = {
    "valid_users": 500,
    "bf16": "false",
    "logging_steps": 1,
    "seed": 0,
    "disable_tqdm": "true",
    "use_cpu": "true",
}


def valid_figures(recall: float, ndcg: float = 0.0, deep_recall: float = 0.5) -> dict[str, float]:
    """What a measurement on the valid cases gives."""
    return {"eval_recall@10": recall, "eval_ndcg@10": ndcg, "eval_recall@50": deep_recall}


def small_dataset() -> Dataset:
    """60 items in six rings of ten, one a colour, red by far the most liked; each of 60 users walks along one ring, mostly to the
    next item. A user's last two steps are valid and test."""
    rng = np.random.default_rng(0)
    titles = [f"The {colour} {thing} ({1980 + i})" for i, colour in enumerate(COLOURS) for thing in THINGS]
    rows = []
    for user in range(N_USERS):
        length = int(rng.integers(5, 16))
        steps = np.where(rng.random(length) < 0.9, 1, rng.integers(2, 9, length))
        ring = rng.choice(len(COLOURS), p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
        walk = 10 * ring + (rng.integers(10) + steps.cumsum()) % 10
        splits = ["train"] * (length - 2) + ["valid", "test"]
        rows += [(f"u{user}", int(item), t, split) for t, (item, split) in enumerate(zip(walk, splits, strict=True))]
    items = {
        "item_id": [f"i{i}" for i in range(N_ITEMS)],
        "item_index": range(N_ITEMS),
        "title": titles,
        "text": titles,
    }
    interactions = pl.DataFrame(rows, schema=["user_id", "item_index", "timestamp", "split"], orient="row")
    info = {"name": "rings", "protocol": "leave_one_out", "k_core": {"k_user": 5, "k_item": 5}}
    return Dataset(pl.DataFrame(items), interactions, info, pl.DataFrame(LEFT_OUT_ROWS, LEFT_OUT, orient="row"))


def write_sid_stage(run_dir: Path, seed: int = 0, vectors: tuple[Path, ...] = ()) -> None:
    """Unique SIDs in lexicographic order, so that items of one ring share first codes; another `seed` is another SID set. vectors: files
    that the stage names as its inputs, too."""
    drawn = make_sids(N_ITEMS, LEVEL_SIZES, seed)
    codes = np.unique(drawn.codes, axis=0)
    stage = Stage(run_dir, "sid", {"seed": seed}, (run_dir / "data" / "items.parquet", *vectors))
    with stage.building(overwrite=True) as folder:
        SemanticIds(codes, codes, drawn.codebooks).save(folder)


def make_run_dir(run_dir: Path) -> Path:
    """A run directory with finished `data` and `sid` stages."""
    stage = Stage(run_dir, "data", {"dataset": "rings"})
    with stage.building() as folder:
        small_dataset().save(folder)
    write_sid_stage(run_dir)
    return run_dir


def stage_configs(kinds: tuple[type, ...], arguments: list[str]) -> tuple[Any, ...]:
    """What a stage makes of its arguments; the tokenizer reads `--quantizer` first."""
    if kinds[0] is TokenizerConfig:
        return parse_arguments(arguments, stage="sid")
    return parse_configs(kinds, arguments)


def flags(module: Any, run_dir: Path, **changed: object) -> list[str]:
    """The command line of a small run of `sidrec.sft.train` or `sidrec.rl.grpo`."""
    chosen = {"run_dir": run_dir} | {train: SFT_FLAGS, grpo: RL_FLAGS}[module] | COMMON_FLAGS | changed
    words: list[str] = []
    for name, value in chosen.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run_stage(
    module: Any, run_dir: Path, at_end: Callable[[Trainer], None] | None = None, **changed: object
) -> Trainer | None:
    """Call `sidrec.sft.train` or `sidrec.rl.grpo` in this process as the command line would; its trainer, None when there was
    nothing to do.

    `at_end` sees the trainer when training is over and nothing is saved yet.
    """
    trainers: list[Trainer] = []
    work = {train: fine_tuning, grpo: practice}[module]
    finish = work.finish

    def keep_trainer(folder: Path, trainer: Trainer, *rest: Any, **named: Any) -> None:
        trainers.append(trainer)
        if at_end is not None:
            at_end(trainer)
        finish(folder, trainer, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "finish", keep_trainer)
        module.main(flags(module, run_dir, **changed))
    return trainers[0] if trainers else None


def finished_sft_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a finished SFT stage, made once a test session. Copy it to change it."""
    run_dir = tmp_path_factory.getbasetemp() / "finished_sft_run"
    if not run_dir.exists():
        make_run_dir(run_dir)
    run_stage(train, run_dir)  # nothing to do after the first time
    return run_dir


def finished_rq_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `finished_sft_run`, of an RQ-Transformer."""
    run_dir = tmp_path_factory.getbasetemp() / "finished_rq_run"
    if not run_dir.exists():
        make_run_dir(run_dir)
    run_stage(train, run_dir, **RQ_FLAGS)
    return run_dir


def exit_code(script: str, *arguments: str | Path) -> int:
    """Run a script in this process as `python script …` would; its exit code."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
    return 0


def assert_one_sentence(text: str) -> None:
    """What a user sees on stderr after a mistake: one line that names what to do, no traceback."""
    lines = [line for line in text.splitlines() if line.startswith(("error: ", "interrupted: "))]
    assert len(lines) == 1, text
    assert "Traceback" not in text, text


def start(*command: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start a command in the repository as a user does, without a GPU and with its output kept.

    The environment's own programs come first: DeepSpeed looks for ninja.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        env=os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def logged(folder: Path) -> list[dict[str, float]]:
    """The figures that training wrote into a stage's log.txt: one object a line, after the time."""
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines() if (folder / "log.txt").exists() else []
    return [json.loads(line[line.index("{") :]) for line in lines if re.match(r"[0-9-]+ [0-9:]+ \{", line)]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_pretrained(folder: Path, kind: str, tied: bool = False) -> torch.nn.Module:
    """A tiny model with a word tokenizer that has no padding token, as many pretrained ones."""
    torch.manual_seed(5)
    config = getattr(tf, f"{kind}Config")(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tied,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = getattr(tf, f"{kind}ForCausalLM")(config)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    model.save_pretrained(folder)
    return model
