"""What makes a trained model's folder complete, for SFT and RL alike."""

from __future__ import annotations

from typing import Any

from data.stage import Stage, write_json
from decoding.renderer import Renderer
from sft.checkpoints import remove_checkpoints
from tokenizer.semantic_ids import SemanticIds

MEASURED_FIELDS = ("step", "eval_recall@10", "eval_ndcg@10")


def complete_folder(stage: Stage, renderer: Renderer, sids: SemanticIds, measured: list[dict[str, Any]]) -> None:
    """Beside the saved model: its SIDs, its renderer and valid.json (`measured`, rows of the trainer's log); close the stage."""
    folder = stage.folder
    sids.save(folder / "semantic_ids")
    renderer.save(folder)
    write_json(folder / "valid.json", [{name: row[name] for name in MEASURED_FIELDS} for row in measured])
    stage.finish(folder / "model.safetensors", folder / "config.json", folder / "sidrec.json", folder / "valid.json")
    remove_checkpoints(folder / "checkpoints")
