"""comparison.json: everything beside the metrics that the table's notes and the report say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset, EvalCases, SplitName
from sidrec.data.metrics import CUTOFFS, recall_at
from sidrec.data.synthetic import oracle_for
from sidrec.decoding.diagnostics import diagnose
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation import table
from sidrec.evaluation.models import LoadedModels, runs_of, trained_stages
from sidrec.evaluation.ranking import Ranking
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import read_manifest

REGRET_K = 10
WEIGHTS = "model.safetensors"
DIAGNOSED_HISTORIES = 200  # test histories whose decoding is diagnosed, drawn by the seed


def compare(
    ranking: Ranking,
    metrics: table.Metrics,
    loaded: LoadedModels,
    dataset: Dataset,
    cases: dict[SplitName, EvalCases],
    config: EvaluateConfig,
) -> dict[str, Any]:
    """The best baseline, paired tests against it, list checks, tunings, the demo's best possible Recall."""
    return {
        "seed": config.seed,
        "models": list(metrics),
        "items": dataset.n_items,
        "cases": {split: len(asked) for split, asked in cases.items()},
        "best_baseline": table.best_baseline(ranking.ranks),
        "paired_tests": table.compare(ranking.ranks, config.seed),
        "repeats": repeated_recalls(ranking.ranks),
        "protocol": dataset.info["protocol"],
        "list_checks": ranking.list_checks,
        "oracle": oracle(metrics, dataset) if dataset.info["name"] == "demo" else None,
        "tuning": tuning_of(loaded.tuning),
        "cut_short": loaded.cut_short,
        "rl_is_sft": "rl" in trained_stages(config.models) and all(map(rl_is_sft, runs_of(config, "rl"))),
        "other_runs": [str(run_dir.resolve()) for run_dir in other_runs(config)],
    }


def rl_is_sft(run_dir: Path) -> bool:
    """Whether a run's RL ended with the weights of its SFT model: of its checkpoints and that model, that model was the best on valid."""
    rl, sft = ((read_manifest(run_dir / stage) or {"outputs": {}})["outputs"].get(WEIGHTS) for stage in ("rl", "sft"))
    return rl is not None and rl == sft


def other_runs(config: EvaluateConfig) -> list[Path]:
    """The run directories, but for the run's own, whose models were measured with it."""
    return list(dict.fromkeys(run for stage in trained_stages(config.models) for run in runs_of(config, stage)[1:]))


def diagnose_all(
    generative: dict[str, Recommender], dataset: Dataset, seed: int, screen: Screen
) -> dict[str, dict[str, Any]]:
    """Of each generative model: leaked mass, forced codes and beam regret, on a sample of the test histories."""
    histories = dataset.cases("test").histories
    drawn = np.random.default_rng(seed).permutation(len(histories))[:DIAGNOSED_HISTORIES]
    sample = [histories[row] for row in np.sort(drawn)]
    with screen.bar("decoding, diagnosed", len(sample) * len(generative), "histories") as bar:
        return {
            name: asdict(diagnose(recommender, sample, REGRET_K, seed, bar.advance))
            for name, recommender in generative.items()
        }


def tuning_of(tuning: dict[str, Tuning]) -> dict[str, Any]:
    """As comparison.json holds it."""
    return {
        name: {
            "grid": tuned.grid,
            "metric": tuned.metric,
            f"valid_{tuned.metric}": tuned.values,
            "chosen": tuned.chosen,
        }
        for name, tuned in tuning.items()
    }


def repeated_recalls(ranks: pl.DataFrame) -> dict[str, list[float]]:
    """Test Recall@10 with seen items masked of each repeat of the models that have several."""
    recalls = {}
    for name in ranks["model"].unique(maintain_order=True):
        by_repeat = table.ranks_by_repeat(ranks, name, "test", True)
        if len(by_repeat) > 1:
            recalls[name] = recall_at(by_repeat, 10).mean(axis=1).tolist()
    return recalls


def oracle(metrics: table.Metrics, dataset: Dataset) -> dict[str, Any]:
    """Per split: the best possible Recall@K, and the share of its expected value that each model reaches with seen items masked.

    The demo's users never take an item twice, so its best possible model masks what was seen.
    """
    by_split: dict[str, Any] = {}
    for split in ("valid", "test"):
        best = oracle_for(dataset, split, CUTOFFS)
        shares = {
            name: {str(k): splits[split]["masked"][f"recall@{k}"] / best["expected"][k] for k in CUTOFFS}
            for name, splits in metrics.items()
        }
        by_split[split] = {kind: {str(k): value for k, value in values.items()} for kind, values in best.items()}
        by_split[split]["share_of_expected"] = shares
    return by_split
