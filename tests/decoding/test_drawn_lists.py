"""Lists drawn by a recommender: as often as π says, with the probabilities that are logged, and never what may not be drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_dirs import N_ITEMS, finished_rq_run
from scipy import sparse

from sidrec.decoding.drawn_lists import drawn_lists
from sidrec.decoding.plackett_luce import slot_probabilities
from sidrec.decoding.product import Expert
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.errors import InputError

HISTORIES = [np.array([3, 1]), np.array([4, 5, 9])]


class LikesEven:
    def gains(self, histories: list[np.ndarray], exclude_seen: bool = True) -> sparse.csr_array:
        gains = np.tile((np.arange(N_ITEMS) % 2 == 0) * np.linspace(0.5, 1.5, N_ITEMS), (len(histories), 1))
        if exclude_seen:
            for row, history in zip(gains, histories, strict=True):
                row[history] = 0
        return sparse.csr_array(gains.astype(np.float32))


@pytest.fixture(scope="module", params=["alone", "blended"])
def recommender(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    run_dir: Path = finished_rq_run(tmp_path_factory)
    alone = Recommender.load(run_dir, "sft")
    return alone if request.param == "alone" else replace(alone, expert=Expert(LikesEven(), 2.0))


def log_probs_by_item(recommender: Recommender, exclude_seen: bool = False) -> torch.Tensor:
    """float32 [B, N]: of what is best first, to the last item; -inf for what may not be recommended."""
    best = recommender.recommend(HISTORIES, N_ITEMS, exclude_seen)
    by_item = torch.full((len(HISTORIES), N_ITEMS), -torch.inf)
    for row, items, log_probs in zip(by_item, best.items, best.log_probs, strict=True):
        row[items[items >= 0]] = torch.from_numpy(log_probs[items >= 0])
    return by_item


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_propensities_are_those_of_the_items_that_are_left(recommender: Recommender, exclude_seen: bool) -> None:
    scores = log_probs_by_item(recommender, exclude_seen)
    drawn = drawn_lists(recommender, HISTORIES, 7, exclude_seen, 1.7, torch.Generator().manual_seed(0))
    items = torch.from_numpy(drawn.lists.items)
    np.testing.assert_allclose(drawn.propensities, slot_probabilities(scores / 1.7, items), rtol=1e-4)
    np.testing.assert_allclose(drawn.lists.log_probs, scores.gather(1, items), atol=1e-4)
    assert [len(set(row)) for row in items.tolist()] == [7, 7]
    assert drawn.lists.reachable.tolist() == [N_ITEMS - exclude_seen * len(history) for history in HISTORIES]


def test_items_are_drawn_as_often_as_the_model_says(recommender: Recommender) -> None:
    n_draws, generator = 4000, torch.Generator().manual_seed(0)
    drawn = drawn_lists(recommender, [HISTORIES[0]] * n_draws, 2, False, 1.0, generator).lists.items
    expected = log_probs_by_item(recommender)[0].exp().numpy()
    counts = np.bincount(drawn[:, 0], minlength=N_ITEMS)
    assert np.abs(counts / n_draws - expected).max() < 4 * np.sqrt(0.25 / n_draws)
    second = np.bincount(drawn[drawn[:, 0] == expected.argmax(), 1], minlength=N_ITEMS)
    without_first = expected * (np.arange(N_ITEMS) != expected.argmax())
    assert np.abs(second / second.sum() - without_first / without_first.sum()).max() < 4 * np.sqrt(0.25 / second.sum())


def test_more_than_there_is_ends_the_list(recommender: Recommender) -> None:
    drawn = drawn_lists(recommender, HISTORIES, N_ITEMS, True, 1.0, torch.Generator().manual_seed(0))
    assert (drawn.lists.items >= 0).sum(1).tolist() == drawn.lists.reachable.tolist()
    assert (drawn.propensities[drawn.lists.items < 0] == 1).all()


@pytest.mark.parametrize("temperature", [0, -1, 1e9, float("nan")])
def test_a_temperature_out_of_range_is_refused(recommender: Recommender, temperature: float) -> None:
    with pytest.raises(InputError, match="must be between"):
        drawn_lists(recommender, HISTORIES, 3, True, temperature, torch.Generator())
