"""What RL buys of other aims than accuracy, and what that costs in Recall@10: a front of weights, beside what needs no RL.

accelerate launch sft/train.py --run_dir outputs/ml-100k --seeds 3
python -m benchmarks.rl_front --dataset ml-100k --run_dir outputs/ml-100k --work_dir outputs/rl_front_ml --json

Aims: the mean value of a list by a value model of other users' folds, and Recall@10 of events that were liked, where the log has
ratings; coverage and evenness of the catalogue; diversity. Families: RL with a reward for value, for coverage and for diversity beside
hit@20; SFT that goes on; hits weighted by the logged value; and from the SFT model's own log π, without training: log π + weight · value,
log π - weight · log popularity, and MMR. A family's weight is chosen on valid, the best aim where Recall@10 is not below (1 - --margin)
times SFT's, and reported on test: differences paired over cases, the mean over the seeds, bootstrap intervals over users. The picture and
the page have all weights on test. Leave one out, whole catalogue, seen items left out. Finished rows are kept in --work_dir. The last line
is one JSON object.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.finished_rows import FinishedRows, markdown
from benchmarks.front_page import write_page
from benchmarks.harness import announce, plain_console, print_figures
from benchmarks.rerankers import LENGTH, Reranker, by_logit_adjustment, by_mmr, by_value, top_items
from benchmarks.rl_runs import RlRunsConfig, base_of, begin_run, folder_of, require_sft_models, train_rl
from sidrec.baselines.value_model import FOLDS, ValueModel, fit_value_model
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.coverage import count_items, spread
from sidrec.evaluation.statistics import bootstrap_interval
from sidrec.evaluation.value_metrics import mean_of_lists
from sidrec.evaluation.variety import diversity, takers_of
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json
from sidrec.rl.dense_rewards import unit_rows
from sidrec.rl.practice import item_vectors
from sidrec.sft.validation import sample_cases
from sidrec.tokenizer.semantic_ids import SemanticIds

SFT = "SFT"
VALUE_COLUMN, LIKED_FROM = "rating", 4.0
VALUE_SEED = (
    100  # of the value model that judges: its users are dealt into other folds than those of the rewards' model
)
TOGETHER = 256  # cases whose scores of every item are held at once
OF_VALUE = f"--value_column {VALUE_COLUMN} --metric_for_best_model eval_kept_value@10"
TRAINED: dict[str, tuple[str, tuple[float, ...]]] = {  # RL by family: flags with {weight}, and the weights
    "RL for value": (
        f"--rewards hit_at_k predicted_value --reward_weights 1 {{weight}} {OF_VALUE}",
        (0.05, 0.1, 0.2, 0.4),
    ),
    "RL for coverage": (
        "--rewards hit_at_k coverage --reward_weights 1 {weight} --metric_for_best_model eval_kept_coverage@10",
        (0.01, 0.02, 0.04, 0.08),
    ),
    "RL for coverage, beside log π": (
        "--rewards coverage --reward_weights {weight} --sft_loss_weight 1 --metric_for_best_model eval_kept_coverage@10",
        (0.02, 0.05, 0.1, 0.2),
    ),
    "RL for diversity": (
        "--rewards hit_at_k diversity --reward_weights 1 {weight} --metric_for_best_model eval_kept_diversity@10",
        (0.2, 0.5, 1.0, 2.0),
    ),
    "hits by logged value": (f"--rewards logged_value --reward_weights {{weight}} {OF_VALUE}", (1.0,)),
    "SFT goes on": ("--rewards exact_hit --reward_weights {weight} --sft_loss_weight 1", (0.0,)),
}
RERANKED = {
    "log π + value": (0.05, 0.1, 0.2, 0.4, 0.8),
    "log π - log popularity": (0.05, 0.1, 0.2, 0.3, 0.5),
    "MMR": (0.25, 0.5, 1.0, 2.0),
}
OF_RATINGS = ("RL for value", "hits by logged value", "log π + value")  # families that need them
AIMS = {
    "value": "value@10",
    "liked_recall": "liked Recall@10",
    "coverage": "coverage@10",
    "evenness": "1 - Gini",
    "diversity": "diversity",
}
HEADER = (
    "family, its weight chosen on valid for|weight|Recall@10 [95 %]|value@10|liked Recall@10|coverage@10|Gini|diversity"
)


@dataclass
class RlFrontConfig(RlRunsConfig):
    """Train RL for several aims with several weights, and compare the lists with those of re-ranking."""

    families: list[str] = field(
        default_factory=lambda: [*TRAINED, *RERANKED],
        metadata={"help": f"Any of {', '.join(map(repr, [*TRAINED, *RERANKED]))}."},
    )
    margin: float = field(default=0.03, metadata={"help": "Share of SFT's Recall@10 on valid that a weight may cost."})
    cases: int = field(default=5_000, metadata={"help": "Cases of a split, at most; the same for every row."})
    page: Path | None = field(default=None, metadata={"help": "Folder for front.html and front.png."})

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.families if name not in (*TRAINED, *RERANKED)]
        if unknown:
            raise InputError(
                f"--families has {unknown[0]!r}; give any of {', '.join(map(repr, [*TRAINED, *RERANKED]))}."
            )
        if not 0 <= self.margin <= 1:
            raise InputError(f"--margin is {self.margin}; it must be a share, 0 to 1.")


@dataclass(frozen=True)
class Judge:
    """What lists are judged by. cases: of valid and test, with values where the log has the column."""

    dataset: Dataset
    cases: dict[str, EvalCases]
    has_values: bool

    @classmethod
    def of(cls, run_dir: Path, most: int) -> Judge:
        dataset = Dataset.load(run_dir)
        has_values = VALUE_COLUMN in dataset.interactions.columns
        column = VALUE_COLUMN if has_values else None
        cases = {split: sample_cases(dataset.cases(split, column), most, seed=0) for split in ("valid", "test")}
        return cls(dataset, cases, has_values)

    @cached_property
    def model(self) -> ValueModel:
        return fit_value_model(self.dataset, VALUE_COLUMN, FOLDS, VALUE_SEED)

    @cached_property
    def takers(self) -> Any:
        return takers_of(self.dataset.train_sequences, self.dataset.n_items)

    def values(self, cases: EvalCases) -> np.ndarray:
        """float32 [B, N]: the value of every item after each history, less the column's mean, in its standard deviations; 0 without one."""
        if not self.has_values:
            return np.zeros((len(cases), self.dataset.n_items), np.float32)
        assert cases.history_values is not None
        worth = self.model.values(cases.user_ids, cases.histories, cases.history_values)
        return (worth - np.float32(self.model.mean)) / np.float32(self.model.deviation)

    def figures(self, lists: np.ndarray, split: str) -> dict[str, np.ndarray | float]:
        """recall, liked (NaN where the event was not liked) and value by case, float64 [cases]; coverage, evenness and diversity of all."""
        cases = self.cases[split]
        over_items = spread(count_items(lists, self.dataset.n_items))
        recall = (lists == cases.targets[:, None]).any(1).astype(float)
        figures: dict[str, np.ndarray | float] = {
            "recall": recall,
            "coverage": over_items["coverage"],
            "evenness": 1 - over_items["gini"],
            "diversity": diversity(lists, self.takers) or 0.0,
        }
        if self.has_values:
            assert cases.values is not None
            parts = [slice(start, start + TOGETHER) for start in range(0, len(cases), TOGETHER)]
            standard = np.concatenate(
                [mean_of_lists(self.values(cases.take(np.arange(len(cases))[part])), lists[part]) for part in parts]
            )
            figures["value"] = self.model.mean + self.model.deviation * standard
            figures["liked_recall"] = np.where(cases.values >= LIKED_FROM, recall, np.nan)
        return figures


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(RlFrontConfig, arguments), plain_console()
    torch.set_num_threads(config.threads)
    require_sft_models(config)
    announce(console, "rl_front", arguments)
    judge = Judge.of(config.run_dir, config.cases)
    finished = FinishedRows(config.work_dir / "rows.json")
    points = {(SFT, 0.0): make(SFT, 0.0, judge, finished, config, console)}
    for family in config.families:
        if family in OF_RATINGS and not judge.has_values:
            continue
        for weight in TRAINED[family][1] if family in TRAINED else RERANKED[family]:
            points[family, weight] = make(family, weight, judge, finished, config, console)
    chosen = chosen_points(points, config.margin)
    console.print(f"\n## {config.dataset}: test, {config.seeds} seeds\n")
    rows = [in_words(SFT, 0.0, points[SFT, 0.0]["test"], points, judge)]
    rows += [
        in_words(f"{family}: {AIMS[aim]}", weight, points[family, weight]["test"], points, judge)
        for (family, aim), weight in chosen.items()
    ]
    console.print(markdown(HEADER.split("|"), rows))
    if config.page is not None:
        write_page(config.page, config.dataset, {key: means(point["test"]) for key, point in points.items()}, AIMS)
    if config.json:
        print_figures(key_figures(points, chosen, judge) | {"seeds": config.seeds})


