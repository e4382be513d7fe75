"""A yardstick from outside: RecTools' own SASRec on a run's split, and our lists by RecTools' own metrics.

RecTools wants older numpy and pandas than this project, so it has an environment of its own, and this file imports nothing of ours:

    python3.11 -m venv rectools
    rectools/bin/pip install "rectools[torch]==0.19.0" polars
    rectools/bin/python benchmarks/rectools_yardstick.py --run_dir outputs/ml-100k --epochs 100

It reads data/ and, where it is there, evaluation/ of the run directory, writes nothing, and prints one JSON object as its last line:
Recall@10 and NDCG@10 of test, seen items masked, of RecTools' model and of each of our models' first trainings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl

K = 10
LOSSES = ("softmax", "BCE", "sampled_softmax")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run_dir", type=Path, required=True, help="run directory with data/, prepared leave-one-out")
    parser.add_argument(
        "--epochs", type=int, default=0, help="passes of RecTools' SASRec over the users; 0: metrics only"
    )
    parser.add_argument("--loss", choices=LOSSES, default="softmax", help="loss of RecTools' SASRec")
    options = parser.parse_args(arguments)
    log = options.run_dir / "data" / "interactions.parquet"
    if not log.exists():
        fail(f"{log} is missing; run `sidrec prepare --run_dir {options.run_dir}` in the project's environment first.")
    try:
        import rectools  # noqa: F401
    except ImportError:
        fail("RecTools is not in this environment; the head of this file says how to make one that has it.")
    interactions = pl.read_parquet(log, glob=False)
    figures: dict[str, Any] = {}
    if (options.run_dir / "evaluation" / "lists.parquet").exists():
        figures |= our_figures(options.run_dir / "evaluation")
    if options.epochs:
        start = time.perf_counter()
        figures["rectools_sasrec"] = rectools_sasrec(interactions, options)
        figures["rectools_sasrec"]["seconds"] = round(time.perf_counter() - start)
    sys.stdout.write(json.dumps(figures) + "\n")


def fail(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence}\n")
    raise SystemExit(2)


def our_figures(evaluation: Path) -> dict[str, dict[str, float]]:
    """By model, RecTools' metrics of our saved lists."""
    import pandas

    lists, ranks = (pl.read_parquet(evaluation / f"{name}.parquet", glob=False) for name in ("lists", "ranks"))
    figures = {}
    for model in lists["model"].unique(maintain_order=True):
        rows = lists.filter(pl.col("model") == model)["items"].to_list()
        cases = (pl.col("model") == model) & (pl.col("split") == "test") & pl.col("masked") & (pl.col("repeat") == 0)
        targets = ranks.filter(cases)["target"].to_list()
        listed = [
            (case, item, place) for case, row in enumerate(rows) for place, item in enumerate(row, 1) if item >= 0
        ]
        figures[model] = measured(
            pandas.DataFrame(listed, columns=["user_id", "item_id", "rank"]),
            pandas.DataFrame({"user_id": range(len(targets)), "item_id": targets}),
        )
    return figures


def rectools_sasrec(interactions: pl.DataFrame, options: argparse.Namespace) -> dict[str, float]:
    """RecTools' SASRec, fitted on the train part, asked with train and valid as the history."""
    import pandas
    import torch
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    torch.manual_seed(0)
    place = pl.int_range(pl.len()).over("user_id")  # the contract's order, of ties, too, as RecTools' time
    log = interactions.with_columns(datetime=pl.datetime(2000, 1, 1) + pl.duration(hours=place), weight=1.0).select(
        "user_id", "datetime", "weight", "split", item_id="item_index"
    )
    part = {
        split: pandas.DataFrame(log.filter(pl.col("split").is_in(names)).drop("split").to_dict(as_series=False))
        for split, names in {"train": ["train"], "history": ["train", "valid"], "test": ["test"]}.items()
    }
    model = SASRecModel(
        n_factors=64,
        session_max_len=200,
        loss=options.loss,
        n_negatives=256,
        lr=1e-3,
        batch_size=32,
        epochs=options.epochs,
        deterministic=True,
    )
    model.fit(Dataset.construct(part["train"]))
    users = part["test"]["user_id"].unique()
    recommended = model.recommend(users, Dataset.construct(part["history"]), k=K, filter_viewed=True)
    return measured(recommended, part["test"])


def measured(recommended: Any, targets: Any) -> dict[str, float]:
    """Recall@10 and NDCG@10 of data frames in RecTools' form."""
    from rectools.metrics import NDCG, Recall, calc_metrics

    metrics = {"recall10": Recall(k=K), "ndcg10": NDCG(k=K, divide_by_achievable=True)}
    return {name: float(value) for name, value in calc_metrics(metrics, recommended, targets).items()}


if __name__ == "__main__":
    main()
