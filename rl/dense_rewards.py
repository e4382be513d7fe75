"""Rewards over the whole catalogue at once, for exact expectations: what every item would earn, float32 [R, N] by leaf.

`sidrec.rl.rewards` and `sidrec.rl.reward_models` have their forms for the single items of groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.rl.expectation import DenseReward, Questions
from sidrec.rl.experimental.ordered_draws import ndcg_at_k
from sidrec.rl.list_rewards import FEWEST_SHARE, Categories, Popularity
from sidrec.rl.reward_models import ValueSource


def exact_hit(questions: Questions, probs: Tensor) -> Tensor:
    """1 for the item that was taken: its expectation is π of it, the recall of one draw."""
    return at_target(questions, probs, torch.ones(len(questions), device=probs.device))


def hit_at_k(ks: list[int]) -> DenseReward:
    """The Recall of K draws from π, 1 - (1 - π)^K of the taken item, meaned over `ks`: pass@K (arXiv 2503.19595, 2505.15201).

    It is no sum over single draws, so its gradient is that of the reward K (1 - π)^(K - 1) of the taken item: log π counts most where π
    is about 1 / K, and nothing where the question is solved.
    """

    def hit_at_k(questions: Questions, probs: Tensor) -> Tensor:
        missed = 1 - probs.gather(1, questions.targets[:, None])[:, 0]
        worth = torch.stack([k * missed ** (k - 1) for k in ks]).mean(0)
        return at_target(questions, probs, worth)

    return hit_at_k


def prefix_credit(trie: SidTrie) -> DenseReward:
    """The share of leading codes that an item has in common with the taken one."""
    leaves = torch.arange(trie.n_items, device=trie.device)
    items = trie.item_of_leaf[leaves]
    nodes = [trie.ancestors(depth, items) for depth in range(1, trie.n_levels + 1)]

    def prefix_credit(questions: Questions, probs: Tensor) -> Tensor:
        credit = torch.zeros_like(probs)
        for node in nodes:
            credit += node == node[questions.targets][:, None]
        return credit / trie.n_levels

    return prefix_credit


def novelty(popularity: np.ndarray) -> DenseReward:
    """How seldom an item is taken, 0 to 1: -log2 of its share of the training interactions, over that of the least taken one.

    popularity: int64 [N], training interactions by leaf.
    """
    bits = torch.from_numpy(novelty_bits(popularity))

    def novelty(questions: Questions, probs: Tensor) -> Tensor:
        return bits.to(probs.device)[None]

    return novelty


def novelty_bits(popularity: np.ndarray) -> np.ndarray:
    """float32 [N], 0 to 1; see `novelty`."""
    bits = -np.log2((popularity + 1) / (popularity + 1).sum())
    return (bits / max(bits.max(), 1e-9)).astype(np.float32)


def coverage(questions: Questions, probs: Tensor) -> Tensor:
    """How much too seldom the lists of ten of this batch hold an item: log of an even share over its share of them.

    It is the gradient of minus the divergence of the lists' items from an even distribution (inverse propensity, by its logarithm).
    """
    assert questions.exposure is not None
    shares = questions.exposure / questions.exposure.sum().clamp(min=1e-9) * len(questions.exposure)
    return -shares.clamp(min=FEWEST_SHARE).log()[None]


coverage.needs_exposure = True  # type: ignore[attr-defined]


def category_quota(categories: Categories, items: np.ndarray) -> DenseReward:
    """How much too seldom the lists of ten of this batch hold an item's category: log of its target share over its share of them.

    It is the gradient of minus the divergence of the lists' categories from their targets, as `coverage` is of items. items: int64 [N], by
    leaf.
    """

    def category_quota(questions: Questions, probs: Tensor) -> Tensor:
        assert questions.exposure is not None
        counts = np.empty(len(items))
        counts[items] = questions.exposure.cpu().numpy()
        return torch.from_numpy(categories.lack(counts)[items]).to(probs.device)[None]

    category_quota.needs_exposure = True  # type: ignore[attr-defined]
    return category_quota


def calibrated_popularity(popularity: Popularity, items: np.ndarray) -> DenseReward:
    """How near an item's popularity is to that of what the user takes, 0 or less: minus the distance of its log-popularity from the mean of
    the user's training history, in standard deviations of the catalogue's (calibration, arXiv 2103.06364). items: int64 [N], by leaf."""

    def calibrated_popularity(questions: Questions, probs: Tensor) -> Tensor:
        of_items, of_users = (
            torch.from_numpy(each).to(probs.device) for each in (popularity.of_items[items], popularity.of_users)
        )
        return -(of_items - of_users[questions.users][:, None]).abs()

    return calibrated_popularity


def diversity(vectors: np.ndarray) -> DenseReward:
    """How unlike an item is to what else is likely, -1 to 2: 1 - the cosine with the items expected under π.

    The expectation of it is 1 - the mean cosine of two draws, intra-list diversity. vectors: float32 [N, D] by leaf.
    """
    units = torch.from_numpy(unit_rows(vectors))

    def diversity(questions: Questions, probs: Tensor) -> Tensor:
        rows = units.to(probs.device)
        return 1 - (probs @ rows) @ rows.T

    return diversity


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, D], every row scaled to length 1; an all-zero row stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0).astype(np.float32)


def logged_value(values: ValueSource, items: np.ndarray) -> DenseReward:
    """A hit, weighted by what the taken item was worth to the user, as a multiple of the column's mean. items: int64 [N], by leaf."""
    shares = values.shares_of_mean

    def logged_value(questions: Questions, probs: Tensor) -> Tensor:
        users, targets = questions.users.tolist(), items[questions.targets.cpu().numpy()]
        worth = torch.from_numpy(np.asarray(shares[users, targets]).ravel().astype(np.float32))
        return at_target(questions, probs, worth.to(probs.device))

    return logged_value


