"""Rewards: plain functions of the items drawn and the item taken, one float each, testable alone.

TRL calls them with lists and any other column as a keyword: codes and target_codes (tuples of L codes), items and target (item
indices), history (item indices, oldest first). Codes and indices are compared, never strings; nothing is looked up by a prompt's text.
None means that a reward has nothing to say of a question, and TRL leaves it out: rewards that compare with the taken item have nothing to
say of open questions (target NO_TARGET), `history_score` has nothing to say of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import scipy.sparse as sp

from sidrec.baselines.scorer import Scorer, gains
from sidrec.rl.prompts import NO_TARGET

Codes = Sequence[int]
Reward = Callable[..., list[float]]
AskedReward = Callable[..., list[float | None]]
REWARDS = (
    "exact_hit",
    "prefix_credit",
    "rank_penalty",
    "collaborative_score",
    "embedding_similarity",
    "novel_hit",
    "history_score",
)


def exact_hit(codes: list[Codes], target_codes: list[Codes], **_columns: Any) -> list[float]:
    """1 for the item that was taken next, else 0: its mean over a group of G is the group's Recall@G / G."""
    return [float(tuple(found) == tuple(wanted)) for found, wanted in zip(codes, target_codes, strict=True)]


def prefix_credit(codes: list[Codes], target_codes: list[Codes], **_columns: Any) -> list[float]:
    """The share of leading codes that agree with the target's: d / L for the first d of L codes; 0 to 1."""
    return [agreeing(found, wanted) / len(wanted) for found, wanted in zip(codes, target_codes, strict=True)]


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


def collaborative_score(sequences: Sequence[np.ndarray], n_items: int) -> Reward:
    """Cosine of two items' users in the training interactions, 0 to 1 (1 for the target itself): what is taken by the same people."""
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    taken = sp.csr_matrix((np.ones(len(users)), (np.concatenate(sequences), users)), shape=(n_items, len(sequences)))
    taken.data[:] = 1  # an item taken twice counts once
    lengths = np.sqrt(np.asarray(taken.sum(1)).ravel())

    def collaborative_score(items: list[int], target: list[int], **_columns: Any) -> list[float]:
        together = np.asarray(taken[items].multiply(taken[target]).sum(1)).ravel()
        norms = lengths[items] * lengths[target]
        score = np.divide(together, norms, out=np.zeros(len(norms)), where=norms > 0)
        return np.where(np.asarray(items) == np.asarray(target), 1.0, score).tolist()

    return collaborative_score


def embedding_similarity(vectors: np.ndarray) -> Reward:
    """Cosine of two items' vectors, -1 to 1. vectors: float32 [N, D]; an all-zero row is like nothing."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)

    def embedding_similarity(items: list[int], target: list[int], **_columns: Any) -> list[float]:
        return (units[items] * units[target]).sum(1).astype(float).tolist()

    return embedding_similarity


def novel_hit(sequences: Sequence[np.ndarray], n_items: int) -> Reward:
    """A hit, discounted by how popular it is, 0 to 1: 1 - (share of the training interactions with items taken less often).

    A hit on the rarest item earns 1, on the most taken one little.
    """
    counts = np.bincount(np.concatenate(sequences), minlength=n_items)
    rising = np.sort(counts)
    before = np.concatenate([[0], rising.cumsum()])  # interactions with the first so many items
    rarer = before[np.searchsorted(rising, counts)] / counts.sum()

    def novel_hit(items: list[int], target: list[int], **_columns: Any) -> list[float]:
        return [float(1 - rarer[item]) * float(item == wanted) for item, wanted in zip(items, target, strict=True)]

    return novel_hit


def history_score(scorer: Scorer) -> AskedReward:
    """The gain, 0 to 1, that an item would have if another model's list after the whole history were right; see
    `sidrec.baselines.scorer.gains`.

    Only open questions are scored (elsewhere None): the interactions that the model was fitted on hold the answers to the others. Held to
    the SFT model by kl_weight β, the policy that this reward asks for is π ∝ π_SFT · exp(gain / β): a product of two experts.
    """

    def history_score(
        items: list[int], history: list[list[int]], target: list[int], **_columns: Any
    ) -> list[float | None]:
        rewards: list[float | None] = [None] * len(items)
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, (taken, wanted) in enumerate(zip(history, target, strict=True)):
            if wanted == NO_TARGET:
                rows.setdefault(tuple(taken), []).append(row)
        histories = [np.asarray(taken) for taken in rows]
        found = gains(scorer, histories) if histories else np.empty((0, 0))
        for gain, places in zip(found, rows.values(), strict=True):
            for row in places:
                rewards[row] = float(gain[items[row]])
        return rewards

    return history_score


def of_answered(reward: Reward) -> AskedReward:
    """The same reward where the taken item is known, None for open questions."""

    @wraps(reward)
    def of_answered(target: list[int], **columns: Any) -> list[float | None]:
        rewards = reward(target=target, **columns)
        return [None if wanted == NO_TARGET else value for wanted, value in zip(target, rewards, strict=True)]

    return of_answered


def reward_functions(
    names: Sequence[str],
    sequences: Sequence[np.ndarray],
    vectors: np.ndarray,
    group_size: int,
    scorer: Callable[[], Scorer],
) -> list[AskedReward]:
    """The rewards of these names. sequences: every user's training items; vectors: float32 [N, D], the items'; scorer: makes the model
    of `history_score`."""
    made: dict[str, Callable[[], AskedReward]] = {
        "exact_hit": lambda: of_answered(exact_hit),
        "prefix_credit": lambda: of_answered(prefix_credit),
        "rank_penalty": lambda: of_answered(rank_penalty(group_size)),
        "collaborative_score": lambda: of_answered(collaborative_score(sequences, len(vectors))),
        "embedding_similarity": lambda: of_answered(embedding_similarity(vectors)),
        "novel_hit": lambda: of_answered(novel_hit(sequences, len(vectors))),
        "history_score": lambda: history_score(scorer()),
    }
    assert set(made) == set(REWARDS)
    return [made[name]() for name in names]


def first_difference(codes: list[Codes], target_codes: list[Codes]) -> list[list[float]]:
    """Credit for every code, [B][L]: 1 for leading codes that agree with the target's, -1 for the first that does not, 0 for what
    follows it, which is right or wrong under another prefix than the target's."""
    rows = []
    for found, wanted in zip(codes, target_codes, strict=True):
        depth = agreeing(found, wanted)
        rows.append([1.0] * depth + [-1.0] * (depth < len(wanted)) + [0.0] * max(0, len(wanted) - depth - 1))
    return rows


def agreeing(found: Codes, wanted: Codes) -> int:
    """How many leading codes are the same."""
    depth = 0
    while depth < len(wanted) and found[depth] == wanted[depth]:
        depth += 1
    return depth
