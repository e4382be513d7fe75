"""The lists beside the ranks, and what is said of them: coverage, Gini, entropy, agreement of codes; against brute force."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import mask_seen, rank_of_target, ranks_in_lists
from sidrec.evaluation.coverage import count_items, lorenz, spread
from sidrec.evaluation.lists import LIST_LENGTH, first_items, items_of, lists_frame, log_probs_of
from sidrec.evaluation.ranking import ScoreRanker, rank_each
from sidrec.evaluation.sid_levels import by_chance, prefix_hits
from sidrec.pipeline.screen import Screen

SCORE = st.one_of(st.integers(-3, 3).map(float), st.just(-np.inf))
COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@settings(deadline=None)
@given(st.lists(SCORE, min_size=1, max_size=8), st.integers(1, 9), st.data())
def test_first_items_are_a_sort_with_the_target_last_among_equals(
    row: list[float], k: int, data: st.DataObject
) -> None:
    target = data.draw(st.integers(0, len(row) - 1))
    order = sorted(range(len(row)), key=lambda i: (-row[i], i == target, i))
    expected = [i for i in order if row[i] > -np.inf][:k]
    scores = np.array([row], dtype=np.float32)
    items = first_items(scores, np.array([target]), k)
    assert items.tolist() == [expected + [-1] * (k - len(expected))]
    rank = rank_of_target(scores, np.array([target]))
    assert (ranks_in_lists(items, np.array([target])) == np.where(rank < k, rank, k)).all()


class Scores:
    """Random scores of few values, so that there are ties; the same for the same last item."""

    name = "scores"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        rows = [np.random.default_rng([self.seed, int(history[-1])]).integers(0, 5, 40) for history in histories]
        return np.array(rows, dtype=np.float32)


def test_lists_of_many_cases_hold_no_seen_item_and_agree_with_the_ranks() -> None:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 40, rng.integers(1, 35)) for _ in range(600)]  # more than one batch
    cases = EvalCases([str(i) for i in range(600)], histories, rng.integers(0, 40, 600))
    scorers = [Scores(0), Scores(1)]
    results = rank_each([ScoreRanker(scorer) for scorer in scorers], cases, "scores", Screen("test", quiet=True))
    for scorer, ranked in zip(scorers, results, strict=True):
        assert not any(
            np.isin(items[items >= 0], history).any() for items, history in zip(ranked.items, histories, strict=True)
        )
        ranks = rank_of_target(mask_seen(scorer.scores(histories), histories), cases.targets)
        assert (ranks_in_lists(ranked.items, cases.targets) == np.minimum(ranks, LIST_LENGTH)).all()
        assert (ranked.ranks[True] == ranks).all()
        assert (ranked.ranks[False] == rank_of_target(scorer.scores(histories), cases.targets)).all()


def test_lists_come_back_as_they_were_saved(tmp_path) -> None:
    items = np.arange(2 * 50).reshape(2, 50)
    log_probs = -items.astype(np.float32)
    few = np.array([[3, -1], [1, 0]])
    frame = pl.concat([lists_frame("sft", items, log_probs), lists_frame("knn", few)])
    frame.write_parquet(tmp_path / "lists.parquet")
    back = pl.read_parquet(tmp_path / "lists.parquet")
    assert back.columns == ["model", "case", "items", "log_probs"]
    assert back["case"].to_list() == [0, 1, 0, 1]
    assert items_of(back, "sft").tolist() == items[:, :10].tolist()
    assert log_probs_of(back, "sft").tolist() == log_probs[:, :10].tolist()
    assert items_of(back, "knn").tolist() == [[3, *[-1] * 9], [1, 0, *[-1] * 8]]
    assert log_probs_of(back, "knn") is None


@given(COUNTS)
def test_spread_against_its_definitions(counts: list[int]) -> None:
    spreads = spread(np.array(counts))
    total, n = sum(counts), len(counts)
    assert spreads["coverage"] == pytest.approx(sum(count > 0 for count in counts) / n)
    differences = sum(abs(a - b) for a in counts for b in counts)
    assert spreads["gini"] == pytest.approx(
        differences / (2 * n * total), abs=1e-12
    )  # half the relative mean difference
    nats = -sum(count / total * math.log(count / total) for count in counts if count)
    assert spreads["entropy"] == pytest.approx(nats, abs=1e-12)
    assert spreads["effective_items"] == pytest.approx(math.exp(nats))
    curve = lorenz(np.array(counts))
    assert curve[0] == 0
    assert curve[-1] == pytest.approx(1)
    area = ((curve[1:] + curve[:-1]) / 2).mean()
    assert 1 - 2 * area == pytest.approx(spreads["gini"], abs=1e-12)


def test_lists_of_one_item_and_lists_of_all() -> None:
    same, even = spread(count_items(np.full((7, 1), 2), 5)), spread(count_items(np.arange(10).reshape(2, 5) % 5, 5))
    assert same == {"coverage": 0.2, "gini": pytest.approx(0.8), "entropy": 0.0, "effective_items": 1.0}
    assert even == pytest.approx({"coverage": 1.0, "gini": 0.0, "entropy": math.log(5), "effective_items": 5.0})


def test_no_item_is_not_counted() -> None:
    assert count_items(np.array([[0, 2, -1], [2, -1, -1]]), 4).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("n_levels", [1, 3])
def test_prefix_hits_against_brute_force(n_levels: int) -> None:
    rng = np.random.default_rng(1)
    codes = rng.permutation(4**3)[:30][:, None] // 4 ** np.arange(3) % 4 if n_levels == 3 else np.arange(30)[:, None]
    items, targets = rng.integers(-1, 30, (50, 10)), rng.integers(0, 30, 50)
    hits_of_level = prefix_hits(items, targets, codes)
    counts = rng.integers(0, 5, 30)
    chances = by_chance(targets, codes, counts)
    for d in range(1, n_levels + 1):
        prefix = [tuple(row[:d]) for row in codes.tolist()]
        hits = [
            [item >= 0 and prefix[item] == prefix[target] for item in row]
            for row, target in zip(items, targets, strict=True)
        ]
        assert hits_of_level["top1"][d - 1] == pytest.approx(np.mean([row[0] for row in hits]))
        assert hits_of_level["recall@10"][d - 1] == pytest.approx(np.mean([any(row) for row in hits]))
        drawn = Counter(dict.fromkeys(prefix, 0))
        for item, count in enumerate(counts.tolist()):
            drawn[prefix[item]] += count
        assert chances[d - 1] == pytest.approx(np.mean([drawn[prefix[t]] / counts.sum() for t in targets]))
    assert hits_of_level["recall@10"][-1] == pytest.approx((items == targets[:, None]).any(axis=1).mean())
