"""The neural baselines: the grid that they are tuned on, and their trainings as stages of their own.

A training is a stage of the run, baselines/<name>-<settings>-seed<n>: a killed one goes on from its last epoch, and a finished one is
loaded by every later evaluation with the same data, whatever else is measured beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sidrec.baselines.baseline import Fitted, TrainingPlan
from sidrec.baselines.sasrec import SasRec, SasRecScorer, SasRecSettings, train_sasrec
from sidrec.baselines.scorer import valid_recall
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json, write_json
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage

NEURAL: dict[
    str, dict[str, Any]
] = {  # what makes each of them, beside a point of GRID and the defaults of SasRecSettings
    "sasrec_bce": {"loss": "bce"},
    "sasrec": {"loss": "softmax"},
    "sasrec_sampled": {"loss": "sampled_softmax"},
    "esasrec": {"loss": "sampled_softmax", "block": "ligr"},
}
GRID: tuple[dict[str, Any], ...] = (  # the same for every neural baseline; the first is what they are untuned
    {"dim": 64, "dropout": 0.2, "learning_rate": 2e-3},
    {"dim": 64, "dropout": 0.5, "learning_rate": 2e-3},
    {"dim": 128, "dropout": 0.2, "learning_rate": 1e-3},
    {"dim": 128, "dropout": 0.5, "learning_rate": 1e-3},
)
CHECKPOINT, WEIGHTS, CURVE = "training.pt", "model.safetensors", "valid_recall.json"


class CutShortError(Exception):
    """The time limit ended a training; its stage is left unfinished, and goes on with a higher limit."""

    def __init__(self, scorer: SasRecScorer) -> None:
        super().__init__(scorer.name)
        self.scorer = scorer


@dataclass(frozen=True)
class NeuralBaseline:
    """A SASRec. settings: a row of NEURAL."""

    name: str
    settings: dict[str, Any]
    most_items: int | None = None

    def grid(self, plan: TrainingPlan) -> list[SasRecSettings]:
        """The settings that are tried."""
        points = GRID if plan.tune else GRID[:1]
        return [replace(SasRecSettings(epochs=plan.epochs), **self.settings, **point) for point in points]

    def fitted(self, dataset: Dataset, valid: EvalCases, plan: TrainingPlan, screen: Screen) -> Fitted:
        """The best settings of the grid by valid Recall@10, tried with the first seed, and one scorer a seed with them."""
        grid = self.grid(plan)
        tried = [train_once(self.name, settings, plan.seed, dataset, valid, plan, screen) for settings in grid]
        tuning = Tuning(list(GRID[: len(grid)]), [valid_recall(scorer, valid) for scorer in tried])
        chosen, seeds = grid[tuning.chosen], range(plan.seed + 1, plan.seed + plan.seeds)
        later = [train_once(self.name, chosen, seed, dataset, valid, plan, screen) for seed in seeds]
        trained = [*tried, *later]
        return Fitted(
            [tried[tuning.chosen], *later],
            tuning if plan.tune else None,
            trainings=len(trained),
            cut_short=sum(scorer.cut_short for scorer in trained),
        )


def train_once(
    name: str,
    settings: SasRecSettings,
    seed: int,
    dataset: Dataset,
    valid: EvalCases,
    plan: TrainingPlan,
    screen: Screen,
) -> SasRecScorer:
    """One training: loaded where it is finished, continued where it was interrupted or cut short by a smaller time limit."""
    sizes = f"dim{settings.dim}-dropout{settings.dropout:g}-rate{settings.learning_rate:g}-epochs{settings.epochs}"
    decisive = fingerprint(settings, leave_out=()) | {"seed": seed}
    stage = Stage(plan.run_dir, f"baselines/{name}-{sizes}-seed{seed}", decisive, (plan.run_dir / "data",))
    overwrite = plan.overwrite and is_of_other_data(stage)
    if not overwrite and stage.is_finished():
        return load(stage.folder, dataset.n_items, settings, name)
    label = f"{name}, dim {settings.dim}, dropout {settings.dropout:g}, seed {seed}"
    try:
        with stage.building(overwrite, resumable=True) as folder:
            scorer = train_sasrec(
                dataset.train_sequences,
                valid,
                dataset.n_items,
                settings,
                seed,
                plan.minutes,
                folder / CHECKPOINT,
                screen,
                label,
            )
            scorer = replace(scorer, name=name)
            if scorer.cut_short:
                raise CutShortError(scorer)
            save(scorer, folder)
            (folder / CHECKPOINT).unlink()
    except CutShortError as error:
        return error.scorer
    return scorer


def is_of_other_data(stage: Stage) -> bool:
    """Whether the stage was made from other data or settings than those now."""
    try:
        stage.is_finished()
    except InputError:
        return True
    return False


def save(scorer: SasRecScorer, folder: Path) -> None:
    """Write a fully trained scorer, each file atomically. They hold no clock time, as the checkpoint does."""
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(scorer.model.state_dict(), temporary)
    write_json(folder / CURVE, scorer.valid_recall)


def load(folder: Path, n_items: int, settings: SasRecSettings, name: str) -> SasRecScorer:
    """What `save` wrote."""
    model = SasRec(n_items, settings).to("cuda" if torch.cuda.is_available() else "cpu")
    model.load_state_dict(load_file(folder / WEIGHTS))
    return SasRecScorer(model, settings.max_length, read_json(folder / CURVE), False, name)
