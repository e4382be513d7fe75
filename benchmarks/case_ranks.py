"""The rank of every case's target, by which two rows of a table are compared case by case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.finished_rows import Row
from sidrec.data.dataset import EvalCases, SplitName
from sidrec.data.metrics import ndcg_at, recall_at
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.ranking import rank_recommender
from sidrec.pipeline.files import atomic_path

K = 10
Metric = Callable[[np.ndarray, int], np.ndarray]


def rank_splits(recommender: Recommender, cases: dict[SplitName, EvalCases], label: str) -> dict[SplitName, np.ndarray]:
    """The rank of every case's target by split, int64 [cases], 0 the best, in lists of the whole catalogue without seen items."""
    n_items = recommender.trie.n_items
    return {
        split: rank_recommender(recommender, cases[split], n_items, True, f"{label}: {split}")[0] for split in cases
    }


def save_ranks(run_dir: Path, ranks: dict[SplitName, np.ndarray]) -> Row:
    """Recall@10 and NDCG@10 per split; the ranks themselves go to ranks.npz in `run_dir`, for paired tests."""
    with atomic_path(run_dir / "ranks.npz") as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **ranks)
    return {
        split: {
            f"recall@{K}": float(recall_at(split_ranks, K).mean()),
            f"ndcg@{K}": float(ndcg_at(split_ranks, K).mean()),
        }
        for split, split_ranks in ranks.items()
    }


def mean_gains(rows: list[Row], work_dir: Path, split: SplitName, metric: Metric) -> np.ndarray:
    """The metric at K = 10 of every case, the mean over rows with saved ranks: float64 [cases]."""
    gains = []
    for row in rows:
        with np.load(work_dir / row["run_dir"] / "ranks.npz") as ranks:
            gains.append(metric(ranks[split], K))
    return np.mean(gains, axis=0)
