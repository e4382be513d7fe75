"""Recall@K and NDCG@K of the trained models and of baselines, over the whole catalogue, on the same cases.

python -m sidrec.evaluation.evaluate --run_dir outputs/demo
python -m sidrec.evaluation.evaluate --run_dir outputs/demo --models sft popularity item_knn
python -m sidrec.evaluation.evaluate --run_dir outputs/demo --models sft sasrec esasrec --tune_baselines true --seeds 3
python -m sidrec.evaluation.evaluate --run_dir outputs/demo --models sft sft_blend slit --blend_with item_knn slit

Everything is fitted on the train part and chosen on valid. Test is read once, at the end. An item counts, not a token string:
semantic IDs are unique, so a recommended ID is a recommended item and credit is exact.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from sidrec.baselines import slit
from sidrec.baselines.blend import BLENDS, ENSEMBLES, EXPERTS, VALID_CASES, WEIGHTS, LatestLogProbs, tune_blend
from sidrec.baselines.counting import Scorer, Tuning, fit_markov, fit_popularity, tune_recent_popularity
from sidrec.baselines.neural import NEURAL, NeuralTraining, train_neural
from sidrec.baselines.sasrec import SasRecSettings
from sidrec.data.dataset import Dataset, EvalCases, SplitName
from sidrec.data.metrics import (
    CUTOFFS,
    count_invalid,
    count_repeats,
    count_seen,
    count_short,
    ranks_in_lists,
    recall_at,
)
from sidrec.data.synthetic import oracle_for
from sidrec.decoding.diagnostics import account
from sidrec.decoding.recommender import STAGE_COMMANDS, Recommendations, Recommender
from sidrec.evaluation import table
from sidrec.evaluation.leaks import check_leaks
from sidrec.evaluation.lists import lists_frame, rank_and_list
from sidrec.evaluation.model_cards import fill_cards
from sidrec.evaluation.report.figures import write_report
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, sha256, write_json
from sidrec.pipeline.stage import Stage, require_finished

MODELS = ("sft", "rl", *BLENDS, "popularity", "recent_popularity", "item_knn", "markov", "slit", *NEURAL)
DEFAULT_MODELS = ("sft", "rl", "popularity", "recent_popularity", "item_knn", "markov", "sasrec")
FORMAT = 3  # of what is written; a folder of another one is measured again
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
        default_factory=lambda: list(DEFAULT_MODELS),
        metadata={
            "help": f"What to measure: any of {' '.join(MODELS)}. sft and rl must have been trained; sft_blend and rl_blend are those "
            "blended with a baseline of --blend_with, sft_ensemble is the run's sft and those of --other_runs together, blended likewise. "
            f"slit takes catalogues of {slit.MOST_ITEMS:,} items at most, and minutes for thousands of items."
        },
    )
    blend_with: list[str] = field(
        default_factory=lambda: ["item_knn"],
        metadata={
            "help": f"Baselines that a blend may be made with, any of {' '.join(EXPERTS)}; the one that is best on valid is taken."
        },
    )
    seed: int = field(
        default=0,
        metadata={"help": "First seed of the neural baselines, and the seed of the bootstrap and of the tests."},
    )
    seeds: int = field(
        default=1,
        metadata={"help": "Trainings of each neural baseline, with seed, seed + 1, …; its row is their mean."},
    )
    other_runs: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "Run directories with the same data whose sft and rl were trained with other seeds; the rows of sft and rl are the "
            "means over this run and those."
        },
    )
    valid_cases: int = field(
        default=0,
        metadata={
            "help": "Most valid cases that every model is measured on, drawn by the seed; 0: all. Test cases are always all measured."
        },
    )
    tune_baselines: bool = field(
        default=False,
        metadata={
            "help": "Choose each neural baseline's width, dropout and learning rate from the same grid of 4 by valid Recall@10; false: the "
            "grid's first. Item-KNN and recent popularity are always tuned on valid."
        },
    )
    sasrec_minutes: float = field(
        default=10.0,
        metadata={
            "help": "Most minutes of one training of a neural baseline; it stops sooner when valid Recall@10 stops rising. One that the "
            "limit ends is named under the table, and goes on when evaluated again with a higher limit."
        },
    )
    sasrec_epochs: int = field(
        default=SasRecSettings.epochs,
        metadata={
            "help": "Most passes of a neural baseline over the training sequences; its learning rate anneals over them."
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Delete the run's evaluation/ and measure again. Trained baselines, in baselines/, are kept where data and settings "
            "are those they were trained with."
        },
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or not self.models:
            raise InputError(f"--models has {unknown or 'nothing'}; give one or more of {' '.join(MODELS)}.")
        self.models = [name for name in MODELS if name in self.models]
        unknown = [name for name in self.blend_with if name not in EXPERTS]
        if unknown or not self.blend_with:
            raise InputError(f"--blend_with has {unknown or 'nothing'}; give one or both of {' '.join(EXPERTS)}.")
        self.blend_with = [name for name in EXPERTS if name in self.blend_with]
        for flag, value in (("--sasrec_minutes", self.sasrec_minutes), ("--sasrec_epochs", self.sasrec_epochs)):
            if not value > 0:
                raise InputError(f"{flag} is {value}; it must be above 0.")
        if set(self.models) & set(ENSEMBLES) and not self.other_runs:
            raise InputError(
                "--models has sft_ensemble, but --other_runs names no run to put together with this one; give some."
            )
        if self.valid_cases < 0:
            raise InputError(f"--valid_cases is {self.valid_cases}; it must not be negative.")
        if self.seeds < 1:
            raise InputError(f"--seeds is {self.seeds}; it must be 1 or more.")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; it must not be negative.")


def main() -> None:
    config = parse_config(EvaluateConfig)
    dataset = Dataset.load(config.run_dir)
    check(dataset, config)
    stage = Stage(config.run_dir, "evaluation", decisive(config), find_inputs(config))
    if stage.begin(config.overwrite):
        loaded = load_models(dataset, config)
        models = loaded.models
        cases = measured_cases(dataset, config)
        ranks, lists, list_checks = rank_all(models, cases, dataset.n_items)
        metrics = table.summarise(ranks, config.seed)
        for name, found in account_all(models, dataset, config.seed).items():
            metrics[name]["decoding"] = found
        comparison = compare(ranks, metrics, list_checks, dataset, cases, config.seed)
        comparison |= {"tuning": tuning_of(loaded.tuning), "cut_short": loaded.cut_short}
        comparison |= {"other_runs": [str(run_dir.resolve()) for run_dir in config.other_runs]}
        saved = save(stage.folder, ranks, lists, metrics, comparison)
        stage.finish(*saved, *write_report(config.run_dir, dataset, ranks, lists, metrics, comparison))
    fill_cards(config.run_dir, config.models, (stage.folder / "table.md").read_text(encoding="utf-8"))
    show(stage.folder)


def check(dataset: Dataset, config: EvaluateConfig) -> None:
    """Raise InputError where a model is missing or the data leave nothing to fit or to measure."""
    for run_dir in (config.run_dir, *config.other_runs):
        for name in trained_stages(config.models):
            try:
                require_finished(run_dir, name, f"{STAGE_COMMANDS[name]} --run_dir {run_dir}")
            except InputError as error:
                needing = " and ".join(model for model in config.models if name in (model, BLENDS.get(model)))
                raise InputError(f"{str(error).rstrip('.')}, or leave {needing} out of --models.") from error
    for run_dir in config.other_runs:
        own, other = (folder / "data" / "interactions.parquet" for folder in (config.run_dir, run_dir))
        if not other.exists() or sha256(own) != sha256(other):
            raise InputError(f"--other_runs has {run_dir}, whose data are not those of {config.run_dir}; leave it out.")
    for split in ("valid", "test"):
        if not (dataset.interactions["split"] == split).any():
            raise InputError(
                f"{config.run_dir / 'data'} has no {split} interaction; prepare data with longer histories."
            )
    if not any(len(sequence) > 1 for sequence in dataset.train_sequences):
        raise InputError(
            f"{config.run_dir / 'data'} has no user with two training interactions; nothing can be fitted."
        )
    if "slit" in asked_experts(config) and dataset.n_items > slit.MOST_ITEMS:
        raise InputError(
            f"slit holds matrices of items x items, and the {dataset.n_items:,} items of {config.run_dir / 'data'} are more than its "
            f"{slit.MOST_ITEMS:,}; leave it out of --models and --blend_with."
        )
    check_leaks(dataset, config.run_dir / "data" / "interactions.parquet")


def decisive(config: EvaluateConfig) -> dict[str, Any]:
    """The settings that decide what is written."""
    neural = [name for name in config.models if name in NEURAL]
    settings: dict[str, Any] = {"models": config.models, "seed": config.seed, "format": FORMAT}
    if config.valid_cases:
        settings |= {"valid_cases": config.valid_cases}
    if set(config.models) & set(BLENDS):
        settings |= {"blend": {"with": config.blend_with, "weights": WEIGHTS, "valid_cases": VALID_CASES}}
    return settings | (neural_training(config).decisive(neural) if neural else {})


def asked_experts(config: EvaluateConfig) -> list[str]:
    """The baselines of EXPERTS that are measured or blended with."""
    blended = set(config.blend_with) if set(config.models) & set(BLENDS) else set()
    return [name for name in EXPERTS if name in blended | set(config.models)]


def trained_stages(models: list[str]) -> list[str]:
    """The stages whose models these models are made of."""
    return sorted({BLENDS.get(name, name) for name in models} & set(STAGE_COMMANDS))


def neural_training(config: EvaluateConfig) -> NeuralTraining:
    return NeuralTraining(
        config.sasrec_epochs,
        config.sasrec_minutes,
        config.seed,
        config.seeds,
        config.tune_baselines,
        config.overwrite,
    )


def find_inputs(config: EvaluateConfig) -> tuple[Path, ...]:
    """What the asked-for models are made from."""
    trained = trained_stages(config.models)
    runs = (config.run_dir, *config.other_runs) if trained else ()
    files = [run_dir / name / "manifest.json" for run_dir in runs for name in trained]
    return (config.run_dir / "data", *(run_dir / "sid" / "codes_all.npy" for run_dir in runs), *files)


@dataclass
class Loaded:
    """models: by name, one a repeat (a training with its own seed). tuning: of the models that were tuned. cut_short: of those
    with trainings that the time limit ended, how many."""

    models: dict[str, list[Model]] = field(default_factory=dict)
    tuning: dict[str, Tuning] = field(default_factory=dict)
    cut_short: dict[str, dict[str, float]] = field(default_factory=dict)


def load_models(dataset: Dataset, config: EvaluateConfig) -> Loaded:
    """The asked-for models, loaded or fitted on the train part."""
    sequences, n_items, valid = dataset.train_sequences, dataset.n_items, dataset.cases("valid")
    training = neural_training(config)
    runs = (config.run_dir, *config.other_runs)
    recommenders = {stage: [Recommender.load(run, stage) for run in runs] for stage in trained_stages(config.models)}
    experts = {name: EXPERTS[name].tune(dataset, valid) for name in asked_experts(config)}
    latest, loaded = LatestLogProbs(), Loaded(tuning={name: tuning for name, (_, tuning) in experts.items()})
    for name in config.models:
        if name in STAGE_COMMANDS:
            loaded.models[name] = [*recommenders[name]]
        elif name in BLENDS:
            blended, others = recommenders[BLENDS[name]], [experts[other][0] for other in config.blend_with]
            blends, loaded.tuning[name] = tune_blend(name, blended, others, valid, n_items, config.seed, latest)
            loaded.models[name] = [*blends]
        elif name in NEURAL:
            scorers, tuning, cut = train_neural(config.run_dir, dataset, valid, name, training)
            loaded.models[name] = list(scorers)
            trainings = len(tuning.grid) + len(scorers) - 1
            if config.tune_baselines:
                loaded.tuning[name] = tuning
            if cut:
                loaded.cut_short[name] = {"cut": cut, "trainings": trainings, "minutes": config.sasrec_minutes}
        elif name in EXPERTS:
            loaded.models[name] = [experts[name][0]]
        elif name == "recent_popularity":
            recent, loaded.tuning[name] = tune_recent_popularity(dataset, valid)
            loaded.models[name] = [recent]
        elif name == "markov":
            loaded.models[name] = [fit_markov(sequences, n_items)]
        else:
            loaded.models[name] = [fit_popularity(sequences, n_items)]
    return loaded


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


def measured_cases(dataset: Dataset, config: EvaluateConfig) -> dict[SplitName, EvalCases]:
    """What every model is asked: all test cases, and as many of valid as wanted."""
    valid = dataset.cases("valid")
    if config.valid_cases:
        valid = valid.drawn(config.valid_cases, config.seed)
    return {"valid": valid, "test": dataset.cases("test")}


def rank_all(
    models: dict[str, list[Model]], cases_of: dict[SplitName, EvalCases], n_items: int
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, dict[str, int]]]:
    """Ranks of every repeat of every model on valid, then on test, the first repeat's first ten items on test with seen items masked,
    and the generative ones' list checks, summed over repeats."""
    frames: list[pl.DataFrame] = []
    lists: list[pl.DataFrame] = []
    list_checks: dict[str, dict[str, int]] = {}
    for split, cases in cases_of.items():
        each = [(name, repeat, model) for name, repeats in models.items() for repeat, model in enumerate(repeats)]
        scorers = [model for *_, model in each if not isinstance(model, Recommender)]
        ranked = iter(rank_and_list(scorers, cases, f"{split}: baselines and blends"))
        for name, repeat, model in each:
            is_listed = split == "test" and repeat == 0
            if not isinstance(model, Recommender):
                own = next(ranked)
                frames += [
                    ranks_frame(name, split, masked, cases, own.ranks[masked], repeat) for masked in (True, False)
                ]
                lists += [lists_frame(name, own.items)] * is_listed
                continue
            for masked in (True, False):
                label = f"{name}: {split}, {table.TITLES[masked]}"
                ranks, found, top = rank_recommender(model, cases, n_items, masked, label)
                so_far = list_checks.get(name, dict.fromkeys(LIST_CHECKS, 0))
                list_checks[name] = {check: so_far[check] + found[check] for check in LIST_CHECKS}
                frames.append(ranks_frame(name, split, masked, cases, ranks, repeat))
                lists += [lists_frame(name, top.items, top.log_probs)] * (is_listed and masked)
    return pl.concat(frames), pl.concat(lists), list_checks


