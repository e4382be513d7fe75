"""Rewards of which no row of RESULTS.md says anything yet. They are called as those of `sidrec.rl.rewards`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sidrec.baselines.scorer import Scorer, gains
from sidrec.evaluation.variety import takers_of
from sidrec.rl.dense_rewards import unit_rows
from sidrec.rl.prompts import NO_TARGET


def collaborative_score(sequences: Sequence[np.ndarray], n_items: int) -> Callable[..., list[float]]:
    """Cosine of two items' users in the training interactions, 0 to 1 (1 for the target itself): what is taken by the same people."""
    takers = takers_of(list(sequences), n_items)

    def collaborative_score(items: list[int], target: list[int], **_columns: Any) -> list[float]:
        score = takers[items].multiply(takers[target]).sum(1)
        return np.where(np.asarray(items) == np.asarray(target), 1.0, score).tolist()

    return collaborative_score


def embedding_similarity(vectors: np.ndarray) -> Callable[..., list[float]]:
    """Cosine of two items' vectors, -1 to 1. vectors: float32 [N, D]; an all-zero row is like nothing."""
    units = unit_rows(vectors)

    def embedding_similarity(items: list[int], target: list[int], **_columns: Any) -> list[float]:
        return (units[items] * units[target]).sum(1).astype(float).tolist()

    return embedding_similarity


def novel_hit(sequences: Sequence[np.ndarray], n_items: int) -> Callable[..., list[float]]:
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


def history_score(scorer: Scorer) -> Callable[..., list[float | None]]:
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
        for row, (items_before, wanted) in enumerate(zip(history, target, strict=True)):
            if wanted == NO_TARGET:
                rows.setdefault(tuple(items_before), []).append(row)
        histories = [np.asarray(items_before) for items_before in rows]
        gain_rows = gains(scorer, histories) if histories else np.empty((0, 0))
        for gain, places in zip(gain_rows, rows.values(), strict=True):
            for row in places:
                rewards[row] = float(gain[items[row]])
        return rewards

    return history_score
