"""Calibration against brute force and against probabilities that are true by construction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.evaluation.calibration import calibrate, calibrate_lists
from sidrec.evaluation.statistics import bootstrap_interval

CASES = st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(CASES, st.integers(1, 5))
def test_the_error_is_the_weighted_distance_in_bins(cases: list[tuple[float, bool]], bins: int) -> None:
    predicted, happened = (np.array(column) for column in zip(*cases, strict=True))
    calibration = calibrate(predicted, happened, np.arange(len(cases)), seed=0, bins=bins)
    ordered = sorted(predicted.tolist())
    borders = [ordered[-(-len(cases) * i // bins) - 1] for i in range(1, bins)]
    groups: dict[int, list[tuple[float, bool]]] = {}
    for case in cases:
        groups.setdefault(sum(border < case[0] for border in borders), []).append(case)
    assert [row["cases"] for row in calibration["bins"]] == [len(groups[place]) for place in sorted(groups)]
    distances = [
        len(cases_of_bin) * abs(np.mean([p for p, _ in cases_of_bin]) - np.mean([h for _, h in cases_of_bin]))
        for cases_of_bin in groups.values()
    ]
    assert calibration["ece"] == pytest.approx(sum(distances) / len(cases))
    for row in calibration["bins"]:
        assert row["interval"][0] <= row["happened"] <= row["interval"][1]


def test_true_probabilities_have_a_small_error_and_overconfident_ones_a_known_one() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(20_000) * 0.4
    happened = rng.random(20_000) < truth
    users = np.arange(20_000)
    assert calibrate(truth, happened, users, seed=0)["ece"] < 0.02
    too_sure = calibrate(truth + 0.5, happened, users, seed=0)
    assert too_sure["ece"] == pytest.approx(0.5, abs=0.02)
    assert [row["cases"] for row in too_sure["bins"]] == [2_000] * 10


def test_lists_by_hand() -> None:
    items = np.array([[4, 2, -1], [1, 3, 0]])
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([[0.5, 0.25, 0.0], [0.2, 0.1, 0.1]], dtype=np.float32))  # -inf at "no item"
    calibration = calibrate_lists(items, log_probs, np.array([4, 0]), np.array([0, 1]), seed=0)
    assert calibration["top1"]["predicted"] == pytest.approx(0.35)
    assert calibration["top1"]["happened"] == 0.5
    assert calibration["top10"]["predicted"] == pytest.approx((0.75 + 0.4) / 2)
    assert calibration["top10"]["happened"] == 1.0
    assert calibration["top10"]["ece"] == pytest.approx((0.25 + 0.6) / 2)  # two cases, each a bin of its own
    assert [row["cases"] for row in calibration["top10"]["bins"]] == [1, 1]


def test_a_user_is_drawn_with_all_cases() -> None:
    predicted, happened = np.full(6, 0.5), np.array([True, True, True, False, False, True])
    bin_of_all = calibrate(predicted, happened, np.array([0, 0, 0, 1, 1, 2]), seed=0)["bins"][0]
    assert bin_of_all["interval"] == list(bootstrap_interval(happened * 1.0, 0, users=np.array([0, 0, 0, 1, 1, 2])))
    assert bin_of_all["interval"] != list(bootstrap_interval(happened * 1.0, 0))
