"""The files of an evaluation, and what of them is shown on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidrec.data.dataset import Dataset
from sidrec.evaluation import table
from sidrec.evaluation.bundle_command import bundle_command
from sidrec.evaluation.ranking import Ranking
from sidrec.evaluation.report.figures import spreads_of, write_report
from sidrec.pipeline.files import atomic_path, read_json, read_text, write_json
from sidrec.pipeline.screen import Screen

TABLE = "table.md"


def save(
    folder: Path,
    run_dir: Path,
    dataset: Dataset,
    ranking: Ranking,
    metrics: table.Metrics,
    comparison: dict[str, Any],
) -> None:
    """Write ranks.parquet, lists.parquet, metrics.json, comparison.json, table.md, recall.png and the report, each atomically."""
    for name, frame in (("ranks.parquet", ranking.ranks), ("lists.parquet", ranking.lists)):
        with atomic_path(folder / name) as temporary:
            frame.write_parquet(temporary)
    spreads = spreads_of(dataset, ranking.lists)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "comparison.json", comparison)
    with atomic_path(folder / TABLE) as temporary:
        temporary.write_text(table.markdown(metrics, comparison, spreads), encoding="utf-8")
    table.plot_recall(ranking.ranks, folder / "recall.png")
    write_report(folder, run_dir, dataset, ranking.ranks, ranking.lists, metrics, comparison, spreads)


def table_of(folder: Path) -> str:
    """The whole of table.md."""
    return read_text(folder / TABLE)


def show(folder: Path, screen: Screen) -> None:
    """Say one compact table, of test with seen items masked, what comes out of it, where the rest is, and the command that uses it."""
    metrics, comparison = read_json(folder / "metrics.json"), read_json(folder / "comparison.json")
    for line in table.screen_lines(metrics, comparison["models"]):
        screen.say(line)
    screen.summary(
        "evaluation",
        [
            *table.screen_notes(comparison),
            f"unmasked, valid, other cutoffs, tests and notes: {folder / TABLE}; for reading: {folder / 'report.html'}",
            *(": ".join(said) for said in [bundle_command(folder)] if said is not None),
        ],
    )
