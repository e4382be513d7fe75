"""Intervals and tests against distributions that are known in closed form."""

import itertools

import numpy as np
import pytest

from sidrec.evaluation import statistics
from sidrec.evaluation.statistics import bootstrap_interval, holm, p_in_words, paired_test


def test_interval_of_a_proportion_is_the_binomial_quantiles() -> None:
    values = np.repeat([0.0, 1.0], [800, 200])
    low, high = bootstrap_interval(values, seed=0, resamples=20_000)
    spread = 1.96 * np.sqrt(0.2 * 0.8 / 1000)
    assert low == pytest.approx(0.2 - spread, abs=0.002)
    assert high == pytest.approx(0.2 + spread, abs=0.002)


def test_interval_equals_drawing_case_by_case() -> None:
    values = np.random.default_rng(1).gamma(1.0, size=60)
    drawn = values[np.random.default_rng(2).integers(0, 60, (40_000, 60))].mean(axis=1)
    expected = np.quantile(drawn, [0.05, 0.95])
    assert bootstrap_interval(values, seed=3, resamples=40_000, level=0.9) == pytest.approx(expected, abs=0.01)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval((rng.random(300) < 0.3).astype(float), seed=trial, resamples=400)
        covered += low <= 0.3 <= high
    assert 0.91 <= covered / 400 <= 0.985


def test_same_seed_same_interval_in_chunks_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random(50)
    whole = bootstrap_interval(values, seed=7)
    assert whole == bootstrap_interval(values, seed=7)
    monkeypatch.setattr(statistics, "DRAWN_TOGETHER", 1000)
    assert whole == bootstrap_interval(values, seed=7)


def test_p_value_equals_all_sign_flips() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.random(10).round(1), rng.random(10).round(1)
    sums = [abs(np.dot(signs, a - b)) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean(np.array(sums) >= abs((a - b).sum()) - 1e-9)
    result = paired_test(a, b, seed=0, resamples=50_000)
    assert result.p == pytest.approx(exact, abs=0.01)
    assert result.difference == pytest.approx((a - b).mean())


def test_p_value_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(8)
    p = [paired_test(rng.random(40).round(1), rng.random(40).round(1), seed=i, resamples=400).p for i in range(200)]
    assert 0.015 <= np.mean(np.array(p) < 0.05) <= 0.1
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_a_clear_difference_is_found_and_none_is_not() -> None:
    hits = np.repeat([1.0, 0.0], [100, 900])
    better = np.repeat([1.0, 0.0], [160, 840])
    test = paired_test(better, hits, seed=0)
    assert test.p < 0.001
    assert 0.04 < test.low < test.difference < test.high < 0.08
    assert paired_test(hits, hits, seed=0).p == 1.0


def test_interval_draws_whole_users() -> None:
    rng = np.random.default_rng(9)
    users = np.repeat([f"u{i}" for i in range(40)], rng.integers(1, 6, 40))
    values = rng.random(len(users)).round(1) + 0.5 * (users > "u3")  # cases of a user are alike
    rows = {user: np.flatnonzero(users == user) for user in np.unique(users)}
    names = list(rows)
    means = []
    for _ in range(4000):
        drawn = np.concatenate([rows[names[i]] for i in rng.integers(0, 40, 40)])
        means.append(values[drawn].mean())
    interval = bootstrap_interval(values, seed=0, resamples=20_000, users=users)
    assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)
    alone = bootstrap_interval(values, seed=0, resamples=20_000)
    assert interval[1] - interval[0] > 1.2 * (alone[1] - alone[0])


def test_a_user_with_one_case_each_changes_nothing() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.random(30).round(1), rng.random(30).round(1)
    users = np.array([f"{i:02}" for i in range(30)])
    assert paired_test(a, b, seed=1) == paired_test(a, b, seed=1, users=users)
    order = rng.permutation(30)
    assert bootstrap_interval(a[order], seed=1, users=users[order]) == bootstrap_interval(a, seed=1)


def test_signs_are_flipped_by_user() -> None:
    # two users, many cases: only four flips exist, so no difference between them can be called real
    users = np.repeat(["a", "b"], 50)
    test = paired_test(np.ones(100), np.zeros(100), seed=0, users=users)
    assert test.p == pytest.approx(0.5, abs=0.02)
    assert test.difference == 1.0
    assert paired_test(np.ones(100), np.zeros(100), seed=0).p < 0.001


def test_holm_by_hand_and_by_its_step_down_rule() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    rng = np.random.default_rng(11)
    for _ in range(200):
        p = rng.random(rng.integers(1, 8)) ** 3
        level = rng.random() * 0.2
        rejected = np.zeros(len(p), bool)
        for step, i in enumerate(np.argsort(p)):  # from the smallest, until one is not below its share of the level
            if p[i] > level / (len(p) - step):
                break
            rejected[i] = True
        assert (np.array(holm(p.tolist())) <= level).tolist() == rejected.tolist()


def test_holm_keeps_the_chance_of_any_false_claim() -> None:
    rng = np.random.default_rng(12)
    false_claims = [min(holm(rng.random(10).tolist())) < 0.05 for _ in range(3000)]
    assert 0.03 < np.mean(false_claims) < 0.065


def test_a_p_that_the_number_of_flips_bounds_says_so() -> None:
    rng = np.random.default_rng(0)
    certain = paired_test(np.ones(60), np.zeros(60), seed=0)
    assert p_in_words(11 * certain.p, certain.p) == "≤ 0.0011"
    open_question = paired_test(rng.random(60), rng.random(60), seed=0)
    assert p_in_words(open_question.p, open_question.p) == f"= {open_question.p:.4f}"