def rank_recommender(
    recommender: Recommender, cases: EvalCases, n_items: int, masked: bool, label: str
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


def account_all(models: dict[str, list[Model]], dataset: Dataset, seed: int) -> dict[str, dict[str, Any]]:
    """Of each generative model's first repeat: leaked mass, forced codes and beam regret, on a sample of the test histories."""
    histories = dataset.cases("test").histories
    drawn = np.random.default_rng(seed).permutation(len(histories))[:ACCOUNTED_HISTORIES]
    sample = [histories[row] for row in np.sort(drawn)]
    return {
        name: asdict(account(model, sample, REGRET_K, seed, f"{name}: accounting"))
        for name, (model, *_) in models.items()
        if isinstance(model, Recommender)
    }


def ranks_frame(model: str, split: str, masked: bool, cases: EvalCases, ranks: np.ndarray, repeat: int) -> pl.DataFrame:
    columns = {"user_id": cases.user_ids, "target": cases.targets, "rank": ranks}
    labels = {"model": pl.lit(model), "split": pl.lit(split), "masked": pl.lit(masked)}
    values = (value.alias(name) for name, value in labels.items())
    return pl.DataFrame(columns).select(*values, *columns, pl.lit(repeat).alias("repeat"))


def compare(
    ranks: pl.DataFrame,
    metrics: table.Metrics,
    list_checks: dict[str, dict[str, int]],
    dataset: Dataset,
    cases: dict[SplitName, EvalCases],
    seed: int,
) -> dict[str, Any]:
    """Everything beside the metrics: the best baseline, paired tests against it, list checks, the demo's best possible Recall."""
    baseline = table.best_baseline(ranks)
    return {
        "seed": seed,
        "models": list(metrics),
        "items": dataset.n_items,
        "cases": {split: len(own) for split, own in cases.items()},
        "best_baseline": baseline,
        "paired_tests": table.compare(ranks, seed),
        "repeats": repeated_recalls(ranks),
        "protocol": dataset.info["protocol"],
        "list_checks": list_checks,
        "oracle": oracle(metrics, dataset) if dataset.info["name"] == "demo" else None,
    }


def repeated_recalls(ranks: pl.DataFrame) -> dict[str, list[float]]:
    """Test Recall@10 with seen items masked of each repeat of the models that have several."""
    found = {}
    for name in ranks["model"].unique(maintain_order=True):
        by_repeat = table.ranks_by_repeat(ranks, name, "test", True)
        if len(by_repeat) > 1:
            found[name] = recall_at(by_repeat, 10).mean(axis=1).tolist()
    return found


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
