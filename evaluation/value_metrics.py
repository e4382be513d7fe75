"""Metrics of what the log says an event was worth: its rating, price or dwell time, a column of the log.

liked_recall@K  Recall@K over the cases whose event has this value or more (`--liked_from`); the others are left out of the mean
value@10        the mean value that a value model (`sidrec.baselines.value_model`) predicts for a list's first ten items, which the user
                need never have taken

Both are of lists with seen items masked. A model trained several times has the mean over its trainings.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from sidrec.baselines.scorer import CASES_TOGETHER
from sidrec.baselines.value_model import FOLDS, ValueModel, fit_of, fit_value_model
from sidrec.data.dataset import Dataset, EvalCases, SplitName
from sidrec.data.metrics import CUTOFFS, NO_ITEM, recall_at
from sidrec.evaluation import table
from sidrec.evaluation.ranking import Ranking
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.evaluation.statistics import bootstrap_interval

TARGETS = "what users took"  # beside the models' lists


def add(
    metrics: table.Metrics,
    comparison: dict[str, Any],
    ranking: Ranking,
    dataset: Dataset,
    cases: dict[SplitName, EvalCases],
    config: EvaluateConfig,
) -> None:
    """Put the metrics of `--value_column` into `metrics`, and into `comparison` their paired tests and, as `value`, what they are of.

    cases: those that `ranking` is of, with values.
    """
    assert config.value_column is not None
    model = fit_value_model(dataset, config.value_column, FOLDS, config.seed)
    told: dict[str, Any] = {"column": config.value_column, "liked_from": config.liked_from, "folds": FOLDS}
    told |= {"fit": asdict(model.fit), "liked": {}, "judged": {}}
    for split, asked in cases.items():
        assert asked.values is not None
        lists = {name: repeats for (name, of_split), repeats in ranking.first_ten.items() if of_split == split}
        means = mean_values(model, asked, lists | {TARGETS: [asked.targets[:, None]]})
        told["judged"][split] = judged(means.pop(TARGETS), asked.values, model.mean)
        by_metric = {"value@10": means}
        if config.liked_from is not None:
            is_liked = asked.values >= config.liked_from  # one without a value is not liked
            told["liked"][split] = int(is_liked.sum())
            by_metric |= liked_recalls(ranking.ranks, split, is_liked)
        for metric, values in by_metric.items():
            comparison["paired_tests"] += enter(metrics, metric, values, split, asked, ranking.ranks, config.seed)
    comparison["value"] = told


def liked_recalls(ranks: pl.DataFrame, split: SplitName, is_liked: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """ "liked_recall@K" -> model -> the cases' Recall@K, float64 [cases], NaN where the event is not liked. is_liked: bool [cases]."""
    recalls: dict[str, dict[str, np.ndarray]] = {}
    for model in ranks["model"].unique(maintain_order=True):
        by_repeat = table.ranks_by_repeat(ranks, model, split, True)
        for k in CUTOFFS:
            values = np.where(is_liked, recall_at(by_repeat, k).mean(axis=0), np.nan)
            recalls.setdefault(f"liked_recall@{k}", {})[model] = values
    return recalls


def enter(
    metrics: table.Metrics,
    metric: str,
    values: dict[str, np.ndarray],
    split: SplitName,
    cases: EvalCases,
    ranks: pl.DataFrame,
    seed: int,
) -> list[dict[str, Any]]:
    """Put a metric's means into `metrics`, on test with their intervals; its paired tests, where the table has a column of it.

    values: by model, the metric of each case, NaN where it does not count.
    """
    counts = ~np.isnan(np.stack(list(values.values()))).any(axis=0)
    if not counts.any():  # no list has an item
        return []
    users = np.unique(cases.user_ids, return_inverse=True)[1][counts]
    counted = {model: each[counts] for model, each in values.items()}
    for model, each in counted.items():
        figures = metrics[model][split][table.MASK_NAMES[True]]
        figures[metric] = float(each.mean())
        if split == "test":
            figures[f"{metric}_interval"] = list(bootstrap_interval(each, seed, users=users))
    if split != "test" or metric not in table.VALUE_NAMES:
        return []
    return table.paired_rows(counted, users, table.compared_pairs(ranks), metric, True, seed)


def mean_values(model: ValueModel, cases: EvalCases, lists: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Of each row's lists, the mean predicted value of their items, float64 [cases], NaN where a list is empty; the mean over repeats.

    lists: by model, int [cases, k] a repeat, NO_ITEM where there are fewer.
    """
    assert cases.history_values is not None
    means = {name: np.empty((len(repeats), len(cases))) for name, repeats in lists.items()}
    for start in range(0, len(cases), CASES_TOGETHER):
        rows = slice(start, start + CASES_TOGETHER)
        values = model.values(cases.user_ids[rows], cases.histories[rows], cases.history_values[rows])
        for name, repeats in lists.items():
            for repeat, items in enumerate(repeats):
                means[name][repeat, rows] = mean_of_lists(values, items[rows])
    return {name: by_repeat.mean(axis=0) for name, by_repeat in means.items()}


def mean_of_lists(values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The mean value of each list's items, float64 [B]; NaN where it is empty. values: float [B, N]; items: int [B, k]."""
    assert len(values) == len(items)
    listed = items != NO_ITEM
    sums = np.where(listed, np.take_along_axis(values, np.maximum(items, 0), axis=1), 0).sum(axis=1, dtype=np.float64)
    counts = listed.sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(items), np.nan), where=counts > 0)


def judged(predicted: np.ndarray, values: np.ndarray, mean: float) -> dict[str, float]:
    """The value model on events that it was not fitted on: their mean value, the mean of what it predicts for them, and the figures of
    `Fit` beside `mean`, that of training. predicted, values: float64 [cases]; a value may be NaN."""
    known = ~np.isnan(values)
    fit = fit_of(predicted[known], values[known], np.full(int(known.sum()), mean))
    return {"mean": float(values[known].mean()), "predicted": float(predicted[known].mean())} | asdict(fit)
