"""What would another policy have earned? Estimates from the lists that a randomised policy drew, with the propensities it logged.

A slot's weight is the product, over the slots down to it, of the changed policy's probability of the slot's item over the logged one. So
a slot's reward may depend on the items above it, not on those below (reward interaction, arXiv 2007.12986; cascade, arXiv 2202.01562).

ips      the mean of weight times reward, added up over a list's slots. Unbiased where every item that the changed policy may serve could
         have been drawn.
snips    slot by slot the weighted mean of the rewards (self-normalised). A little biased, most often much steadier.
dr       a reward model's value, corrected by weight times what the model got wrong (doubly robust, arXiv 1103.4601; for one decision
         after the other, arXiv 1511.03722). Unbiased as ips is, whatever the model.

Arrays are of R lists and K slots; a list shorter than K ends in slots that are not shown. Users are what is drawn in the intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.plackett_luce import log_probs_by_slot

ESTIMATORS = ("logged", "ips", "snips", "dr")  # "logged": the mean reward of the lists as they are
FOLDS = 5  # of users; a list's rewards are predicted from the other folds'
SHRINKAGE = 10.0  # showings after which an item's deviation from the mean counts half
FEWEST_EFFECTIVE, LEAST_SHARE = 100, 0.01  # an effective sample size below either is warned of
FAR_FROM_ONE, MANY_ERRORS = 0.01, 4.0  # a mean weight is wrong where it is further off, also in standard errors


@dataclass(frozen=True)
class Estimate:
    """The reward of a list: value, standard error and 95 % interval; gain: value less the logged lists' mean, with its interval."""

    value: float
    standard_error: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


def slot_weights(
    target: np.ndarray, propensities: np.ndarray, shown: np.ndarray, clip: float | None = None
) -> np.ndarray:
    """float64 [R, K]: every slot's weight, at most `clip`; 0 where nothing is shown.

    target, propensities: float [R, K], the two policies' probabilities of each slot's item given those above it. shown: bool [R, K].
    """
    assert target.shape == propensities.shape == shown.shape
    ratios = np.divide(target, propensities, out=np.ones(shown.shape), where=shown)
    weights = np.where(shown, np.cumprod(ratios, axis=1), 0.0)
    return weights if clip is None else np.minimum(weights, clip)


def effective_sample_size(weights: np.ndarray) -> float:
    """(Σ w)² / Σ w² of float [R]: how many lists of the changed policy's own tell as much; 0 where all weights are."""
    largest = weights.max(initial=0.0)
    if largest == 0:
        return 0.0
    scaled = weights / largest  # whose squares do not overflow
    return float(scaled.sum() ** 2 / (scaled**2).sum())


def fold_of_users(users: np.ndarray, seed: int) -> np.ndarray:
    """int64 [R]: the fold of each list, 0 … FOLDS - 1, one for all lists of a user. users: [R], whose list it is."""
    distinct, places = np.unique(users, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(distinct)) % FOLDS)[places]


def predicted_rewards(items: np.ndarray, rewards: np.ndarray, folds: np.ndarray, n_items: int) -> np.ndarray:
    """float64 [FOLDS, K, n_items]: the reward that each item is expected to earn in each slot, learnt from the other folds.

    items: int64 [R, K], -1 where nothing is shown. rewards: float [R, K]. folds: int64 [R]. The prediction is the slot's mean, plus the
    item's mean deviation from it, shrunk towards 0 where it was shown seldom.
    """
    assert items.shape == rewards.shape
    predicted = np.zeros((FOLDS, items.shape[1], n_items))
    for fold in range(FOLDS):
        learnt = (items >= 0) & (folds != fold)[:, None]
        means = np.where(learnt, rewards, 0.0).sum(0) / np.maximum(learnt.sum(0), 1)  # [K]
        deviations = (rewards - means)[learnt]
        sums = np.bincount(items[learnt], weights=deviations, minlength=n_items)
        showings = np.bincount(items[learnt], minlength=n_items)
        predicted[fold] = means[:, None] + sums / (showings + SHRINKAGE)
    return predicted


