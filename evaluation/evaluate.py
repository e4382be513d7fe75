"""Recall@K and NDCG@K of the trained models and of baselines, over the whole catalogue, on the same cases.

python -m evaluation.evaluate --run_dir outputs/demo
python -m evaluation.evaluate --run_dir outputs/demo --models sft popularity item_knn

Everything is fitted on the train part and chosen on valid. Test is read once, at the end. An item counts, not a token string:
semantic IDs are unique, so a recommended ID is a recommended item and credit is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from data.config import parse_config
from data.dataset import Cases, Dataset, SplitName
from data.stage import InputError, Stage, atomic_path, require_finished, run_as_command, write_json
from data.synthetic import oracle_for
from decoding.accounting import account
from decoding.recommender import STAGE_COMMANDS, Recommendations, Recommender
from evaluation import table
from evaluation.baselines import Scorer, fit_markov, fit_popularity, rank_cases, tune_item_knn
from evaluation.lists import list_cases, lists_frame
from evaluation.metrics import CUTOFFS, count_invalid, count_repeats, count_seen, count_short, ranks_in_lists
from evaluation.model_cards import fill_cards
from evaluation.report import write_report
from evaluation.sasrec import SasRecSettings, train_sasrec

MODELS = ("sft", "rl", "popularity", "item_knn", "markov", "sasrec")
REGRET_K = 10
ACCOUNTED_HISTORIES = 200  # test histories whose decoding is accounted for, drawn by the seed
LIST_CHECKS = ("lists", "invalid", "repeats", "short", "seen")
Model = Scorer | Recommender


@dataclass
class EvaluateConfig:
    """Measure the models of a run directory on valid and test; write metrics, per-case ranks, a table and a plot."""

    run_dir: Path = field(
        default=Path("outputs/demo"),
        metadata={"help": "Run directory; reads data/, sid/, sft/ and rl/ there, writes evaluation/."},
    )
    models: list[str] = field(
        default_factory=lambda: list(MODELS),
        metadata={"help": f"What to measure: any of {' '.join(MODELS)}. sft and rl must have been trained."},
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of SASRec's weights, batches and dropout, of the bootstrap and of the tests."},
    )
    sasrec_minutes: float = field(
        default=10.0,
        metadata={"help": "Most minutes of SASRec training; it stops sooner when valid Recall@10 stops rising."},
    )
    sasrec_epochs: int = field(
        default=SasRecSettings.epochs, metadata={"help": "Most passes of SASRec over the training sequences."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Delete the run's evaluation/ and measure again, SASRec's training included."}
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or not self.models:
            raise InputError(f"--models has {unknown or 'nothing'}; give one or more of {' '.join(MODELS)}.")
        self.models = [name for name in MODELS if name in self.models]
        for flag, value in (("--sasrec_minutes", self.sasrec_minutes), ("--sasrec_epochs", self.sasrec_epochs)):
            if not value > 0:
                raise InputError(f"{flag} is {value}; it must be above 0.")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; it must not be negative.")


def main() -> None:
    config = parse_config(EvaluateConfig)
    dataset = Dataset.load(config.run_dir)
    check(dataset, config)
    stage = Stage(config.run_dir, "evaluation", decisive(config), find_inputs(config))
    if stage.begin(config.overwrite):
        models = load_models(dataset, config, stage.folder)
        ranks, lists, list_checks = rank_all(models, dataset)
        metrics = table.summarise(ranks, config.seed)
        for name, found in account_all(models, dataset, config.seed).items():
            metrics[name]["decoding"] = found
        comparison = compare(ranks, metrics, list_checks, dataset, config.seed)
        saved = save(stage.folder, ranks, lists, metrics, comparison)
        stage.finish(*saved, *write_report(config.run_dir, dataset, ranks, lists, metrics, comparison))
    fill_cards(config.run_dir, config.models, (stage.folder / "table.md").read_text(encoding="utf-8"))
    show(stage.folder)


def check(dataset: Dataset, config: EvaluateConfig) -> None:
    """Raise InputError where a model is missing or the data leave nothing to fit or to measure."""
    for name in sorted(set(config.models) & set(STAGE_COMMANDS)):
        try:
            require_finished(config.run_dir, name, f"{STAGE_COMMANDS[name]} --run_dir {config.run_dir}")
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')}, or leave {name} out of --models.") from error
    for split in ("valid", "test"):
        if not (dataset.interactions["split"] == split).any():
            raise InputError(
                f"{config.run_dir / 'data'} has no {split} interaction; prepare data with longer histories."
            )
    if not any(len(sequence) > 1 for sequence in dataset.train_sequences):
        raise InputError(
            f"{config.run_dir / 'data'} has no user with two training interactions; nothing can be fitted."
        )


def decisive(config: EvaluateConfig) -> dict[str, Any]:
    """The settings that decide what is written."""
    settings: dict[str, Any] = {"models": config.models, "seed": config.seed}
    if "sasrec" in config.models:
        settings |= {"sasrec": asdict(sasrec_settings(config)), "sasrec_minutes": config.sasrec_minutes}
    return settings


def sasrec_settings(config: EvaluateConfig) -> SasRecSettings:
    return SasRecSettings(epochs=config.sasrec_epochs)


def find_inputs(config: EvaluateConfig) -> tuple[Path, ...]:
    """What the asked-for models are made from."""
    trained = [name for name in config.models if name in STAGE_COMMANDS]
    files = [config.run_dir / name / "manifest.json" for name in trained]
    codes = [config.run_dir / "sid" / "codes_all.npy"] if trained else []
    return (config.run_dir / "data", *codes, *files)


def load_models(dataset: Dataset, config: EvaluateConfig, folder: Path) -> dict[str, Model]:
    """The asked-for models, loaded or fitted on the train part. SASRec trains last, and goes on from `folder`/sasrec.pt."""
    sequences, n_items, valid = dataset.train_sequences, dataset.n_items, dataset.cases("valid")
    makers: dict[str, Callable[[], Model]] = {
        "sft": lambda: Recommender.load(config.run_dir, "sft"),
        "rl": lambda: Recommender.load(config.run_dir, "rl"),
        "popularity": lambda: fit_popularity(sequences, n_items),
        "item_knn": lambda: tune_item_knn(dataset, valid),
        "markov": lambda: fit_markov(sequences, n_items),
        "sasrec": lambda: train_sasrec(
            sequences, valid, n_items, sasrec_settings(config), config.seed, config.sasrec_minutes, folder / "sasrec.pt"
        ),
    }
    return {name: makers[name]() for name in config.models}


def rank_all(
    models: dict[str, Model], dataset: Dataset
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, dict[str, int]]]:
    """Ranks of every model on valid, then on test, its first ten items on test with seen items masked, and the generative ones' list
    checks."""
    frames: list[pl.DataFrame] = []
    lists: list[pl.DataFrame] = []
    list_checks: dict[str, dict[str, int]] = {}
    splits: tuple[SplitName, ...] = ("valid", "test")
    for split in splits:
        cases = dataset.cases(split)
        for name, model in models.items():
            for masked in (True, False):
                is_listed = split == "test" and masked
                if isinstance(model, Recommender):
                    label = f"{name}: {split}, {table.TITLES[masked]}"
                    ranks, found, top = rank_recommender(model, cases, dataset.n_items, masked, label)
                    so_far = list_checks.get(name, dict.fromkeys(LIST_CHECKS, 0))
                    list_checks[name] = {check: so_far[check] + found[check] for check in LIST_CHECKS}
                    if is_listed:
                        lists.append(lists_frame(name, top.items, top.log_probs))
                else:
                    ranks = rank_cases(model, cases, masked)
                    if is_listed:
                        lists.append(lists_frame(name, list_cases(model, cases)))
                frames.append(ranks_frame(name, split, masked, cases, ranks))
    return pl.concat(frames), pl.concat(lists), list_checks


def rank_recommender(
    recommender: Recommender, cases: Cases, n_items: int, masked: bool, label: str
) -> tuple[np.ndarray, dict[str, int], Recommendations]:
    """Ranks of the targets in the recommender's top lists (int64 [B], the list's length where absent), the lists' checks, the lists."""
    found = recommender.recommend(cases.histories, CUTOFFS[-1], exclude_seen=masked, progress=label)
    items = found.items
    seen = [len(np.unique(history)) if masked else 0 for history in cases.histories]
    checks = {
        "lists": len(items),
        "invalid": count_invalid(items, n_items),
        "repeats": count_repeats(items),
        "short": count_short(items, n_items - np.array(seen)),
        "seen": count_seen(items, cases.histories) if masked else 0,
    }
    return ranks_in_lists(items, cases.targets), checks, found


