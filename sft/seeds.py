"""Several trainings with seeds that follow one another: how far they lie apart, and what they are worth together.

The first is the run directory's own; each of the others has a run directory in its `seeds/`, with links to the same data and semantic IDs.
`sidrec evaluate` takes them with the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sidrec.baselines.blend import MOST_ITEMS, LatestLogProbs
from sidrec.baselines.scorer import rank_cases
from sidrec.data.dataset import Dataset
from sidrec.data.metrics import ndcg_at, recall_at
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.files import read_json
from sidrec.pipeline.launch import decided_by_the_first
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import SEEDS, seed_runs
from sidrec.sft.fine_tuning import fine_tune
from sidrec.sft.settings import BackboneConfig, SftConfig, SftTrainerConfig, TaskConfig, WeightsConfig

LINKED = ("data", "embeddings", "sid")  # folders that all trainings share, where they are there
ENSEMBLE_CASES = 2000  # valid cases, drawn, that the ensemble is measured on


def fine_tune_seeds(
    config: SftConfig,
    tasks: TaskConfig,
    backbone: BackboneConfig,
    weights: WeightsConfig,
    training: SftTrainerConfig,
) -> None:
    """`fine_tune` with `config.seeds` seeds, one after the other; finished ones are not trained again. Every process calls it."""
    fine_tune(config, tasks, backbone, weights, training)
    for number in range(1, config.seeds):
        run_dir = decided_by_the_first(lambda number=number: linked_run(config.run_dir, number))  # type: ignore[misc]
        further = replace(training, seed=training.seed + number, push_to_hub=False)
        fine_tune(replace(config, run_dir=run_dir), tasks, backbone, weights, further)
    if config.seeds > 1:
        decided_by_the_first(lambda: summarise(config.run_dir, config.seeds, training.seed))


def linked_run(run_dir: Path, number: int) -> Path:
    """The run directory of a further training, made if need be; its links are relative, so that the whole can be moved."""
    folder = run_dir / SEEDS / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        if (run_dir / name).exists() and not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..") / ".." / name, target_is_directory=True)
    return folder


def summarise(run_dir: Path, seeds: int, seed: int) -> None:
    """Say the mean and the spread of the best valid figures, and the ensemble's."""
    runs = [run_dir, *seed_runs(run_dir, "sft")[: seeds - 1]]
    best = [max(read_json(run / "sft" / "valid.json"), key=lambda row: row["eval_ndcg@10"]) for run in runs]
    screen = Screen("sft")
    figures = ", ".join(
        f"{name} {mean_and_spread([row[f'eval_{name.lower()}'] for row in best])}" for name in ("Recall@10", "NDCG@10")
    )
    lines = [f"{len(runs)} trainings, valid {figures} (mean ± standard deviation)"]
    dataset = Dataset.load(run_dir)
    if dataset.n_items <= MOST_ITEMS:
        cases = dataset.cases("valid").first_of_shuffle(ENSEMBLE_CASES, seed)
        recommenders = [Recommender.load(run, "sft") for run in runs]
        screen.say(f"sft: ranking {len(cases):,} valid cases by {len(runs)} models together")
        alone, together = (
            rank_cases(Ensemble(members, dataset.n_items), cases, masked=True)
            for members in (recommenders[:1], recommenders)
        )
        lines.append(
            f"their ensemble on {len(cases):,} valid cases: Recall@10 {recall_at(together, 10).mean():.4f}, NDCG@10 "
            f"{ndcg_at(together, 10).mean():.4f}; the first alone {recall_at(alone, 10).mean():.4f}, {ndcg_at(alone, 10).mean():.4f}"
        )
    lines.append(f"`sidrec evaluate --run_dir {run_dir} --models sft sft_ensemble` measures them all on test")
    screen.summary("sft", lines)


def mean_and_spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


@dataclass
class Ensemble:
    """Scores by the mean log π of several models."""

    recommenders: list[Recommender]
    n_items: int
    name: str = "ensemble"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """float32 [B, N]."""
        return LatestLogProbs().mean(self.recommenders, histories, self.n_items)
