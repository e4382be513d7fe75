"""Off-policy estimates against the true value: every ordered list of a small catalogue, enumerated."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch

from sidrec.decoding.plackett_luce import draw_list, slot_probabilities
from sidrec.evaluation.off_policy import (
    FOLDS,
    SHRINKAGE,
    doubts,
    dr_of_lists,
    effective_sample_size,
    estimates,
    fold_of_users,
    ips_of_lists,
    predicted_rewards,
    predicted_values,
    slot_weights,
)

N, K = 5, 2
LOGGING = np.log([0.3, 0.1, 0.25, 0.15, 0.2])
CHANGED = np.log([0.05, 0.4, 0.1, 0.35, 0.1])


class World(NamedTuple):
    """Every ordered list of `k` items: the two policies' slot probabilities, and rewards that depend on the items above."""

    lists: np.ndarray
    logging: np.ndarray
    changed: np.ndarray
    rewards: np.ndarray

    @classmethod
    def of(cls, k: int) -> World:
        lists = np.array(list(itertools.permutations(range(N), k)))
        of_item, of_pair = np.random.default_rng(0).normal(size=(k, N)), np.random.default_rng(1).normal(size=(N, N))
        rewards = of_item[np.arange(k), lists] + np.isin(lists, (1, 3))  # the changed policy's favourites
        rewards[:, 1:] += of_pair[lists[:, :-1], lists[:, 1:]]
        return cls(lists, slots(LOGGING, lists), slots(CHANGED, lists), rewards)

    @property
    def value(self) -> float:
        """What the changed policy earns."""
        return float((self.changed.prod(1) * self.rewards.sum(1)).sum())

    def mean(self, values: np.ndarray) -> float:
        """Under the logging policy."""
        return float(self.logging.prod(1) @ values)

    def weights(self) -> np.ndarray:
        return slot_weights(self.changed, self.logging, self.lists >= 0)

    def values(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """predicted: [K, N]."""
        each = torch.from_numpy(np.broadcast_to(predicted, (len(self.lists), *predicted.shape)).copy())
        scores = torch.from_numpy(CHANGED).expand(len(self.lists), -1)
        before, after = predicted_values(scores, torch.from_numpy(self.lists), each)
        return before.numpy(), after.numpy()


def slots(log_probs: np.ndarray, lists: np.ndarray) -> np.ndarray:
    return slot_probabilities(torch.from_numpy(log_probs).expand(len(lists), -1), torch.from_numpy(lists)).numpy()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ips_has_the_true_value_as_its_mean(k: int) -> None:
    world = World.of(k)
    assert world.mean(ips_of_lists(world.weights(), world.rewards)) == pytest.approx(world.value, abs=1e-12)
    assert abs(world.mean(world.rewards.sum(1)) - world.value) > 0.1  # the logged lists' is another
    np.testing.assert_allclose([world.mean(column) for column in world.weights().T], 1, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_dr_has_the_true_value_as_its_mean_whatever_the_model_says(k: int, seed: int) -> None:
    world = World.of(k)
    values = world.values(3 * np.random.default_rng(seed).normal(size=(k, N)))
    assert world.mean(dr_of_lists(world.weights(), world.rewards, *values)) == pytest.approx(world.value, abs=1e-12)


def test_dr_is_the_true_value_on_every_list_where_the_model_is_right() -> None:
    world, predicted = World.of(K), np.random.default_rng(0).normal(size=(K, N))
    world = world._replace(rewards=predicted[np.arange(K), world.lists])
    by_list = dr_of_lists(world.weights(), world.rewards, *world.values(predicted))
    np.testing.assert_allclose(by_list, world.value, atol=1e-12)


def test_a_right_model_leaves_longer_lists_little_variance() -> None:
    world, predicted = World.of(4), np.random.default_rng(0).normal(size=(4, N))
    world = world._replace(rewards=predicted[np.arange(4), world.lists])
    by_list = dr_of_lists(world.weights(), world.rewards, *world.values(predicted))
    ips = ips_of_lists(world.weights(), world.rewards)
    assert world.mean(by_list**2) - world.value**2 < 0.3 * (world.mean(ips**2) - world.value**2)


def test_lists_of_different_lengths_are_judged_as_each_length_alone() -> None:
    short, long = World.of(1), World.of(2)
    lists = np.concatenate([np.pad(short.lists, ((0, 0), (0, 1)), constant_values=-1), long.lists])
    shown = lists >= 0
    weights = slot_weights(slots(CHANGED, lists), slots(LOGGING, lists), shown)
    assert np.array_equal(weights[:N, 1], np.zeros(N))
    np.testing.assert_allclose(weights[shown], np.concatenate([short.weights().ravel(), long.weights().ravel()]))
    predicted = np.random.default_rng(0).normal(size=(2, N))
    each = torch.from_numpy(np.broadcast_to(predicted, (len(lists), 2, N)).copy())
    before, after = predicted_values(torch.from_numpy(CHANGED).expand(len(lists), -1), torch.from_numpy(lists), each)
    for world, rows in ((short, slice(0, N)), (long, slice(N, None))):
        k = world.lists.shape[1]
        expected = world.values(predicted[:k])
        np.testing.assert_allclose(before[rows, :k], expected[0], atol=1e-12)
        np.testing.assert_allclose(after[rows, :k], expected[1], atol=1e-12)
    assert not before[:N, 1].any()
    assert not after[:N, 1].any()


def test_equal_policies_weigh_one_and_all_estimates_but_the_models_are_the_logged_mean() -> None:
    world = World.of(K)
    weights = slot_weights(world.logging, world.logging, world.lists >= 0)
    assert np.array_equal(weights, np.ones_like(weights))
    assert effective_sample_size(weights[:, -1]) == pytest.approx(len(world.lists))
    nothing = np.zeros_like(weights)
    users = np.arange(len(weights)) // 2
    by_name = estimates(weights, world.rewards, weights > 0, nothing, nothing, users, seed=0, resamples=200)
    mean = world.rewards.sum(1).mean()
    for each in by_name.values():
        assert each.value == pytest.approx(mean)
        assert each.gain == pytest.approx(0, abs=1e-12)
        assert each.gain_low == pytest.approx(0, abs=1e-12)
        assert (each.low, each.high) == pytest.approx((by_name["logged"].low, by_name["logged"].high))


def test_the_estimates_are_those_of_the_formulas() -> None:
    weights = np.array([[2.0, 4.0], [0.5, 0.1], [1.0, 0.0]])
    rewards = np.array([[1.0, 0.0], [2.0, 3.0], [4.0, 0.0]])
    shown = np.array([[True, True], [True, True], [True, False]])
    zeros = np.zeros((3, 2))
    by_name = estimates(weights, rewards, shown, zeros + 0.25 * shown, zeros, np.arange(3), seed=0, resamples=50)
    assert by_name["logged"].value == pytest.approx(10 / 3)
    assert by_name["ips"].value == pytest.approx((2 + 1 + 0.3 + 4) / 3)
    assert by_name["snips"].value == pytest.approx((2 + 1 + 4) / 3.5 + 2 / 3 * 0.3 / 4.1)
    assert by_name["dr"].value == pytest.approx((2 + 1 + 0.3 + 4) / 3 + 0.25 + 0.25 * (2 + 0.5) / 3)
    assert by_name["ips"].gain == pytest.approx(7.3 / 3 - 10 / 3)


def test_a_clip_cuts_the_product_and_leaves_the_rest() -> None:
    target, logged = np.array([[0.6, 0.8, 0.1]]), np.array([[0.2, 0.4, 0.4]])
    shown = np.ones((1, 3), dtype=bool)
    np.testing.assert_allclose(slot_weights(target, logged, shown), [[3, 6, 1.5]])
    np.testing.assert_allclose(slot_weights(target, logged, shown, clip=4), [[3, 4, 1.5]])


def test_the_effective_sample_size() -> None:
    assert effective_sample_size(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert effective_sample_size(np.array([1.0, 3.0])) == pytest.approx(16 / 10)
    assert effective_sample_size(np.zeros(4)) == 0
    assert effective_sample_size(np.array([1e200, 1e200])) == pytest.approx(2)


def test_the_model_of_a_fold_has_not_seen_it() -> None:
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(N)[:K] for _ in range(60)])
    items[::7, 1] = -1
    rewards = np.where(items >= 0, rng.normal(size=items.shape), 0.0)
    users = np.array([f"u{i // 3}" for i in range(60)])
    folds = fold_of_users(users, seed=0)
    assert all(len(set(folds[users == user])) == 1 for user in set(users))
    assert set(folds) == set(range(FOLDS))
    predicted = predicted_rewards(items, rewards, folds, N)
    changed = predicted_rewards(items, np.where((folds == 2)[:, None], 100.0, rewards), folds, N)
    assert np.array_equal(predicted[2], changed[2])
    assert not np.array_equal(predicted[1], changed[1])
    learnt = (folds != 2)[:, None] & (items >= 0)
    means = [rewards[learnt[:, slot], slot].mean() for slot in range(K)]
    of_item = [(slot, rewards[row, slot]) for row, slot in zip(*np.nonzero(learnt & (items == 3)), strict=True)]
    deviation = sum(reward - means[slot] for slot, reward in of_item) / (len(of_item) + SHRINKAGE)
    np.testing.assert_allclose(predicted[2, :, 3], np.array(means) + deviation)


def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    """300 logs of 300 users, two lists each whose user likes or dislikes everything; clicks are drawn."""
    users, likes = np.repeat(np.arange(300), 2), np.array([[0.1, 0.5, 0.3, 0.7, 0.2], [0.1, 0.3, 0.1, 0.4, 0.1]])
    every = World.of(K).lists
    value = float((slots(CHANGED, every).prod(1) * likes[np.arange(K), every].sum(1)).sum())
    generator, rng, hits, trials = torch.Generator().manual_seed(0), np.random.default_rng(0), np.zeros(3), 300
    for seed in range(trials):
        items, propensities = (
            tensor.numpy() for tensor in draw_list(torch.from_numpy(LOGGING).expand(600, -1), K, generator)
        )
        mood = rng.choice([0.8, 1.2], 300)[users, None]
        rewards = (rng.random(items.shape) < mood * likes[np.arange(K), items]).astype(float)
        shown = items >= 0
        weights = slot_weights(slots(CHANGED, items), propensities, shown)
        folds = fold_of_users(users, seed)
        predicted = torch.from_numpy(predicted_rewards(items, rewards, folds, N)[folds])
        scores = torch.from_numpy(CHANGED).expand(600, -1)
        before, after = (each.numpy() for each in predicted_values(scores, torch.from_numpy(items), predicted))
        by_name = estimates(weights, rewards, shown, before, after, users, seed, resamples=200)
        hits += [by_name[name].low <= value <= by_name[name].high for name in ("ips", "snips", "dr")]
        assert by_name["snips"].standard_error < by_name["ips"].standard_error
    assert (hits / trials > 0.90).all(), hits / trials
    assert (hits / trials < 0.99).all(), hits / trials


def test_what_is_doubtful_is_said() -> None:
    rng = np.random.default_rng(0)
    users, shown = np.arange(1000), np.ones((1000, 2), dtype=bool)
    sound = rng.exponential(size=(1000, 2))
    assert doubts(sound, shown, users) == []
    heavy = np.where(np.arange(1000)[:, None] < 5, 200.0, 1e-3) * shown
    (sentence,) = doubts(np.column_stack([sound[:, 0], heavy[:, 0]]), shown, users)
    assert "the 1,000 lists tell as much as 5.0 lists" in sentence
    (sentence,) = doubts(0.6 * sound, shown, users)
    assert "the weights of the first slot have the mean 0.6" in sentence
    assert len(doubts(np.ones((50, 1)), np.ones((50, 1), dtype=bool), users[:50])) == 1  # fewer than 100 lists