def account_all(models: dict[str, Model], dataset: Dataset, seed: int) -> dict[str, dict[str, Any]]:
    """Of each generative model: leaked mass, forced codes and beam regret, on a sample of the test histories."""
    histories = dataset.cases("test").histories
    drawn = np.random.default_rng(seed).permutation(len(histories))[:ACCOUNTED_HISTORIES]
    sample = [histories[row] for row in np.sort(drawn)]
    return {
        name: asdict(account(model, sample, REGRET_K, seed, f"{name}: accounting"))
        for name, model in models.items()
        if isinstance(model, Recommender)
    }


def ranks_frame(model: str, split: str, masked: bool, cases: Cases, ranks: np.ndarray) -> pl.DataFrame:
    columns = {"user_id": cases.user_ids, "target": cases.targets, "rank": ranks}
    labels = {"model": pl.lit(model), "split": pl.lit(split), "masked": pl.lit(masked)}
    return pl.DataFrame(columns).select(*(value.alias(name) for name, value in labels.items()), *columns)


def compare(
    ranks: pl.DataFrame,
    metrics: table.Metrics,
    list_checks: dict[str, dict[str, int]],
    dataset: Dataset,
    seed: int,
) -> dict[str, Any]:
    """Everything beside the metrics: the best baseline, paired tests against it, list checks, the demo's best possible Recall."""
    baseline = table.best_baseline(ranks)
    return {
        "seed": seed,
        "models": list(metrics),
        "items": dataset.n_items,
        "cases": {split: len(dataset.cases(split)) for split in ("valid", "test")},
        "best_baseline": baseline,
        "paired_tests": table.compare(ranks, baseline, seed) if baseline else [],
        "list_checks": list_checks,
        "oracle": oracle(metrics, dataset) if dataset.info["name"] == "demo" else None,
    }


