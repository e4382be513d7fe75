"""Lists drawn at random: their frequencies and their propensities against every ordered list, enumerated."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from sidrec.decoding.plackett_luce import draw_list, slot_probabilities
from sidrec.pipeline.errors import InputError

PI = np.array([0.45, 0.05, 0.2, 0.25, 0.05])


def by_hand(pi: np.ndarray, choices: tuple[int, ...]) -> list[float]:
    """π_i / (1 - Σ π above), slot by slot."""
    return [pi[item] / (pi.sum() - sum(pi[above] for above in choices[:slot])) for slot, item in enumerate(choices)]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_slots_probabilities_are_those_of_the_formula_and_add_up(k: int) -> None:
    lists = list(itertools.permutations(range(5), k))
    scores = torch.tensor(np.log(PI) + 7.0).expand(len(lists), -1)  # a constant changes nothing
    probabilities = slot_probabilities(scores, torch.tensor(lists)).numpy()
    np.testing.assert_allclose(probabilities, [by_hand(PI, each) for each in lists], rtol=1e-12)
    assert probabilities.prod(axis=1).sum() == pytest.approx(1, abs=1e-12)


def test_a_small_rest_is_as_exact_as_a_large_one() -> None:
    """One item has all but 1e-30 of the probability; 1 - π would be 0."""
    log_probs = torch.tensor([[0.0, np.log(1e-30), np.log(3e-30)]], dtype=torch.float64)
    assert slot_probabilities(log_probs, torch.tensor([[0, 2]])).tolist() == [pytest.approx([1, 0.75])]


def test_draws_have_the_frequencies_of_the_formula_at_a_temperature() -> None:
    draws, tempered = 40_000, PI ** (1 / 0.7)
    scores = torch.tensor(np.log(PI) / 0.7, dtype=torch.float32).expand(draws, -1)
    choices, propensities = draw_list(scores, 2, torch.Generator().manual_seed(3))
    drawn = Counter(map(tuple, choices.tolist()))
    expected = {each: draws * np.prod(by_hand(tempered, each)) for each in itertools.permutations(range(5), 2)}
    assert drawn.keys() <= expected.keys()
    assert chisquare([drawn[each] for each in expected], list(expected.values())).pvalue > 0.01
    np.testing.assert_allclose(propensities, [by_hand(tempered, tuple(each)) for each in choices.tolist()], rtol=1e-5)


def test_the_generator_decides_the_draw() -> None:
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    first, second, other = (draw_list(scores, 5, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_what_may_not_be_served_is_not_and_a_short_catalogue_ends_the_list() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, 2.0, -torch.inf]])
    choices, propensities = draw_list(scores, 4, torch.Generator().manual_seed(0))
    assert sorted(choices[0].tolist()) == [-1, -1, 0, 2]
    assert choices[1].tolist() == [1, -1, -1, -1]
    assert propensities[1].tolist() == [1, 1, 1, 1]
    assert propensities[0, 1:].tolist() == [1, 1, 1]
    assert slot_probabilities(scores, torch.tensor([[1, 0], [1, 0]])).tolist() == [
        [0, pytest.approx(0.2689414)],
        [1, 0],
    ]


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="not numbers"):
        draw_list(torch.tensor([[0.0, torch.nan]]), 1, torch.Generator())
