"""One way to rank: every model, whatever it gives, is asked for the ranks of the targets and for its first items.

A model that gives lists (`ListRanker`) is asked twice, so that its seen items are masked inside the search; one that gives scores
(`ScoreRanker`) is asked once, and its scores are masked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import polars as pl

from sidrec.baselines.blend import Blend
from sidrec.baselines.scorer import CASES_TOGETHER, Scorer
from sidrec.data.dataset import Dataset, EvalCases, SplitName
from sidrec.data.metrics import (
    CUTOFFS,
    count_invalid,
    count_repeats,
    count_seen,
    count_short,
    mask_seen,
    rank_of_target,
    ranks_in_lists,
)
from sidrec.decoding.recommender import Recommendations, Recommender
from sidrec.evaluation.lists import LIST_LENGTH, first_items, lists_frame
from sidrec.pipeline.screen import Screen

MASKS = (True, False)  # seen items masked, and not
LIST_CHECKS = ("lists", "invalid", "repeats", "short", "seen")
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Ranked:
    """What a model makes of cases.

    ranks: of the targets, 0-based, with seen items masked (True) and not (False), int64 [B] each. items: int64 [B, k], the first k ≥ 10
    without those of the history, best first, -1 where there are fewer. log_probs: float32 [B, k], log π of them; None for a model that
    gives none. checks: counts of LIST_CHECKS over the lists of both masks; empty for a model that gives scores.
    """

    ranks: dict[bool, np.ndarray]
    items: np.ndarray
    log_probs: np.ndarray | None = None
    checks: dict[str, int] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Ranked]) -> Ranked:
        """What a model makes of all cases, from what it makes of some at a time."""
        log_probs = [part.log_probs for part in parts if part.log_probs is not None]
        return cls(
            {masked: np.concatenate([part.ranks[masked] for part in parts]) for masked in MASKS},
            np.concatenate([part.items for part in parts]),
            np.concatenate(log_probs) if log_probs else None,
            summed([part.checks for part in parts]),
        )


class Ranker(Protocol):
    """A model as the evaluation asks it."""

    @property
    def cases_together(self) -> int:
        """Most cases of one call."""
        ...

    def rank(self, cases: EvalCases, progress: Progress) -> Ranked:
        """progress: called with numbers of lists made, two a case in all."""
        ...


@dataclass(frozen=True)
class ListRanker:
    """A recommender, whose lists are searched for the targets. n_items: N, of the catalogue."""

    recommender: Recommender
    n_items: int
    cases_together: int = sys.maxsize  # it puts histories of one length together by itself

    def rank(self, cases: EvalCases, progress: Progress) -> Ranked:
        each = {masked: rank_lists(self.recommender, cases, self.n_items, masked, progress) for masked in MASKS}
        lists = each[True][2]
        return Ranked(
            {masked: ranks for masked, (ranks, _, _) in each.items()},
            lists.items,
            lists.log_probs,
            summed([checks for _, checks, _ in each.values()]),
        )


@dataclass(frozen=True)
class ScoreRanker:
    """A scorer, whose scores are sorted."""

    scorer: Scorer
    cases_together: int = CASES_TOGETHER

    def rank(self, cases: EvalCases, progress: Progress) -> Ranked:
        scores = self.scorer.scores(cases.histories)
        masked = self.masked_scores(cases.histories, scores)
        ranks = {True: rank_of_target(masked, cases.targets), False: rank_of_target(scores, cases.targets)}
        progress(2 * len(cases))
        return Ranked(ranks, first_items(masked, cases.targets, LIST_LENGTH))

    def masked_scores(self, histories: list[np.ndarray], scores: np.ndarray) -> np.ndarray:
        return mask_seen(scores, histories)


@dataclass(frozen=True)
class BlendRanker(ScoreRanker):
    """A blend, in whose masked ranking seen items take no place among those that gain."""

    scorer: Blend

    def masked_scores(self, histories: list[np.ndarray], scores: np.ndarray) -> np.ndarray:
        return self.scorer.scores(histories, exclude_seen=True)


def summed(checks: Sequence[dict[str, int]]) -> dict[str, int]:
    names = [name for name in LIST_CHECKS if any(name in counts for counts in checks)]
    return {name: sum(counts[name] for counts in checks) for name in names}


def rank_lists(
    recommender: Recommender, cases: EvalCases, n_items: int, masked: bool, progress: Progress | None = None
) -> tuple[np.ndarray, dict[str, int], Recommendations]:
    """Ranks of the targets in the recommender's first 50 items (int64 [B], 50 where absent), the counts of LIST_CHECKS, and the lists."""
    lists = recommender.recommend(cases.histories, CUTOFFS[-1], exclude_seen=masked, progress=progress)
    seen = [len(np.unique(history)) if masked else 0 for history in cases.histories]
    checks = {
        "lists": len(lists.items),
        "invalid": count_invalid(lists.items, n_items),
        "repeats": count_repeats(lists.items),
        "short": count_short(lists.items, n_items - np.array(seen)),
        "seen": count_seen(lists.items, cases.histories) if masked else 0,
    }
    return ranks_in_lists(lists.items, cases.targets), checks, lists