def predicted_values(log_probs: Tensor, choices: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """What a reward model says of the lists under the changed policy. Returns (before, after), both float64 [B, K].

    log_probs: float [B, N], the changed policy's scores up to a constant a row, -inf for what it never serves. choices: int64 [B, K],
    columns of it, -1 where nothing is shown. predicted: float64 [B, K, N], the reward of each item in each slot. before: the predicted
    reward of a slot and those below it, before its item is drawn; after: the same once the logged item is in it. `before` is
    exactly the mean of `after` over the changed policy's draws of the slot, which is all that an unbiased estimate needs; the slots
    below are valued as if each were the next one, which is exact where one is left.
    """
    shown = choices >= 0
    by_slot = predicted * shown[:, :, None]  # a slot that a list lacks earns nothing
    below = by_slot.flip(1).cumsum(1).flip(1) - by_slot
    before, after = (torch.zeros(choices.shape, dtype=torch.float64, device=log_probs.device) for _ in range(2))
    for slot, open_log_probs in enumerate(log_probs_by_slot(log_probs, choices)):
        probs = open_log_probs.exp()
        share = probs * below[:, slot]
        left = (share.sum(1, keepdim=True) - share) / (1 - probs).clamp(min=1e-12)  # its mean once an item is gone
        values = by_slot[:, slot] + left
        before[:, slot] = (probs * values).sum(1)
        after[:, slot] = values.gather(1, choices[:, slot, None].clamp(min=0))[:, 0]
    return before * shown, after * shown


def ips_of_lists(weights: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """float64 [R]: each list's part of the mean that IPS is. weights, rewards: float [R, K]."""
    return (weights * rewards).sum(1)


def dr_of_lists(weights: np.ndarray, rewards: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float64 [R]: each list's part of the mean that DR is. All float [R, K]; before, after: of `predicted_values`."""
    next_before = np.pad(before[:, 1:], ((0, 0), (0, 1)))
    return before[:, 0] + (weights * (rewards + next_before - after)).sum(1)


def estimates(
    weights: np.ndarray,
    rewards: np.ndarray,
    shown: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    users: np.ndarray,
    seed: int,
    resamples: int = 2000,
) -> dict[str, Estimate]:
    """Every one of ESTIMATORS, with standard errors and 95 % percentile intervals from a bootstrap over users.

    weights, rewards, before, after: float [R, K], 0 where nothing is shown (bool [R, K]). users: [R], whose list it is.
    """
    lists = [np.ones(len(weights)), rewards.sum(1), ips_of_lists(weights, rewards)]
    lists += [dr_of_lists(weights, rewards, before, after)]
    columns = np.column_stack([*lists, shown, weights, weights * rewards])  # [R, 4 + 3 K]
    distinct, places = np.unique(users, return_inverse=True)
    sums = np.stack([np.bincount(places, weights=column) for column in columns.T], axis=1)  # [users, 4 + 3 K]
    rng, n_users = np.random.default_rng(seed), len(distinct)
    drawn = np.empty((resamples, sums.shape[1]))
    for row in drawn:
        row[:] = np.bincount(rng.integers(n_users, size=n_users), minlength=n_users) @ sums
    values, resampled = _values_of(sums.sum(0)[None])[0], _values_of(drawn)
    return {
        name: Estimate(
            float(values[place]),
            float(resampled[:, place].std(ddof=1)),
            *_interval(resampled[:, place]),
            float(values[place] - values[0]),
            *_interval(resampled[:, place] - resampled[:, 0]),
        )
        for place, name in enumerate(ESTIMATORS)
    }


def doubts(weights: np.ndarray, shown: np.ndarray, users: np.ndarray) -> list[str]:
    """Sentences for why the estimates should not be trusted; none where nothing speaks against them.

    weights: float [R, K], not clipped. shown: bool [R, K]. users: [R].
    """
    sentences = []
    sizes = [(effective_sample_size(weights[here, slot]), int(here.sum())) for slot, here in enumerate(shown.T)]
    size, lists = min(sizes, key=lambda pair: pair[0] / pair[1])
    if size < FEWEST_EFFECTIVE or size < LEAST_SHARE * lists:
        sentences.append(
            f"Warning: the {lists:,} lists tell as much as {size:,.1f} lists of this policy would, too few to trust these estimates; log "
            "more lists, shorter ones, or judge a policy that is nearer to the one that served them."
        )
    offs = np.bincount(np.unique(users, return_inverse=True)[1], weights=weights[:, 0] - 1)
    off, error = offs.sum() / len(weights), np.sqrt((offs**2).sum()) / len(weights)
    if abs(off) > max(FAR_FROM_ONE, MANY_ERRORS * error):
        sentences.append(
            f"Warning: the weights of the first slot have the mean {1 + off:.3f}, where 1 is expected: this policy serves items "
            "that the one of the log never or hardly ever did, or the propensities are not those of the draw."
        )
    return sentences


def _values_of(totals: np.ndarray) -> np.ndarray:
    """float64 [n, 4], by ESTIMATORS, of sums [n, 4 + 3 K] over lists."""
    lists, by_slot = totals[:, :4], totals[:, 4:]
    shown, weights, rewards = np.split(by_slot, 3, axis=1)
    means = np.divide(rewards, weights, out=np.zeros_like(rewards), where=weights > 0)
    count = lists[:, :1]
    return np.column_stack([lists[:, 1:3] / count, (shown / count * means).sum(1), lists[:, 3] / count[:, 0]])


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