def predicted_value(values: ValueSource, items: np.ndarray) -> DenseReward:
    """What an item would be worth to the user, hit or not, as a value model of the other users' folds predicts it from all training events
    of this one: less the column's mean, in its standard deviations. items: int64 [N], by leaf."""
    assert values.model.fit.events  # fitted before training begins

    def predicted_value(questions: Questions, probs: Tensor) -> Tensor:
        users, place = np.unique(questions.users.cpu().numpy(), return_inverse=True)
        worth = torch.from_numpy(values.of_users(users.tolist())[:, items])
        return worth.to(probs.device)[torch.from_numpy(place).to(probs.device)]

    return predicted_value


def at_target(questions: Questions, probs: Tensor, values: Tensor) -> Tensor:
    """float32 [R, N]: `values` [R] at the taken items, 0 elsewhere."""
    return torch.zeros_like(probs).scatter_(1, questions.targets[:, None], values[:, None].to(probs.dtype))


@dataclass(frozen=True)
class DenseSources:
    """What dense rewards are made from. items: int64 [N], the item at every leaf of the trie. popularity: int64 [N], training interactions,
    by leaf. vectors: float32 [N, D], by leaf. hit_k: the K of `hit_at_k` and `ndcg_at_k`. values: of rewards that ask for a column of the
    log. sequences: every user's training items. categories: of `category_quota`."""

    trie: SidTrie
    items: np.ndarray
    popularity: np.ndarray
    vectors: np.ndarray
    hit_k: list[int]
    values: ValueSource | None = None
    sequences: Sequence[np.ndarray] = ()
    categories: Categories | None = None

    @property
    def listed_popularity(self) -> Popularity:
        return Popularity(self.sequences, len(self.items))

    @property
    def quota_categories(self) -> Categories:
        assert self.categories is not None, "refuse_unknown_rewards has let a reward pass that needs a column"
        return self.categories

    @property
    def value_source(self) -> ValueSource:
        assert self.values is not None, "refuse_unknown_rewards has let a reward pass that needs a column"
        return self.values


DENSE_REWARDS: dict[str, Callable[[DenseSources], DenseReward]] = {
    "exact_hit": lambda sources: exact_hit,
    "hit_at_k": lambda sources: hit_at_k(sources.hit_k),
    "prefix_credit": lambda sources: prefix_credit(sources.trie),
    "novelty": lambda sources: novelty(sources.popularity),
    "coverage": lambda sources: coverage,
    "category_quota": lambda sources: category_quota(sources.quota_categories, sources.items),
    "calibrated_popularity": lambda sources: calibrated_popularity(sources.listed_popularity, sources.items),
    "diversity": lambda sources: diversity(sources.vectors),
    "logged_value": lambda sources: logged_value(sources.value_source, sources.items),
    "predicted_value": lambda sources: predicted_value(sources.value_source, sources.items),
    # experimental
    "ndcg_at_k": lambda sources: ndcg_at_k(sources.hit_k),
}


def dense_rewards(names: Sequence[str], sources: DenseSources) -> list[DenseReward]:
    """The rewards of these names. Raises InputError for one that has no form over the whole catalogue."""
    for name in names:
        if name not in DENSE_REWARDS:
            raise InputError(
                f"rewards has {name}, which says nothing of every item; give any of {', '.join(DENSE_REWARDS)}, or set draw to gumbel."
            )
    return [DENSE_REWARDS[name](sources) for name in names]