def oracle(metrics: table.Metrics, dataset: Dataset) -> dict[str, Any]:
    """Per split: the best possible Recall@K, and the share of its expected value that each model reaches with seen items masked.

    The demo's users never take an item twice, so its best possible model masks what was seen.
    """
    found: dict[str, Any] = {}
    for split in ("valid", "test"):
        best = oracle_for(dataset, split, CUTOFFS)
        shares = {
            name: {str(k): splits[split]["masked"][f"recall@{k}"] / best["expected"][k] for k in CUTOFFS}
            for name, splits in metrics.items()
        }
        found[split] = {kind: {str(k): value for k, value in values.items()} for kind, values in best.items()}
        found[split]["share_of_expected"] = shares
    return found


def save(
    folder: Path, ranks: pl.DataFrame, lists: pl.DataFrame, metrics: table.Metrics, comparison: dict[str, Any]
) -> list[Path]:
    """Write the stage's files but for those of the report, each atomically; return their paths."""
    names = ("ranks.parquet", "metrics.json", "comparison.json", "table.md", "recall.png", "lists.parquet")
    paths = [folder / name for name in names]
    for path, frame in ((paths[0], ranks), (paths[5], lists)):
        with atomic_path(path) as temporary:
            frame.write_parquet(temporary)
    write_json(paths[1], metrics)
    write_json(paths[2], comparison)
    with atomic_path(paths[3]) as temporary:
        temporary.write_text(table.markdown(metrics, comparison), encoding="utf-8")
    table.plot_recall(ranks, paths[4])
    return paths


def show(folder: Path) -> None:
    """Print the saved comparison."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    console = Console()
    for masked in (True, False):
        console.print(table.screen_table(metrics, comparison["models"], masked))
    for note in [*table.notes(comparison), *table.decoding_notes(metrics)]:
        console.print(f"• {note}", highlight=False)
    console.print(
        f"Written to {folder}: report.html, metrics.json, comparison.json, ranks.parquet, table.md, recall.png",
        highlight=False,
    )


if __name__ == "__main__":
    run_as_command(main)
