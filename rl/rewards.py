"""Rewards: plain functions of the items drawn and the item taken, one float each, testable alone.

TRL calls them with lists and any other column as a keyword: codes and target_codes (tuples of L codes), items and target (item
indices), history (item indices, oldest first), user (the place of the training sequence that the history begins). Codes and indices are
compared, never strings; nothing is looked up by a prompt's text.
None means that a reward has nothing to say of a question, and TRL leaves it out: rewards that compare with the taken item have nothing to
say of open questions (target NO_TARGET), `history_score` has nothing to say of the others.

A reward of your own is a function with these arguments, named by its dotted path: `--rewards exact_hit my_package.my_reward`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.baselines.scorer import Scorer
from sidrec.pipeline.errors import InputError
from sidrec.rl.dense_rewards import novelty_bits, unit_rows
from sidrec.rl.experimental.rewards import collaborative_score, embedding_similarity, history_score, novel_hit
from sidrec.rl.list_rewards import Categories, Popularity
from sidrec.rl.prompts import NO_TARGET
from sidrec.rl.reward_models import ValueSource, logged_value, predicted_value

Codes = Sequence[int]
Reward = Callable[..., list[float]]
AskedReward = Callable[..., list[float] | list[float | None]]


def exact_hit(codes: list[Codes], target_codes: list[Codes], **_columns: Any) -> list[float]:
    """1 for the item that was taken next, else 0: its mean over a group of G is the group's Recall@G / G."""
    return [float(tuple(drawn) == tuple(wanted)) for drawn, wanted in zip(codes, target_codes, strict=True)]


def prefix_credit(codes: list[Codes], target_codes: list[Codes], **_columns: Any) -> list[float]:
    """The share of leading codes that agree with the target's: d / L for the first d of L codes; 0 to 1."""
    return [agreeing(drawn, wanted) / len(wanted) for drawn, wanted in zip(codes, target_codes, strict=True)]


def rank_penalty(group_size: int) -> Reward:
    """MiniOneRec's ranking reward (arXiv 2510.24431), -1 to 0: in a group that holds the target, a wrong item that stands at place i
    (0 is most probable) gets -(1 / log2(i + 2)) / Σ_j 1 / log2(j + 2); the target, and every item of a group without it, 0."""
    discounts = [1 / math.log2(place + 2) for place in range(group_size)]
    total = sum(discounts)

    def rank_penalty(codes: list[Codes], target_codes: list[Codes], **_columns: Any) -> list[float]:
        hits = exact_hit(codes, target_codes)
        assert len(hits) % group_size == 0, f"{len(hits)} rows are no groups of {group_size}"
        rewards = []
        for start in range(0, len(hits), group_size):
            group = hits[start : start + group_size]
            rewards += [0.0 if hit or not any(group) else -discounts[i] / total for i, hit in enumerate(group)]
        return rewards

    return rank_penalty


def hit_at_k(ks: list[int]) -> Reward:
    """K (1 - π)^(K - 1) for the item that was taken, meaned over `ks`, else 0: what π of it is worth to the Recall of K draws, whose
    gradient the expectation of this has (`sidrec.rl.dense_rewards`). target_prob: π of the taken item when the group was drawn."""

    def hit_at_k(items: list[int], target: list[int], target_prob: list[float], **_columns: Any) -> list[float]:
        worth = [sum(k * (1 - prob) ** (k - 1) for k in ks) / len(ks) for prob in target_prob]
        return [value if item == wanted else 0.0 for item, wanted, value in zip(items, target, worth, strict=True)]

    return hit_at_k


def novelty(popularity: np.ndarray) -> Reward:
    """How seldom an item is taken, 0 to 1; see `sidrec.rl.dense_rewards`. popularity: int64 [N], training interactions."""
    bits = novelty_bits(popularity)

    def novelty(items: list[int], **_columns: Any) -> list[float]:
        return bits[items].astype(float).tolist()

    return novelty


def coverage(n_items: int) -> Reward:
    """How much too seldom the groups of this update, of this process, hold an item: log of an even share over its share of them."""

    def coverage(items: list[int], **_columns: Any) -> list[float]:
        shares = np.bincount(items, minlength=n_items) / len(items) * n_items
        return (-np.log(shares[items])).tolist()

    return coverage


def category_quota(categories: Categories) -> Reward:
    """How much too seldom the groups of this update, of this process, hold an item's category: log of its target share over its share."""

    def category_quota(items: list[int], **_columns: Any) -> list[float]:
        lack = categories.lack(np.bincount(items, minlength=len(categories.membership)))
        return lack[items].astype(float).tolist()

    return category_quota


def calibrated_popularity(popularity: Popularity) -> Reward:
    """Minus the distance of an item's log-popularity from the mean of the user's training history; see `sidrec.rl.dense_rewards`."""

    def calibrated_popularity(items: list[int], user: list[int], **_columns: Any) -> list[float]:
        return (-np.abs(popularity.of_items[items] - popularity.of_users[user])).astype(float).tolist()

    return calibrated_popularity


def diversity(vectors: np.ndarray, group_size: int) -> Reward:
    """How unlike the others of its group an item is, 0 to 2: 1 - the mean cosine with them. vectors: float32 [N, D]."""
    units = unit_rows(vectors)

    def diversity(items: list[int], **_columns: Any) -> list[float]:
        groups = units[np.reshape(items, (-1, group_size))]  # [groups, G, D]
        itself = np.square(groups).sum(2)
        cosines = np.einsum("pgd,pd->pg", groups, groups.sum(1)) - itself
        return (1 - cosines / (group_size - 1)).flatten().astype(float).tolist()

    return diversity


