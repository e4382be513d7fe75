"""Diversity and one-call filters inside decoding, against the exhaustive ranking filtered by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_dirs import N_ITEMS, finished_rq_run, finished_sft_run

from sidrec.decoding.diversity import place_among_equals
from sidrec.decoding.product import Expert
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.errors import InputError

HISTORIES = [np.array([0, 1, 2]), np.array([31, 32, 33, 34, 35, 36]), np.array([59]), np.arange(40)]


@pytest.fixture(scope="module", params=["flat", "rq_transformer", "searched"])
def recommender(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    run_dir = (finished_sft_run if request.param == "flat" else finished_rq_run)(tmp_path_factory)
    if request.param == "searched":  # as in a catalogue too large to be scored whole
        request.getfixturevalue("small_limit")
    return Recommender.load(Path(run_dir), "sft")


@pytest.fixture(scope="module")
def small_limit():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidrec.decoding.recommender.MOST_SCORED", 10)
        yield


def by_hand(recommender: Recommender, history: np.ndarray, k: int, allowed: np.ndarray, most: int) -> list[int]:
    """The whole catalogue in the policy's order, filled into a list item by item."""
    ranking = recommender.recommend([history], N_ITEMS, exclude_seen=False, exact=True).items[0]
    chosen: list[int] = []
    codes = recommender.renderer.codes[:, 0].tolist()
    for item in ranking:
        full = sum(codes[other] == codes[item] for other in chosen) >= most
        if allowed[item] and item not in history and not full and len(chosen) < k:
            chosen.append(int(item))
    return chosen


@pytest.mark.parametrize("most", [1, 2, 5, 60])
@pytest.mark.parametrize("share", [1.0, 0.4, 0.05])
def test_a_list_is_the_best_under_filter_and_diversity(recommender: Recommender, most: int, share: float) -> None:
    allowed = np.random.default_rng(1).random(N_ITEMS) < share
    for k in (1, 4, 25):
        lists = recommender.recommend(HISTORIES, k, exclude_seen=True, beams=N_ITEMS, allowed=allowed, diversity=most)
        for row, history in enumerate(HISTORIES):
            wanted = by_hand(recommender, history, k, allowed, most)
            assert lists.items[row].tolist() == wanted + [-1] * (k - len(wanted))
            assert lists.reachable[row] == len(by_hand(recommender, history, N_ITEMS, allowed, most))
            assert (np.isneginf(lists.log_probs[row]) == (lists.items[row] < 0)).all()


def test_a_narrow_search_fills_the_list_too(recommender: Recommender) -> None:
    lists = recommender.recommend(HISTORIES, 8, exclude_seen=True, beams=1, diversity=2)
    codes = recommender.renderer.codes[:, 0].numpy()
    for row in range(len(HISTORIES)):
        items = lists.items[row][lists.items[row] >= 0]
        assert len(items) == min(8, lists.reachable[row])
        assert np.bincount(codes[items]).max() <= 2
        assert (np.diff(lists.log_probs[row][: len(items)]) <= 0).all()


def test_a_filter_meets_an_allow_list_and_a_catalogue_that_changed(tmp_path_factory: pytest.TempPathFactory) -> None:
    recommender = Recommender.load(finished_rq_run(tmp_path_factory), "sft")
    recommender.catalogue.set_allow_list("even", np.arange(0, N_ITEMS, 2))
    recommender.catalogue.remove(np.array([10, 12]))
    lists = recommender.recommend(
        [np.array([1])], N_ITEMS, True, allow="even", allowed=np.arange(20) >= 8, diversity=60
    )
    assert sorted(item for item in lists.items[0] if item >= 0) == [8, 14, 16, 18]
    assert lists.reachable[0] == 4


def test_a_product_with_a_memory_is_diverse_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Likes:
        def gains(self, histories: list[np.ndarray], exclude_seen: bool = True):
            from scipy import sparse

            rows = np.tile(np.arange(N_ITEMS) % 7 == 0, (len(histories), 1)).astype(np.float32)
            return sparse.csr_array(rows)

    blended = replace(Recommender.load(finished_rq_run(tmp_path_factory), "sft"), expert=Expert(Likes(), 2.0))
    lists = blended.recommend(HISTORIES, 6, exclude_seen=True, diversity=2)
    for row, history in enumerate(HISTORIES):
        wanted = by_hand(blended, history, 6, np.ones(N_ITEMS, dtype=bool), 2)
        assert [item for item in lists.items[row] if item >= 0] == wanted


def test_places_among_equals() -> None:
    groups = torch.tensor([[3, 3, 1, 3, 1], [0, 1, 2, 3, 4]])
    assert place_among_equals(groups).tolist() == [[0, 1, 0, 2, 1], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("diversity", [0, -1, 1.5])
def test_a_diversity_of_nothing_is_refused(recommender: Recommender, diversity: float) -> None:
    with pytest.raises(InputError, match=r"diversity is .*; it must be a whole number above 0"):
        recommender.recommend(HISTORIES, 3, exclude_seen=True, diversity=diversity)
