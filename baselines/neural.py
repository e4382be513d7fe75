"""The neural baselines of the table: what each one is, the grid they are tuned on, and their trainings as stages of their own.

A training is a stage of the run, baselines/<name>-<settings>-seed<n>: a killed one goes on from its last epoch, and a finished one is
loaded by every later evaluation with the same data, whatever else is measured beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sidrec.baselines.counting import Tuning, rank_cases
from sidrec.baselines.sasrec import SasRec, SasRecScorer, SasRecSettings, train_sasrec
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import recall_at
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, write_json
from sidrec.pipeline.stage import Stage

NEURAL: dict[str, dict[str, Any]] = {
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


@dataclass(frozen=True)
class NeuralTraining:
    """How neural baselines are trained. epochs: most passes; minutes: most minutes of one training; seeds: seed, seed + 1, …;
    tune: choose from GRID on valid, with the first seed; overwrite: make again what was made from other data or settings."""

    epochs: int
    minutes: float
    seed: int
    seeds: int
    tune: bool
    overwrite: bool

    def grid(self, name: str) -> list[SasRecSettings]:
        """The settings that are tried for the baseline `name`."""
        points = GRID if self.tune else GRID[:1]
        return [replace(SasRecSettings(epochs=self.epochs), **NEURAL[name], **point) for point in points]

    def decisive(self, names: list[str]) -> dict[str, Any]:
        """What decides the baselines `names`."""
        grids = {name: [asdict(settings) for settings in self.grid(name)] for name in names}
        return {"neural": grids, "neural_minutes": self.minutes, "neural_seeds": self.seeds}


def train_neural(
    run_dir: Path, dataset: Dataset, valid: EvalCases, name: str, training: NeuralTraining
) -> tuple[list[SasRecScorer], Tuning, int]:
    """The baseline `name` with the best settings of its grid, one scorer a seed; the tuning; how many trainings the clock ended."""
    grid = training.grid(name)
    tried = [train_once(run_dir, dataset, valid, name, settings, training.seed, training) for settings in grid]
    recalls = [float(recall_at(rank_cases(scorer, valid, masked=True), 10).mean()) for scorer in tried]
    tuning = Tuning(list(GRID[: len(grid)]), recalls)
    chosen = grid[tuning.chosen]
    later = [
        train_once(run_dir, dataset, valid, name, chosen, training.seed + repeat, training)
        for repeat in range(1, training.seeds)
    ]
    cut = sum(scorer.cut_short for scorer in [*tried, *later])
    return [tried[tuning.chosen], *later], tuning, cut


def train_once(
    run_dir: Path,
    dataset: Dataset,
    valid: EvalCases,
    name: str,
    settings: SasRecSettings,
    seed: int,
    training: NeuralTraining,
) -> SasRecScorer:
    """One training: loaded where it is finished, continued where it was interrupted or cut short by a smaller time limit."""
    sizes = f"dim{settings.dim}-dropout{settings.dropout:g}-rate{settings.learning_rate:g}-epochs{settings.epochs}"
    folder = f"baselines/{name}-{sizes}-seed{seed}"
    stage = Stage(run_dir, folder, asdict(settings) | {"seed": seed}, (run_dir / "data",))
    if is_finished(stage, training.overwrite):
        return load(stage.folder, dataset.n_items, settings, name)
    stage.begin()
    checkpoint = stage.folder / "training.pt"
    label = f"{name}, dim {settings.dim}, dropout {settings.dropout:g}, seed {seed}"
    scorer = train_sasrec(
        dataset.train_sequences, valid, dataset.n_items, settings, seed, training.minutes, checkpoint, label
    )
    scorer = replace(scorer, name=name)
    if not scorer.cut_short:
        stage.finish(*save(scorer, stage.folder))
        checkpoint.unlink()
    return scorer


def save(scorer: SasRecScorer, folder: Path) -> list[Path]:
    """Write a fully trained scorer, each file atomically; return their paths. They hold no clock time, as the checkpoint does."""
    weights, curve = folder / "model.safetensors", folder / "valid_recall.json"
    with atomic_path(weights) as temporary:
        save_file(scorer.model.state_dict(), temporary)
    write_json(curve, scorer.valid_recall)
    return [weights, curve]


def load(folder: Path, n_items: int, settings: SasRecSettings, name: str) -> SasRecScorer:
    """What `save` wrote."""
    model = SasRec(n_items, settings).to("cuda" if torch.cuda.is_available() else "cpu")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    valid_recall = json.loads((folder / "valid_recall.json").read_text(encoding="utf-8"))
    return SasRecScorer(model, settings.max_length, valid_recall, False, name)


def is_finished(stage: Stage, overwrite: bool) -> bool:
    """Whether the stage is; one made from other data or settings is an InputError, or is begun again where `overwrite`."""
    try:
        return stage.is_finished()
    except InputError:
        if not overwrite:
            raise
        stage.begin(overwrite=True)
        return False
