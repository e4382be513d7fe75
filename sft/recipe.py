"""What an RQ-Transformer from scratch is trained with where nobody says otherwise: one recipe, by the size of the catalogue and the log.

`docs/sft.md` has the table. Its rows are the settings of MovieLens-100K, MovieLens-1M and Amazon Beauty, each chosen on its valid set; the
limits between them were not tried on other data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidrec.pipeline.files import read_json
from sidrec.sft.settings import BackboneConfig, SftConfig

FOR_ALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "batch_items": 4096,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
    "warmup_steps": 0.02,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "metric_for_best_model": "eval_ndcg@10",
    "early_stopping_patience": 4,
}
OF_DROPOUT = ("num_hidden_layers", "num_train_epochs", "dropout", "item_dropout", "weight_decay", "history_overlap")
BY_DENSITY: tuple[tuple[float, tuple[float, ...]], ...] = (  # below so many training interactions an item: OF_DROPOUT
    (30, (1, 30, 0.5, 0.25, 1.0, 0.5)),
    (130, (1, 24, 0.5, 0.2, 1.0, 0.5)),
    (float("inf"), (2, 20, 0.2, 0.1, 0.1, 0.25)),
)
PRETRAINED: dict[str, Any] = {"num_train_epochs": 3.0, "weight_decay": 0.01, "vocabulary_loss_weight": 0.1}
PRETRAINED_RATES = {"full": 3e-4, "lora": 1e-3, "dora": 1e-3, "sid_rows": 5e-3}  # learning rates by train_weights
GOES_ON_WITH = (
    "learning_rate",
    "weight_decay",
    "vocabulary_loss_weight",
)  # of a finished folder that is trained further
ORDER_CASES = 10_000
OF_ORDER = (30, 130)  # training interactions an item: between these it is asked whether the order of items counts
MOST_MARGINAL = 250_000  # items: up to here a marginal head trains and recommends faster than an additive one
FEWEST_VALID, MOST_VALID, VALID_SCORES = (
    1_000,
    30_000,
    300_000_000,
)  # the last: valid cases x items of a measurement, at most
TOGETHER = (  # settings of which naming one leaves all to whoever names it
    ("batch_items", "per_device_train_batch_size", "train_sampling_strategy"),
    ("lr_scheduler_type", "lr_scheduler_kwargs"),
    ("eval_strategy", "eval_steps", "save_strategy", "save_steps"),
)


def recipe(n_items: int, train_interactions: int, *, order_counts: bool = False) -> dict[str, Any]:
    """The settings for a catalogue of `n_items` and a log with so many interactions for training. order_counts: see `order_of`."""
    per_item = train_interactions / n_items  # those that take an item again count too: each is learnt from
    chosen = BY_DENSITY[-1][1] if order_counts else next(values for limit, values in BY_DENSITY if per_item < limit)
    valid_users = min(MOST_VALID, max(FEWEST_VALID, VALID_SCORES // n_items))
    whole = {
        name: int(value) if name == "num_hidden_layers" else float(value)
        for name, value in zip(OF_DROPOUT, chosen, strict=True)
    }
    head = "marginal" if n_items <= MOST_MARGINAL else "additive"
    return FOR_ALL | whole | {"depth_head": head, "valid_users": valid_users}


def settings_by_size(named: Mapping[str, Any]) -> dict[str, Any]:
    """Of the recipe for the run directory's data, what `named`, the settings that a file or a flag names, leaves open.

    Nothing for another kind of model, or where data/ is missing, which the stage says itself. The first process prints what it chose.
    """
    if named.get("model_name_or_path") is not None:
        return {name: value for name, value in settings_of_pretrained(named).items() if name not in named}
    if named.get("architecture", BackboneConfig.architecture) != "rq_transformer":
        return {}
    run_dir = Path(named.get("run_dir", SftConfig.run_dir))
    described = run_dir / "data" / "dataset.json"
    counts = read_json(described).get("counts") if described.is_file() else None
    if not counts or not counts.get("items") or "train" not in counts:
        return {}
    left_to_user = {name for group in TOGETHER if any(name in named for name in group) for name in group} | set(named)
    if named.get("eval_strategy") == "no":
        left_to_user |= {"early_stopping_patience"}
    if named.get("next_item") == 0:
        left_to_user |= {"item_dropout", "history_overlap"}
    per_item = counts["train"] / counts["items"]
    order = order_of(run_dir) if OF_ORDER[0] <= per_item < OF_ORDER[1] and set(OF_DROPOUT) - left_to_user else None
    whole = recipe(counts["items"], counts["train"], order_counts=order is not None)
    chosen = {name: value for name, value in whole.items() if name not in left_to_user}
    shown = ", ".join(f"{name} {chosen[name]:g}" for name in OF_DROPOUT if name in chosen)
    if shown and os.environ.get("RANK", "0") == "0":
        reason = "" if order is None else f", and their order counts for much ({order})"
        sys.stdout.write(f"settings: {shown}, by {per_item:.0f} training interactions an item{reason}\n")
        sys.stdout.flush()
    return chosen


def settings_of_pretrained(named: Mapping[str, Any]) -> dict[str, Any]:
    """What a pretrained language model is trained with; of a finished folder of this project, what that was trained with.

    The rate of `full` was tried with SmolLM2-135M; larger models take less.
    """
    manifest = Path(str(named["model_name_or_path"])) / "manifest.json"
    if manifest.is_file():
        before = read_json(manifest).get("fingerprint", {})
        of_sft = "train_weights" in before  # RL's rates are no rates of SFT
        return {name: before[name] for name in GOES_ON_WITH if of_sft and name in before}
    chosen = PRETRAINED | {"learning_rate": PRETRAINED_RATES.get(str(named.get("train_weights", "full")), 3e-4)}
    if named.get("normaliser", SftConfig.normaliser) == "full" or named.get("layout") == "one_position":
        chosen.pop("vocabulary_loss_weight")
    return chosen


def order_of(run_dir: Path) -> str | None:
    """What shows that the order of items counts for much, in words: on valid, first-order Markov is far ahead of item-KNN. None where it is
    not, or where measuring it would take long."""
    from sidrec.data.dataset import Dataset  # polars and torch, for which `--help` does not wait
    from sidrec.sft.advice import baseline_ndcgs, order_counts
    from sidrec.sft.validation import sample_cases

    dataset = Dataset.load(run_dir)
    ndcgs = baseline_ndcgs(dataset, sample_cases(dataset.cases("valid"), ORDER_CASES, seed=0))
    return ndcgs.in_words() if ndcgs is not None and order_counts(ndcgs) else None
