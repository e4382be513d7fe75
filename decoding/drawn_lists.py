"""Lists that a recommender draws at random instead of giving the best: what is served so that another policy can be judged by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.item_indices import at_least_one, item_histories
from sidrec.decoding.leaf_search import items_at
from sidrec.decoding.plackett_luce import draw_list
from sidrec.decoding.recommender import SCORES_PER_BATCH, Recommendations, Recommender
from sidrec.pipeline.errors import InputError

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.01, 100.0


@dataclass(frozen=True)
class DrawnLists:
    """lists: the items in the order in which they were drawn, with their log-probabilities as next items, temperature 1. propensities:
    float64 [B, k], the probability of each slot's item given the items above it, 1 where there is none."""

    lists: Recommendations
    propensities: np.ndarray


def check_temperature(temperature: float) -> None:
    if not LEAST_TEMPERATURE <= temperature <= GREATEST_TEMPERATURE:
        raise InputError(
            f"temperature={temperature:g} must be between {LEAST_TEMPERATURE:g} and {GREATEST_TEMPERATURE:g}; 1 draws by the model's "
            "probabilities, more draws more evenly."
        )


@torch.inference_mode()
def drawn_lists(
    recommender: Recommender,
    histories: list[np.ndarray],
    k: int,
    exclude_seen: bool,
    temperature: float,
    generator: torch.Generator,
) -> DrawnLists:
    """k items of every history without replacement, each by its probability ** (1 / temperature) among those that are left.

    histories: item indices, oldest first, none empty. exclude_seen: items of the history cannot be drawn. generator: on the CPU. With an
    expert the probabilities are the product's. Every item is scored, whatever the catalogue's size. Raises InputError for a k below 1 and
    a temperature out of range.
    """
    k, histories = at_least_one(k, "k"), item_histories(histories)
    check_temperature(temperature)
    snapshot = recommender.catalogue.snapshot
    trie = snapshot.trie
    items = np.full((len(histories), k), -1, dtype=np.int64)
    log_probs = np.full(items.shape, -np.inf, dtype=np.float32)
    reachable, propensities = np.zeros(len(histories), dtype=np.int64), np.ones(items.shape)
    for rows in recommender.batches(histories, max(1, SCORES_PER_BATCH // trie.n_items)):
        batch = [histories[row] for row in rows]
        scores = recommender.leaf_log_probs(batch, snapshot)
        if recommender.expert is not None:
            scores = recommender.expert.proposals(batch, trie, exclude_seen).times(scores)
        scores = Eligibility(trie, len(rows), batch if exclude_seen else None).close(scores)
        leaves, chances = draw_list(scores / temperature, k, generator)
        chosen = scores.gather(1, leaves.clamp(min=0)).masked_fill(leaves < 0, -torch.inf)
        items[rows] = items_at(trie, leaves.clamp(min=0), chosen).cpu().numpy()
        log_probs[rows], propensities[rows] = chosen.cpu().numpy(), chances.cpu().numpy()
        reachable[rows] = (scores > -torch.inf).sum(1).cpu().numpy()
    return DrawnLists(Recommendations(items, log_probs, reachable), propensities)
