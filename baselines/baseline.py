"""What a row of `sidrec.baselines.BASELINES` is: something that can be fitted, and what fitting it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sidrec.baselines.scorer import Scorer
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.pipeline.screen import Screen


@dataclass(frozen=True)
class TrainingPlan:
    """How the neural baselines of a run are trained. epochs: most passes; minutes: most minutes of one training; seeds: trainings, with
    seed, seed + 1, …; tune: choose from the grid on valid, with the first seed; overwrite: make again what was made from other data."""

    run_dir: Path
    epochs: int
    minutes: float
    seed: int
    seeds: int
    tune: bool
    overwrite: bool


@dataclass(frozen=True)
class Fitted:
    """scorers: one a training, each with its own seed. tuning: what was tried; None where there is nothing to choose. trainings, cut_short:
    how many there were in all, and how many of them the time limit ended."""

    scorers: list[Scorer]
    tuning: Tuning | None = None
    trainings: int = 1
    cut_short: int = 0


class Baseline(Protocol):
    """A row of the table that is no model of this project."""

    @property
    def matrices(self) -> int:
        """How many matrices of items x items float32 numbers it holds at once."""
        ...

    def fitted(self, dataset: Dataset, valid: EvalCases, plan: TrainingPlan, screen: Screen) -> Fitted:
        """Fitted on the train part, with the settings that are best on valid."""
        ...


@dataclass(frozen=True)
class DirectBaseline:
    """One that is computed, without gradient descent.

    fit: (train sequences, number of items, settings by keyword) -> scorer. tune: (data set, valid cases, screen) -> the scorer with the
    best settings on valid and what was tried; None: there is nothing to choose. blends: whether generative models may be blended with it.
    matrices: see `Baseline`.
    """

    fit: Callable[..., Scorer]
    tune: Callable[[Dataset, EvalCases, Screen], tuple[Scorer, Tuning]] | None = None
    blends: bool = False
    matrices: int = 0

    def fitted(self, dataset: Dataset, valid: EvalCases, plan: TrainingPlan, screen: Screen) -> Fitted:
        if self.tune is None:
            return Fitted([self.fit(dataset.train_sequences, dataset.n_items)])
        scorer, tuning = self.tune(dataset, valid, screen)
        return Fitted([scorer], tuning)