Point = dict[str, dict[str, Any]]  # by split, the figures of `Judge.figures`, the mean over the seeds


def make(
    family: str, weight: float, judge: Judge, finished: FinishedRows, config: RlFrontConfig, console: Console
) -> Point:
    """The figures of a family's weight, the mean over seeds; lists are made unless they are there."""
    each = [judged(family, weight, seed, judge, finished, config, console) for seed in range(config.seeds)]
    return {
        split: {name: np.mean([figures[split][name] for figures in each], axis=0) for name in each[0][split]}
        for split in judge.cases
    }


def judged(
    family: str, weight: float, seed: int, judge: Judge, finished: FinishedRows, config: RlFrontConfig, console: Console
) -> Point:
    base, name = base_of(config.run_dir, seed), f"{family} {weight:g} seed {seed}"
    flags = TRAINED[family][0].format(weight=weight) if family in TRAINED else ""
    made_from = {"flags": flags, "cases": config.cases, "sft": read_json(base / "sft" / "manifest.json")["outputs"]}
    folder = folder_of(config.work_dir, name)
    if finished.find(name, made_from) is None:
        seconds = make_lists(family, weight, seed, base, folder, judge, config)
        finished.keep(name, made_from, {"seconds": seconds})
        console.print(f"{time.strftime('%H:%M:%S')}  {name}: {seconds:.0f} s")
    return {split: judge.figures(np.load(folder / f"{split}.npy", allow_pickle=False), split) for split in judge.cases}


