"""Cold items, which were never taken in training: a bias by which they enter lists, and which bias gives them a share of the lists.

    p(y | history) ∝ π(y | history) · exp(bias · [y is cold])

Training has taught π that nobody takes a cold item, which says nothing of them and much of the log. So cold items keep their order among
themselves, as do the others, and one number moves all of them together: the least of all changes of π that gives them their share, as
tilting a distribution is. The list of k best is among the k best cold items and the k best others.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from sidrec.decoding.diversity import within
from sidrec.decoding.recommender import Recommendations
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError


def joined(
    others: Recommendations, cold: Recommendations, bias: float, k: int, trie: SidTrie, diversity: int | None = None
) -> Recommendations:
    """The k best by log π + bias of the cold ones, best first; of equal ones the others first. Their log_probs are log π, without the bias.

    others, cold: lists of each, k items or all there are, within `diversity` (see `sidrec.decoding.diversity`) where that is asked for.
    """
    items = np.concatenate([others.items, cold.items], axis=1)
    log_probs = np.concatenate([others.log_probs, cold.log_probs], axis=1)
    biased = np.concatenate([others.log_probs, cold.log_probs + np.float32(bias)], axis=1)
    order = np.argsort(-biased, axis=1, kind="stable")
    items, log_probs = (np.take_along_axis(values, order, axis=1) for values in (items, log_probs))
    if diversity is not None:
        listed = torch.from_numpy(items).to(trie.device), torch.from_numpy(log_probs).to(trie.device)
        items, log_probs = (values.cpu().numpy() for values in within(trie, *listed, k, diversity))
    return Recommendations(items[:, :k], log_probs[:, :k], others.reachable + cold.reachable)


def bias_of_share(others: np.ndarray, cold: np.ndarray, share: float) -> float:
    """The bias with which cold items have this share of all places of the lists, as nearly as whole places allow.

    others, cold: float [B, k], log π of the k best of each, best first, -inf where there are fewer. The j-th best cold item is among the
    first k where bias > others[k - j] - cold[j], counted from 0 and k - j - 1 in the former: so the bias lies between two of these numbers.
    Raises InputError for a share that is not above 0 and below 1, or more than the cold items can have.
    """
    if not 0 < share < 1:
        raise InputError(f"cold_share={share:g} is no share of lists; give more than 0 and less than 1.")
    assert others.shape == cold.shape, f"others {others.shape}, cold {cold.shape}"
    with np.errstate(invalid="ignore"):  # no item against no item
        needed = np.sort(np.where(np.isneginf(cold), np.inf, others[:, ::-1] - cold), axis=None)
    places, possible = max(1, round(share * needed.size)), int((needed < np.inf).sum())
    if places > possible:
        raise InputError(
            f"cold_share={share:g} is more than the {possible / max(needed.size, 1):.1%} that the cold items can have of these lists; give "
            "less."
        )
    first, after = needed[places - 1], needed[places] if places < possible else np.inf
    if np.isneginf(first):  # lists that are short without them hold as many already
        first = -1e6 if np.isneginf(after) or after == np.inf else after - 1
    return float(first + 1 if math.isinf(after) else (first + after) / 2)
