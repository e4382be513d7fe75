"""What makes a trained model's folder complete, for SFT and RL alike."""

from __future__ import annotations

from typing import Any

import torch

from sidrec.decoding.recommender import SIDS_FOLDER, TRIE_FILE
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.decoding.trie_file import save_trie
from sidrec.pipeline.files import write_json
from sidrec.pipeline.stage import Stage
from sidrec.sft.checkpoints import remove_checkpoints
from sidrec.sft.model_card import write_model_card
from sidrec.tokenizer.semantic_ids import SemanticIds

MEASURED_FIELDS = ("step", "eval_recall@10", "eval_ndcg@10", "eval_recall@50")


def complete_folder(stage: Stage, renderer: Renderer, sids: SemanticIds, measured: list[dict[str, Any]]) -> None:
    """Beside the saved model: its SIDs with their trie, its renderer, valid.json (`measured`, rows of the trainer's log) and its card;
    close the stage."""
    folder = stage.folder
    sids.save(folder / SIDS_FOLDER)
    save_trie(SidTrie(torch.from_numpy(sids.codes), sids.level_sizes), folder / SIDS_FOLDER / TRIE_FILE)
    renderer.save(folder)
    write_json(folder / "valid.json", [{name: row[name] for name in MEASURED_FIELDS} for row in measured])
    write_model_card(folder)
    stage.finish(folder / "model.safetensors", folder / "config.json", folder / "sidrec.json", folder / "valid.json")
    remove_checkpoints(folder / "checkpoints")