def rank_recommender(
    recommender: Recommender, cases: EvalCases, n_items: int, masked: bool, label: str
) -> tuple[np.ndarray, dict[str, int], Recommendations]:
    """`rank_lists` behind a bar of its own."""
    with Screen(label).bar(label, len(cases), "cases") as bar:
        return rank_lists(recommender, cases, n_items, masked, bar.advance)


def rank_each(rankers: Sequence[Ranker], cases: EvalCases, label: str, screen: Screen) -> list[Ranked]:
    """What every ranker makes of the cases. Those that rank few cases at a time do so one after the other, so that they can share what
    they all need of these cases."""
    parts: list[list[Ranked]] = [[] for _ in rankers]
    with screen.bar(label, 2 * len(cases) * len(rankers), "lists") as bar:
        for together in sorted({ranker.cases_together for ranker in rankers}):
            for start in range(0, len(cases), together):
                some = cases.take(np.arange(start, min(start + together, len(cases))))
                for parts_of_ranker, ranker in zip(parts, rankers, strict=True):
                    if ranker.cases_together == together:
                        parts_of_ranker.append(ranker.rank(some, bar.advance))
    return [Ranked.joined(parts_of_ranker) for parts_of_ranker in parts]


@dataclass(frozen=True)
class Ranking:
    """ranks: as ranks.parquet (`sidrec.evaluation.table`), on valid, then on test. lists: as lists.parquet (`sidrec.evaluation.lists`), of
    every model's first repeat on test. list_checks: by model that gives lists, counts of LIST_CHECKS over splits, masks and repeats.
    first_ten: by model and split, the first ten items of each case with seen items masked, int64 [cases, 10] a repeat."""

    ranks: pl.DataFrame
    lists: pl.DataFrame
    list_checks: dict[str, dict[str, int]]
    first_ten: dict[tuple[str, SplitName], list[np.ndarray]] = field(default_factory=dict)


def rank_all(rankers: dict[str, list[Ranker]], cases_of: dict[SplitName, EvalCases], screen: Screen) -> Ranking:
    """Rank the cases of every split by every repeat of every model."""
    frames: list[pl.DataFrame] = []
    lists: list[pl.DataFrame] = []
    checks: dict[str, list[dict[str, int]]] = {}
    first_ten: dict[tuple[str, SplitName], list[np.ndarray]] = {}
    for split, cases in cases_of.items():
        each = [(name, repeat, ranker) for name, repeats in rankers.items() for repeat, ranker in enumerate(repeats)]
        results = rank_each([ranker for *_, ranker in each], cases, f"ranking, {split}", screen)
        for (name, repeat, _), ranked in zip(each, results, strict=True):
            frames += [ranks_frame(name, split, masked, cases, ranked.ranks[masked], repeat) for masked in MASKS]
            first_ten.setdefault((name, split), []).append(ranked.items[:, :LIST_LENGTH])
            if split == "test" and repeat == 0:
                lists.append(lists_frame(name, ranked.items, ranked.log_probs))
            if ranked.checks:
                checks.setdefault(name, []).append(ranked.checks)
    summed_checks = {name: summed(counts) for name, counts in checks.items()}
    return Ranking(pl.concat(frames), pl.concat(lists), summed_checks, first_ten)


def ranks_frame(model: str, split: str, masked: bool, cases: EvalCases, ranks: np.ndarray, repeat: int) -> pl.DataFrame:
    columns = {"user_id": cases.user_ids, "target": cases.targets, "rank": ranks}
    labels = {"model": pl.lit(model), "split": pl.lit(split), "masked": pl.lit(masked)}
    values = (value.alias(name) for name, value in labels.items())
    return pl.DataFrame(columns).select(*values, *columns, pl.lit(repeat).alias("repeat"))


def measured_cases(
    dataset: Dataset, most_valid: int, seed: int, value_column: str | None = None
) -> dict[SplitName, EvalCases]:
    """What every model is asked: the data set's test cases, and at most so many of valid, drawn by the seed; 0: all.

    value_column: of the log, what the cases have values of.
    """
    valid = dataset.cases("valid", value_column)
    if most_valid:
        valid = valid.first_of_shuffle(most_valid, seed)
    return {"valid": valid, "test": dataset.cases("test", value_column)}
