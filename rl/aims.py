"""What lists are good for beside Recall: the figures on valid by which a checkpoint may be chosen, and what a change of them has cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from sidrec.baselines.value_model import ValueModel
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.evaluation.coverage import count_items, spread
from sidrec.evaluation.value_metrics import mean_of_lists
from sidrec.evaluation.variety import diversity, novelty, takers_of
from sidrec.rl.list_rewards import Categories, Popularity
from sidrec.rl.reward_models import ValueSource
from sidrec.rl.settings import AIMS

LENGTH = 10
CASES_TOGETHER = 512  # of which the values of every item are held at once


@dataclass(frozen=True)
class ListFigures:
    """counts: int64 [N], training interactions. takers: see `takers_of`. cases: whose lists they are. popularity: of items and users;
    places: int64 [cases], each case's user among them, -1 for one without training interactions. values: of a column of the log.
    categories: of a column of the catalogue."""

    counts: np.ndarray
    takers: sparse.csr_array
    cases: EvalCases
    popularity: Popularity
    places: np.ndarray
    values: ValueSource | None = None
    categories: Categories | None = None

    @classmethod
    def of(
        cls, dataset: Dataset, cases: EvalCases, values: ValueSource | None, categories: Categories | None
    ) -> ListFigures:
        """cases: with their histories' values, where there are some."""
        sequences = dataset.train_sequences
        popularity = Popularity(sequences, dataset.n_items)
        place_of = {user: place for place, user in enumerate(dataset.train_users)}
        places = np.array([place_of.get(user, -1) for user in cases.user_ids], dtype=np.int64)
        takers = takers_of(sequences, dataset.n_items)
        return cls(popularity.counts, takers, cases, popularity, places, values, categories)

    def __call__(self, lists: np.ndarray) -> dict[str, float]:
        """Of the first ten items. lists: int64 [cases, k].

        novelty, in bits, and diversity, 0 to 1, are means over lists; coverage is the share of the catalogue that stands in one; evenness
        is 1 less the Gini coefficient of how often items do. value, where there is a column, is what the value model predicts for the
        items after the case's history, in the column's unit. quotas, where there are some, is the share of the lists' items that need not
        be of another category for the targets to be met. popularity_gap is how far an item's log-popularity is from the mean of what the
        user took, in standard deviations of the catalogue's: the less, the nearer.
        """
        items = lists[:, :LENGTH]
        over_items = spread(count_items(items, len(self.counts)))
        figures = {
            "novelty": novelty(items, self.counts),
            "diversity": diversity(items, self.takers) or 0.0,
            "coverage": over_items["coverage"],
            "evenness": 1 - over_items["gini"],
            "popularity_gap": self._popularity_gap(items),
        }
        if self.categories is not None:
            counts = np.bincount(items[items >= 0], minlength=len(self.counts))
            figures["quotas"] = 1 - float(np.abs(self.categories.shares(counts) - self.categories.targets).sum()) / 2
        if self.values is not None:
            figures["value"] = self._value(items, self.values.model)
        return {f"{name}@{LENGTH}": value for name, value in figures.items()}

    def _popularity_gap(self, items: np.ndarray) -> float:
        there = (items >= 0) & (self.places >= 0)[:, None]
        gaps = np.abs(self.popularity.of_items[items] - self.popularity.of_users[self.places][:, None])
        return float(gaps[there].mean()) if there.any() else 0.0

    def _value(self, items: np.ndarray, model: ValueModel) -> float:
        sums = 0.0
        for part in np.split(np.arange(len(items)), range(CASES_TOGETHER, len(items), CASES_TOGETHER)):
            asked = self.cases.take(part)
            assert asked.history_values is not None, "cases of another column, or of none"
            worth = model.values(asked.user_ids, asked.histories, asked.history_values)
            sums += float(np.nansum(mean_of_lists(worth, items[part])))
        return sums / len(items)


def with_kept(metrics: Mapping[str, float], start: Mapping[str, float], prefix: str, margin: float) -> dict[str, float]:
    """Adds `kept_…` figures, which choose a checkpoint: 0 where too much is lost against `start`, the SFT model's.

    kept_ndcg@10: NDCG@10 where Recall@50 is not below the SFT model's: a reward on hits sharpens the top of the list, and is to do so only
    where nothing is lost further down. Of the other aims: where Recall@10 is not below (1 - margin) times the SFT model's.
    """
    deep, first = f"{prefix}_recall@50", f"{prefix}_recall@10"
    choosing = {f"{prefix}_kept_ndcg@10": metrics[f"{prefix}_ndcg@10"] if metrics[deep] >= start[deep] else 0.0}
    enough = metrics[first] >= (1 - margin) * start[first]
    for aim in AIMS:
        if (figure := f"{prefix}_{aim}@{LENGTH}") in metrics:
            choosing[f"{prefix}_kept_{aim}@{LENGTH}"] = metrics[figure] if enough else 0.0
    return {**metrics, **choosing}


def bought(first: Mapping[str, Any], best: Mapping[str, Any], metric: str) -> str:
    """One sentence: what the checkpoint `best` gained of what it was chosen by, and what that cost, against the SFT model's `first`."""
    chosen_by = metric.replace("kept_", "")
    if best["step"] == first["step"]:
        return "RL bought nothing: no checkpoint was better than the SFT model, which stays"
    gain, cost = (change(first[name], best[name]) for name in (chosen_by, "eval_recall@10"))
    name = chosen_by.removeprefix("eval_").replace("ndcg", "NDCG").replace("recall", "Recall")
    price = "for" if best["eval_recall@10"] < first["eval_recall@10"] else "with"
    return f"RL bought {gain} {name} on valid, {price} {cost} Recall@10"


def change(before: float, after: float) -> str:
    """In percent of what was there, with its sign."""
    return f"{(after / before - 1):+.1%}" if before else f"{after:+.4f}"
