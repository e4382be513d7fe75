"""Ranks, Recall and NDCG against brute force; the list checks against lists with known faults."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from sidrec.data.metrics import (
    count_invalid,
    count_repeats,
    count_seen,
    count_short,
    mask_seen,
    ndcg_at,
    rank_of_target,
    ranks_in_lists,
    recall_at,
)

score = st.one_of(st.integers(-3, 3).map(float), st.just(-np.inf))


@settings(deadline=None)
@given(st.lists(score, min_size=1, max_size=8), st.data())
def test_rank_is_the_place_in_a_sort_that_puts_the_target_last_among_equals(
    row: list[float], data: st.DataObject
) -> None:
    target = data.draw(st.integers(0, len(row) - 1))
    order = sorted(range(len(row)), key=lambda i: (-row[i], i == target))
    expected = 50 if row[target] == -np.inf else order.index(target)
    assert rank_of_target(np.array([row]), np.array([target])).tolist() == [expected]


def test_equal_scores_earn_nothing() -> None:
    ranks = rank_of_target(np.zeros((2, 100), np.float32), np.array([0, 99]))
    assert ranks.tolist() == [99, 99]
    assert ranks.dtype == np.int64


def test_a_masked_target_is_never_recommended_even_in_a_tiny_catalogue() -> None:
    scores = mask_seen(np.array([[3.0, 2.0, 1.0]]), [np.array([0, 0])])
    assert scores.tolist() == [[-np.inf, 2.0, 1.0]]
    assert recall_at(rank_of_target(scores, np.array([0])), 50).tolist() == [0.0]
    assert rank_of_target(scores, np.array([1])).tolist() == [0]
    assert rank_of_target(np.full((1, 200), -np.inf), np.array([7])).tolist() == [200]


def test_nan_scores_are_refused() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        rank_of_target(np.array([[np.nan, 1.0]]), np.array([1]))


def test_mask_leaves_the_scores_alone() -> None:
    scores = np.ones((2, 3), np.float32)
    masked = mask_seen(scores, [np.array([2]), np.array([0, 1])])
    assert np.isneginf(masked).tolist() == [[False, False, True], [True, True, False]]
    assert (scores == 1).all()


def test_rank_in_a_list() -> None:
    items = np.array([[4, 2, 9], [4, 2, 9], [5, -1, -1], [-1, -1, -1]])
    assert ranks_in_lists(items, np.array([9, 3, 5, 0])).tolist() == [2, 3, 0, 3]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), st.sampled_from([1, 5, 10, 20, 50]))
def test_recall_and_ndcg_against_the_definition(ranks: list[int], k: int) -> None:
    recalls, gains = [], []
    for rank in ranks:
        relevance = [1.0 if place == rank else 0.0 for place in range(100)][:k]
        recalls.append(sum(relevance))
        gains.append(sum(value / np.log2(place + 2) for place, value in enumerate(relevance)))  # the ideal DCG is 1
    assert recall_at(np.array(ranks), k).tolist() == recalls
    assert ndcg_at(np.array(ranks), k) == pytest.approx(gains)


def test_ndcg_by_hand() -> None:
    assert ndcg_at(np.array([0, 1, 2, 9, 10]), 10) == pytest.approx([1, 0.63093, 0.5, 0.28906, 0], abs=1e-5)


def test_list_checks_find_each_fault() -> None:
    good = np.array([[0, 1, 2], [3, 4, -1]])
    assert (count_invalid(good, 5), count_repeats(good), count_short(good, np.array([5, 2]))) == (0, 0, 0)
    assert count_invalid(np.array([[0, 5, -2], [1, -1, 2]]), 5) == 3
    assert count_repeats(np.array([[1, 1, 1], [2, 3, 2], [4, -1, -1]])) == 3
    assert count_short(good, np.array([5, 3])) == 1
    assert count_seen(good, [np.array([2, 2, 0]), np.array([9])]) == 2


@pytest.mark.parametrize("n_items", [3, 8, 60])
@pytest.mark.parametrize("k", [1, 5, 10, 20, 50])
def test_ranks_recall_and_ndcg_against_brute_force_and_scikit_learn(n_items: int, k: int) -> None:
    """Random scores of few values, so most targets are tied, at every cut-off, those beyond the catalogue included."""
    rng = np.random.default_rng(n_items * 100 + k)
    scores = rng.integers(0, 4, (200, n_items)).astype(float)
    targets = rng.integers(0, n_items, 200)
    ranks = rank_of_target(scores, targets)
    tied = [(row == row[target]).sum() > 1 for row, target in zip(scores, targets, strict=True)]
    assert np.mean(tied) > 0.5 or n_items == 3
    for rank, row, target in zip(ranks, scores, targets, strict=True):
        others = [item for item in range(n_items) if item != target]
        assert rank == sum(row[item] >= row[target] for item in others)
    # ties go against the target: for scikit-learn the target's score is put just under that of its equals
    untied = scores.copy()
    untied[np.arange(200), targets] -= 1e-3
    is_target = np.zeros((200, n_items))
    is_target[np.arange(200), targets] = 1
    assert ndcg_score(is_target, untied, k=k) == pytest.approx(ndcg_at(ranks, k).mean())
    if k < n_items:
        hits = top_k_accuracy_score(targets, untied, k=k, labels=np.arange(n_items))
        assert hits == pytest.approx(recall_at(ranks, k).mean())
    else:
        assert recall_at(ranks, k).all(), "with k beyond the catalogue every item is recommended"
    # scikit-learn's own rule gives each of the tied the mean of their gains, so never less than ours
    assert ndcg_score(is_target, scores, k=k) >= ndcg_at(ranks, k).mean() - 1e-12


@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_lists_longer_than_the_catalogue_against_scikit_learn(k: int) -> None:
    """A recommender's lists, padded with "no item" beyond the catalogue of 8, give the same as its scores do."""
    rng = np.random.default_rng(k)
    scores, targets = rng.random((100, 8)), rng.integers(0, 8, 100)
    lists = np.full((100, 50), -1)
    lists[:, :8] = np.argsort(-scores, axis=1)
    ranks = ranks_in_lists(lists, targets)
    is_target = np.eye(8)[targets]
    assert ndcg_at(ranks, k).mean() == pytest.approx(ndcg_score(is_target, scores, k=k))
    assert ranks.tolist() == rank_of_target(scores, targets).tolist()
