"""What makes a trained model's folder complete, for SFT and RL alike."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.decoding.trie_file import SIDS_FOLDER, TRIE_FILE, save_trie
from sidrec.pipeline.files import atomic_path, let_others_read, write_json
from sidrec.sft import sid_logits_processor
from sidrec.sft.checkpoints import remove_checkpoints
from sidrec.sft.model_card import is_rq_transformer, write_model_card
from sidrec.sft.portable_config import make_portable
from sidrec.tokenizer.semantic_ids import SemanticIds

CONSTRAINT_FILE = "sid_logits_processor.py"
MEASURED_FIELDS = ("step", "eval_recall@10", "eval_ndcg@10", "eval_recall@50")


def complete_folder(folder: Path, renderer: Renderer, sids: SemanticIds, measured: list[dict[str, Any]]) -> None:
    """Beside the saved model: its SIDs with their trie, its renderer, valid.json (`measured`, rows of the trainer's log) and its card.

    A model with one position a token also gets sid_logits_processor.py, by which other engines write semantic IDs alone.
    TRL's `training_args.bin`, which holds paths of this machine, is not kept.
    """
    for arguments in folder.glob("**/training_args.bin"):
        if "checkpoints" not in arguments.relative_to(folder).parts:
            arguments.unlink()
    for file in folder.glob("*.safetensors"):
        let_others_read(file)
    make_portable(folder)
    sids.save(folder / SIDS_FOLDER)
    save_trie(SidTrie(torch.from_numpy(sids.codes), sids.level_sizes), folder / SIDS_FOLDER / TRIE_FILE)
    renderer.save(folder)
    if not is_rq_transformer(folder):
        with atomic_path(folder / CONSTRAINT_FILE) as temporary:
            shutil.copyfile(sid_logits_processor.__file__, temporary)
    write_json(folder / "valid.json", [{name: row[name] for name in MEASURED_FIELDS} for row in measured])
    write_model_card(folder)


def close_folder(folder: Path) -> None:
    """Delete the checkpoints of a stage that is finished: the first process does, when all have left them."""
    if PartialState().is_main_process:
        remove_checkpoints(folder / "checkpoints")