def of_answered(reward: Reward) -> AskedReward:
    """The same reward where the taken item is known, None for open questions."""

    @wraps(reward)
    def of_answered(target: list[int], **columns: Any) -> list[float | None]:
        rewards = reward(target=target, **columns)
        return [None if wanted == NO_TARGET else value for wanted, value in zip(target, rewards, strict=True)]

    return of_answered


@dataclass(frozen=True)
class RewardSources:
    """What rewards are made from. sequences: every user's training items. vectors: float32 [N, D], the items'. group_size: G. scorer:
    makes the model of `history_score`. values: of the column that VALUE_REWARDS are of. categories: of `category_quota`."""

    sequences: Sequence[np.ndarray]
    vectors: np.ndarray
    group_size: int
    scorer: Callable[[], Scorer]
    values: ValueSource | None = None
    hit_k: list[int] = field(default_factory=lambda: [20])
    categories: Categories | None = None

    @property
    def quota_categories(self) -> Categories:
        assert self.categories is not None, "refuse_unknown_rewards has let a reward pass that needs a column"
        return self.categories

    @property
    def popularity(self) -> np.ndarray:
        """int64 [N], training interactions."""
        return np.bincount(np.concatenate(list(self.sequences)), minlength=self.n_items)

    @property
    def n_items(self) -> int:
        return len(self.vectors)

    @property
    def value_source(self) -> ValueSource:
        assert self.values is not None, "refuse_unknown_rewards has let a reward pass that needs a column"
        return self.values


REWARDS: dict[str, Callable[[RewardSources], AskedReward]] = {
    "exact_hit": lambda sources: of_answered(exact_hit),
    "prefix_credit": lambda sources: of_answered(prefix_credit),
    "rank_penalty": lambda sources: of_answered(rank_penalty(sources.group_size)),
    "hit_at_k": lambda sources: of_answered(hit_at_k(sources.hit_k)),
    "novelty": lambda sources: of_answered(novelty(sources.popularity)),
    "coverage": lambda sources: of_answered(coverage(sources.n_items)),
    "category_quota": lambda sources: of_answered(category_quota(sources.quota_categories)),
    "calibrated_popularity": lambda sources: of_answered(
        calibrated_popularity(Popularity(sources.sequences, sources.n_items))
    ),
    "diversity": lambda sources: of_answered(diversity(sources.vectors, sources.group_size)),
    "logged_value": lambda sources: of_answered(logged_value(sources.value_source)),
    "predicted_value": lambda sources: of_answered(predicted_value(sources.value_source)),
    # experimental
    "collaborative_score": lambda sources: of_answered(collaborative_score(sources.sequences, sources.n_items)),
    "embedding_similarity": lambda sources: of_answered(embedding_similarity(sources.vectors)),
    "novel_hit": lambda sources: of_answered(novel_hit(sources.sequences, sources.n_items)),
    "history_score": lambda sources: history_score(sources.scorer()),
}
EXACT_ONLY = ("ndcg_at_k",)  # that look at every item's probability
VALUE_REWARDS = ("logged_value", "predicted_value")  # of a column of the log


def refuse_unknown_rewards(names: Sequence[str], value_column: str | None = None, needed: bool = False) -> None:
    """Raise InputError for a name that is none of REWARDS and no dotted path of a function, and for one of VALUE_REWARDS without a column,
    or a column without one of them. needed: whether something else reads the column."""
    if not names:
        raise InputError(f"rewards has nothing; give any of {', '.join(REWARDS)}.")
    for name in names:
        if name not in (*REWARDS, *EXACT_ONLY):
            import_reward(name)
    of_values = [name for name in names if name in VALUE_REWARDS]
    if of_values and value_column is None:
        raise InputError(
            f"rewards has {of_values[0]}, which rewards values; name their column of the log by value_column."
        )
    if value_column is not None and not of_values and not needed:
        raise InputError(
            f"value_column={value_column} is read by none of rewards={' '.join(names)}; add {' or '.join(VALUE_REWARDS)}, or leave it out."
        )


def import_reward(path: str) -> AskedReward:
    """The function at `my_package.my_reward`, looked for in the working directory too. Raises InputError when there is none."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise InputError(
            f"rewards has {path}; give any of {', '.join(REWARDS)}, or a function of your own as my_package.my_reward."
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        reward = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"rewards has {path}, which cannot be imported ({error}); check the path.") from error
    if not callable(reward):
        raise InputError(
            f"rewards has {path}, which is no function; give a function of codes, target_codes and others."
        )
    return reward


def reward_functions(names: Sequence[str], sources: RewardSources) -> list[AskedReward]:
    """The rewards of these names, of REWARDS or by their dotted paths. Raises InputError for a name that is neither."""
    for name in names:
        if name in EXACT_ONLY:
            raise InputError(f"rewards has {name}, which looks at every item's probability; set draw to every_item.")
    return [REWARDS[name](sources) if name in REWARDS else import_reward(name) for name in names]


def first_difference(codes: list[Codes], target_codes: list[Codes]) -> list[list[float]]:
    """Credit for every code, [B][L]: 1 for leading codes that agree with the target's, -1 for the first that does not, 0 for what
    follows it, which is right or wrong under another prefix than the target's."""
    rows = []
    for drawn, wanted in zip(codes, target_codes, strict=True):
        depth = agreeing(drawn, wanted)
        rows.append([1.0] * depth + [-1.0] * (depth < len(wanted)) + [0.0] * max(0, len(wanted) - depth - 1))
    return rows


def agreeing(drawn: Codes, wanted: Codes) -> int:
    """How many leading codes are the same."""
    depth = 0
    while depth < len(wanted) and drawn[depth] == wanted[depth]:
        depth += 1
    return depth