def make_lists(
    family: str, weight: float, seed: int, base: Path, folder: Path, judge: Judge, config: RlFrontConfig
) -> float:
    """Write the lists of valid and test, int64 [cases, 10], into `folder`; the processor seconds of training."""
    begin_run(base, folder)
    seconds = 0.0
    if family in TRAINED:
        flags = [*shlex.split(TRAINED[family][0].format(weight=weight)), "--recall_margin", "0.3"]
        seconds = train_rl(flags, folder, seed, config.threads)
    recommender = Recommender.load(folder, "rl" if family in TRAINED else "sft")
    rerank = reranker(family, folder, judge)
    for split, cases in judge.cases.items():
        parts = [cases.take(part) for part in np.array_split(np.arange(len(cases)), -(-len(cases) // TOGETHER))]
        lists = [rerank(scores_of(recommender, part.histories), judge.values(part), weight) for part in parts]
        with atomic_path(folder / f"{split}.npy") as temporary, temporary.open("wb") as handle:
            np.save(handle, np.concatenate(lists), allow_pickle=False)
    return seconds


def reranker(family: str, run_dir: Path, judge: Judge) -> Reranker:
    """How a family makes lists of log π; a trained one's are the most probable items."""
    if family == "log π + value":
        return by_value
    if family == "log π - log popularity":
        counts = np.bincount(np.concatenate(judge.dataset.train_sequences), minlength=judge.dataset.n_items)
        return by_logit_adjustment(counts)
    if family == "MMR":
        return by_mmr(unit_rows(item_vectors(SemanticIds.load(run_dir))))
    return lambda log_probs, values, weight: top_items(log_probs, LENGTH)


def scores_of(recommender: Recommender, histories: list[np.ndarray]) -> np.ndarray:
    """float32 [B, N]: log π of every item, -inf for the items of the history."""
    trie = recommender.trie
    by_leaf = recommender.leaf_log_probs(histories).cpu().numpy()
    scores = np.empty_like(by_leaf)
    scores[:, trie.item_of_leaf[torch.arange(trie.n_items)].cpu().numpy()] = by_leaf
    for row, history in zip(scores, histories, strict=True):
        row[history] = -np.inf
    return scores


def means(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(np.nanmean(value)) for name, value in figures.items()}


def chosen_points(points: dict[tuple[str, float], Point], margin: float) -> dict[tuple[str, str], float]:
    """By family and aim, the weight with the most of the aim on valid among those that keep Recall@10 there; families without one are
    left out."""
    least = (1 - margin) * means(points[SFT, 0.0]["valid"])["recall"]
    chosen: dict[tuple[str, str], float] = {}
    for aim in AIMS:
        best: dict[str, tuple[float, float]] = {}
        for (family, weight), point in points.items():
            figures = means(point["valid"])
            if family != SFT and aim in figures and figures["recall"] >= least:
                best[family] = max(best.get(family, (-np.inf, 0.0)), (figures[aim], weight))
        chosen |= {(family, aim): weight for family, (_, weight) in best.items()}
    return chosen


def recall_gain(point: Point, sft: Point, users: np.ndarray) -> tuple[float, float, float]:
    """Recall@10 on test less SFT's, and its interval over users, all as shares of SFT's."""
    difference, scale = point["test"]["recall"] - sft["test"]["recall"], sft["test"]["recall"].mean()
    low, high = bootstrap_interval(difference, seed=0, users=users)
    return difference.mean() / scale, low / scale, high / scale


def key_figures(
    points: dict[tuple[str, float], Point], chosen: dict[tuple[str, str], float], judge: Judge
) -> dict[str, Any]:
    """Relative gains over SFT on test of RL's best family for each aim, and of the best without RL; gini_gain is a difference.
    recall10_low: the lowest end of their intervals of Recall@10, as a share of SFT's."""
    sft, users = points[SFT, 0.0], np.asarray(judge.cases["test"].user_ids)
    base, lows = means(sft["test"]), []
    figures: dict[str, Any] = {}
    for aim in AIMS:
        if aim not in base:
            continue
        for who, families in (
            ("", tuple(name for name in TRAINED if name.startswith("RL"))),
            ("best_reranker_", tuple(RERANKED)),
        ):
            on_valid = {
                family: means(points[family, chosen[family, aim]]["valid"])[aim]
                for family in families
                if (family, aim) in chosen
            }
            if not on_valid:
                figures[f"{who}{aim}_gain"] = None
                continue
            family = max(on_valid, key=lambda name: on_valid[name])
            point = points[family, chosen[family, aim]]
            figures[f"{who}{aim}_gain"] = means(point["test"])[aim] / base[aim] - 1
            figures[f"{who}{aim}_by"] = f"{family} {chosen[family, aim]:g}"
            if aim == "evenness":
                figures[f"{who}gini_gain"] = base[aim] - means(point["test"])[aim]
            if not who:
                lows.append(recall_gain(point, sft, users)[1])
    return {"recall10_low": min(lows, default=None)} | figures


def in_words(
    name: str, weight: float, figures: dict[str, Any], points: dict[tuple[str, float], Point], judge: Judge
) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    mean, sft = means(figures), points[SFT, 0.0]
    recall = f"{mean['recall']:.4f}"
    if name != SFT:
        gain, low, high = recall_gain({"test": figures}, sft, np.asarray(judge.cases["test"].user_ids))
        recall += f" ({gain:+.1%} [{low:+.1%}, {high:+.1%}])"
    of_values = [f"{mean['value']:.3f}", f"{mean['liked_recall']:.4f}"] if "value" in mean else ["", ""]
    return [
        name,
        f"{weight:g}",
        recall,
        *of_values,
        f"{mean['coverage']:.3f}",
        f"{1 - mean['evenness']:.3f}",
        f"{mean['diversity']:.3f}",
    ]


if __name__ == "__main__":
    run_as_command(main)
