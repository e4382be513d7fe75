"""The neural baselines: the grid that they are tuned on, and their trainings as stages of their own.

A training is a stage of the run, baselines/<name>-<settings>-seed<n>: a killed one goes on from its last epoch, and a finished one is
loaded by every later evaluation with the same data, whatever else is measured beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from sidrec.baselines.baseline import Fitted, TrainingPlan
from sidrec.baselines.bsarec import BsaRecSettings, PrefixSasRecSettings
from sidrec.baselines.sasrec import SasRecSettings
from sidrec.baselines.scorer import valid_recall
from sidrec.baselines.sequence_model import SequenceScorer, SequenceSettings, on_device, train
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json, write_json
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage

NEURAL: dict[str, SequenceSettings] = {  # what each is untuned, but for the first point of its kind's grid
    "sasrec_bce": SasRecSettings(loss="bce"),
    "sasrec": SasRecSettings(loss="softmax"),
    "sasrec_sampled": SasRecSettings(loss="sampled_softmax"),
    "esasrec": SasRecSettings(loss="sampled_softmax", block="ligr"),
    "sasrec_prefixes": PrefixSasRecSettings(),
    "bsarec": BsaRecSettings(),
}
CHECKPOINT, WEIGHTS, CURVE = "training.pt", "model.safetensors", "valid_recall.json"


class CutShortError(Exception):
    """The time limit ended a training; its stage is left unfinished, and goes on with a higher limit."""

    def __init__(self, scorer: SequenceScorer) -> None:
        super().__init__(scorer.name)
        self.scorer = scorer


@dataclass(frozen=True)
class NeuralBaseline:
    """A model of item sequences. settings: a row of NEURAL."""

    name: str
    settings: SequenceSettings
    matrices: int = 0

    def points(self, plan: TrainingPlan) -> list[dict[str, Any]]:
        """Of the kind's grid, what is tried."""
        return list(self.settings.grid if plan.tune else self.settings.grid[:1])

    def grid(self, plan: TrainingPlan) -> list[SequenceSettings]:
        """The settings that are tried."""
        return [replace(self.settings, epochs=plan.epochs, **point) for point in self.points(plan)]  # type: ignore[type-var]

    def fitted(self, dataset: Dataset, valid: EvalCases, plan: TrainingPlan, screen: Screen) -> Fitted:
        """The best settings of the grid by valid Recall@10, tried with the first seed, and one scorer a seed with them."""
        grid = self.grid(plan)
        tried = [train_once(self.name, settings, plan.seed, dataset, valid, plan, screen) for settings in grid]
        tuning = Tuning(self.points(plan), [valid_recall(scorer, valid) for scorer in tried])
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
    settings: SequenceSettings,
    seed: int,
    dataset: Dataset,
    valid: EvalCases,
    plan: TrainingPlan,
    screen: Screen,
) -> SequenceScorer:
    """One training: loaded where it is finished, continued where it was interrupted or cut short by a smaller time limit."""
    point = "-".join(f"{setting}{getattr(settings, setting):g}" for setting in settings.grid[0])
    decisive = fingerprint(settings, leave_out=()) | {"seed": seed}
    stage = Stage(
        plan.run_dir, f"baselines/{name}-{point}-epochs{settings.epochs}-seed{seed}", decisive, (plan.run_dir / "data",)
    )
    overwrite = plan.overwrite and is_of_other_data(stage)
    if not overwrite and stage.is_finished():
        return load(stage.folder, dataset.n_items, settings, name)
    label = f"{name}, {point}, seed {seed}"
    try:
        with stage.building(overwrite, resumable=True) as folder:
            scorer = train(
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


def save(scorer: SequenceScorer, folder: Path) -> None:
    """Write a fully trained scorer, each file atomically. They hold no clock time, as the checkpoint does."""
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(scorer.model.state_dict(), temporary)
    write_json(folder / CURVE, scorer.valid_recall)


def load(folder: Path, n_items: int, settings: SequenceSettings, name: str) -> SequenceScorer:
    """What `save` wrote."""
    model = on_device(settings, n_items)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return SequenceScorer(model, read_json(folder / CURVE), False, name)
