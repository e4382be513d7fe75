"""What evaluation/report.html shows, measured from per-case ranks and lists: slices.json, report.json, and the page itself.

Nothing holds a clock time: the same run directory, code and machine give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.dataset import Dataset
from sidrec.data.metrics import CUTOFFS, NO_ITEM, recall_at
from sidrec.evaluation.calibration import calibrate_lists
from sidrec.evaluation.coverage import count_items, spread
from sidrec.evaluation.lists import items_of, log_probs_of
from sidrec.evaluation.report.page import render
from sidrec.evaluation.sid_levels import by_chance, prefix_hits
from sidrec.evaluation.slices import slice_table, training_counts
from sidrec.evaluation.table import GENERATIVE, MASK_NAMES, Metrics, ranks_by_repeat
from sidrec.evaluation.variety import diversity, novelty, takers_of
from sidrec.pipeline.arrays import read_npy
from sidrec.pipeline.files import atomic_path, write_json
from sidrec.pipeline.provenance import code_version, file_hashes, machine, software

EXAMPLES, SHOWN_HISTORY, SHOWN_ITEMS = 10, 5, 5
TARGETS = "what users took"  # beside the models' lists
DIGITS = 6


def write_report(
    folder: Path,
    run_dir: Path,
    dataset: Dataset,
    ranks: pl.DataFrame,
    lists: pl.DataFrame,
    metrics: Metrics,
    comparison: dict[str, Any],
    spreads: dict[str, dict[str, float | None]],
) -> None:
    """Write slices.json, report.json and report.html into `folder`, each atomically.

    run_dir: whose models were measured; ranks: as ranks.parquet; lists: as lists.parquet; metrics, comparison: what the JSON files of
    these names hold; spreads: as `spreads_of` gives them.
    """
    slices = slice_table(ranks, dataset, comparison["best_baseline"], comparison["seed"])
    counts = item_counts(dataset, lists)
    figures = measure(run_dir, dataset, ranks, lists, metrics, comparison)
    figures["spread"] = spreads
    figures = rounded(figures)
    write_json(folder / "slices.json", rounded(slices.to_dicts()))
    write_json(folder / "report.json", figures)
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(render(figures, slices, counts, dataset.titles, metrics, comparison), encoding="utf-8")


def spreads_of(dataset: Dataset, lists: pl.DataFrame) -> dict[str, dict[str, float | None]]:
    """Of each model's lists, and of what users took: coverage, evenness, novelty and diversity; see `spread`, `novelty`, `diversity`."""
    sequences, n_items = dataset.train_sequences, dataset.n_items
    takers, popularity = takers_of(sequences, n_items), count_items(np.concatenate(sequences), n_items)
    shown = {name: items_of(lists, name) for name in lists["model"].unique(maintain_order=True)}
    shown[TARGETS] = dataset.cases("test").targets[:, None]
    spreads: dict[str, dict[str, float | None]] = {}
    for name, items in shown.items():
        if (items != NO_ITEM).any():
            of_lists = {"novelty": novelty(items, popularity), "diversity": diversity(items, takers)}
            spreads[name] = {**spread(count_items(items, n_items)), **of_lists}
    return spreads


def item_counts(dataset: Dataset, lists: pl.DataFrame) -> dict[str, np.ndarray]:
    """How often each item stands in each model's lists, and how often it is the one taken next; int64 [N] each."""
    names = lists["model"].unique(maintain_order=True)
    counts = {name: count_items(items_of(lists, name), dataset.n_items) for name in names}
    return counts | {TARGETS: count_items(dataset.cases("test").targets, dataset.n_items)}


def measure(
    run_dir: Path,
    dataset: Dataset,
    ranks: pl.DataFrame,
    lists: pl.DataFrame,
    metrics: Metrics,
    comparison: dict[str, Any],
) -> dict[str, Any]:
    """The figures of report.json but for the spread of the lists. Calibration and levels are {} without a generative model."""
    seed, cases = comparison["seed"], dataset.cases("test")
    users = np.unique(cases.user_ids, return_inverse=True)[1]
    probabilities = {name: log_probs_of(lists, name) for name in comparison["models"]}  # none of blends
    generative = [name for name in comparison["models"] if name in GENERATIVE]
    calibration = {
        name: calibrate_lists(items_of(lists, name), log_probs, cases.targets, users, seed)
        for name, log_probs in probabilities.items()
        if log_probs is not None
    }
    best = max(generative, key=lambda name: metrics[name]["valid"]["masked"]["recall@10"], default=None)
    return {
        "origin": {
            "code": code_version(),
            "software": software(),
            "machine": machine(),
            "sha256": file_hashes(run_dir),
        },
        "data": describe(dataset),
        "generative": generative,
        "best_generative": best,
        "recall_curves": recall_curves(ranks),
        "calibration": calibration,
        "levels": levels(run_dir, dataset, lists) if generative else {},
        "examples": examples(dataset, lists, [name for name in (best, comparison["best_baseline"]) if name], seed),
    }


def describe(dataset: Dataset) -> dict[str, Any]:
    """The data set's name, protocol and counts."""
    splits = dataset.interactions["split"]
    counts = {name: int((splits == name).sum()) for name in ("train", "valid", "test")}
    return {
        "name": dataset.info["name"],
        "protocol": dataset.info.get("protocol", "not recorded"),
        "users": dataset.interactions["user_id"].n_unique(),
        "items": dataset.n_items,
        **counts,
    }


def recall_curves(ranks: pl.DataFrame) -> dict[str, dict[str, list[float]]]:
    """ "masked" | "unmasked" -> model -> test Recall@1, @2, … up to the largest cut-off."""
    names = ranks["model"].unique(maintain_order=True)
    cutoffs = range(1, CUTOFFS[-1] + 1)
    return {
        title: {
            name: [float(recall_at(ranks_by_repeat(ranks, name, "test", masked), k).mean()) for k in cutoffs]
            for name in names
        }
        for masked, title in MASK_NAMES.items()
    }


def levels(run_dir: Path, dataset: Dataset, lists: pl.DataFrame) -> dict[str, Any]:
    """Accuracy by number of codes, of every model's lists (an item has its codes whoever recommends it), and by chance."""
    codes, targets = read_npy(run_dir / "sid" / "codes_all.npy"), dataset.cases("test").targets
    names = lists["model"].unique(maintain_order=True)
    hits = {name: prefix_hits(items_of(lists, name), targets, codes) for name in names}
    return {"models": hits, "by_chance": by_chance(targets, codes, training_counts(dataset))}


def examples(dataset: Dataset, lists: pl.DataFrame, models: list[str], seed: int) -> list[dict[str, Any]]:
    """Ten test cases drawn by the seed: the last items of the history, the one taken next, and the first ones of each model's list."""
    cases = dataset.cases("test")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(cases))[:EXAMPLES])
    shown = {name: items_of(lists, name)[:, :SHOWN_ITEMS] for name in models}
    return [
        {
            "case": int(case),
            "earlier": max(len(cases.histories[case]) - SHOWN_HISTORY, 0),
            "history": cases.histories[case][-SHOWN_HISTORY:].tolist(),
            "target": int(cases.targets[case]),
            "lists": {name: items[case][items[case] >= 0].tolist() for name, items in shown.items()},
        }
        for case in drawn
    ]


def rounded(value: Any) -> Any:
    """The same with every float rounded, so that figures read well and compare exactly."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, DIGITS) if isinstance(value, float) else value
