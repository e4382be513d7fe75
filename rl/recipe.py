"""What RL of an RQ-Transformer is trained with where nobody says otherwise: exact expectations over every item.

Chosen on the valid sets of MovieLens-100K and Amazon Beauty.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidrec.pipeline.files import read_json
from sidrec.rl.settings import DENSE, EXACT_OBJECTIVES, ObjectiveConfig, RlConfig

MOST_EXACT = 100_000  # items: π of each is computed for every question
EXACT: dict[str, Any] = {
    "draw": "every_item",
    "rewards": ["hit_at_k"],
    "positions_per_user": 1000,
    "learning_rate": 3e-4,
    "max_steps": -1,
    "num_train_epochs": 2.5,
    "eval_steps": 0.1,
    "save_steps": 0.1,
}
HITS = {
    "exact_hit",
    "hit_at_k",
    "ndcg_at_k",
    "logged_value",
}  # rewards that hold the model to what is taken; beside others the SFT loss does
TOGETHER = (  # settings of which naming one leaves all to whoever names it
    ("eval_strategy", "eval_steps", "save_steps"),
)


def settings_by_size(named: Mapping[str, Any]) -> dict[str, Any]:
    """Of the recipe, what `named`, the settings that a file or a flag names, leaves open.

    Only a learning rate, and that of a pretrained model alone, where they ask for groups, or where the run directory's model or catalogue
    does: another kind of model, or too many items.
    """
    rewards = named.get("rewards", EXACT["rewards"])
    rewards = rewards if isinstance(rewards, list) else [rewards]
    asks_for_groups = (
        named.get("draw", "every_item") != "every_item"
        or named.get("objective", ObjectiveConfig.objective) not in EXACT_OBJECTIVES
        or named.get("open_questions", False)
        or named.get("token_credit", 0)
        or not set(rewards) <= set(DENSE)
        or "num_generations" in named
    )
    run_dir = Path(named.get("run_dir", RlConfig.run_dir))
    if asks_for_groups or not has_exact_model(run_dir):
        return {name: value for name, value in rate_after_pretraining(run_dir).items() if name not in named}
    left_to_user = {name for group in TOGETHER if any(name in named for name in group) for name in group} | set(named)
    pretrained = read_json(run_dir / "sft" / "config.json").get("spatial") is not None
    rate = rate_after_pretraining(run_dir) if pretrained else {}
    chosen = EXACT | rate | {"reward_weights": [1.0] * len(rewards), "sft_loss_weight": float(not set(rewards) & HITS)}
    return {name: value for name, value in chosen.items() if name not in left_to_user}


def rate_after_pretraining(run_dir: Path) -> dict[str, float]:
    """The learning rate for a model that SFT began with a pretrained one: a twentieth of SFT's, as a model from scratch has, or what suits
    all weights where SFT trained adapters. Nothing for other models. A usual value, not a measured one."""
    manifest = run_dir / "sft" / "manifest.json"
    before = read_json(manifest).get("fingerprint", {}) if manifest.is_file() else {}
    if before.get("model_name_or_path") is None or "learning_rate" not in before:
        return {}
    full = before.get("train_weights", "full") == "full"
    return {"learning_rate": min(1e-4, before["learning_rate"] / 20) if full else 1e-5}


def has_exact_model(run_dir: Path) -> bool:
    """Whether the run directory's fine-tuned model gives π of every item in one pass, and there are not too many."""
    model, described = run_dir / "sft" / "config.json", run_dir / "data" / "dataset.json"
    if not (model.is_file() and described.is_file()):
        return False
    counts = read_json(described).get("counts") or {}
    return read_json(model).get("model_type") == "rq_transformer" and counts.get("items", 0) <= MOST_EXACT
