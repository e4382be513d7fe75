"""The baselines against loops over users and items, and their published-size figures on MovieLens-100K."""

import itertools
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sidrec.baselines.histories import history_matrix
from sidrec.baselines.item_knn import fit_item_knn, keep_largest, tune_item_knn
from sidrec.baselines.markov import DECAYS, fit_markov, fit_markov_decay, tune_markov_decay
from sidrec.baselines.popularity import fit_popularity, fit_recent_popularity, tune_recent_popularity
from sidrec.baselines.scorer import more_popular_first, rank_cases, valid_recall
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import ndcg_at, recall_at

N = 12


@pytest.fixture
def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.permutation(N - 1)[: rng.integers(2, 8)] for _ in range(15)]  # item 11 is never seen


def test_popularity_counts_and_ignores_the_history(sequences: list[np.ndarray]) -> None:
    scorer = fit_popularity(sequences, N)
    total = sum(len(sequence) for sequence in sequences)
    expected = [sum(int((sequence == item).sum()) for sequence in sequences) / total for item in range(N)]
    scores = scorer.scores([np.array([1]), np.array([2, 3])])
    assert scores.dtype == np.float32
    assert scores == pytest.approx(np.array([expected, expected]), abs=1e-6)


@pytest.mark.parametrize(("neighbours", "shrink", "decay"), [(N, 0.0, 1.0), (3, 2.0, 1.0), (3, 0.0, 0.5)])
def test_item_knn_against_loops(sequences: list[np.ndarray], neighbours: int, shrink: float, decay: float) -> None:
    users = [{u for u, sequence in enumerate(sequences) if item in sequence} for item in range(N)]
    similarity = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            both = len(users[i] & users[j])
            if i != j and both:
                similarity[i, j] = both / ((len(users[i]) * len(users[j])) ** 0.5 + shrink)
        nearest = sorted(range(N), key=lambda j: (-similarity[i, j], j))[:neighbours]
        similarity[i, [j for j in range(N) if j not in nearest]] = 0
    history = np.array([2, 5, 7])
    expected = sum(decay ** (2 - place) * similarity[item] for place, item in enumerate(history))
    scores = fit_item_knn(sequences, N, neighbours, shrink, decay).scores([history])
    assert scores[0] == pytest.approx(expected, abs=2e-6)


def test_markov_against_loops_and_falls_back_on_popularity(sequences: list[np.ndarray]) -> None:
    counts = np.zeros((N, N))
    for sequence in sequences:
        for before, after in itertools.pairwise(sequence):
            counts[before, after] += 1
    scorer = fit_markov(sequences, N)
    for item in range(N - 1):
        expected = counts[item] / max(counts[item].sum(), 1)
        assert scorer.scores([np.array([0, item])])[0] == pytest.approx(expected, abs=2e-6)
    history, decaying = np.array([0, 4, 2]), fit_markov_decay(sequences, N, decay=0.3)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    assert decaying.scores([history])[0] == pytest.approx(shares[2] + 0.3 * shares[4] + 0.09 * shares[0], abs=2e-6)
    popularity = fit_popularity(sequences, N).popularity
    unseen = scorer.scores([np.array([0, N - 1])])[0]
    assert np.argsort(-unseen, kind="stable").tolist() == np.argsort(-popularity, kind="stable").tolist()


def test_the_decay_of_markov_is_the_best_on_valid(sequences: list[np.ndarray]) -> None:
    valid = EvalCases(
        [f"u{u}" for u in range(len(sequences))], [s[:-1] for s in sequences], np.array([s[-1] for s in sequences])
    )
    data = Dataset(pl.DataFrame({"item_index": range(N)}), pl.DataFrame({"user_id": ["u"]}), {})
    data.__dict__["train_sequences"] = sequences
    best, tuning = tune_markov_decay(data, valid)
    recalls = [valid_recall(fit_markov_decay(sequences, N, decay), valid) for decay in DECAYS]
    assert tuning.values == recalls
    assert best.decay == DECAYS[int(np.argmax(recalls))]


def test_of_equal_scores_the_more_popular_is_first_and_nothing_else_moves() -> None:
    """However close other scores lie, and however small the popularity: numbers of any size, rounded differently, zero and negative."""
    rng = np.random.default_rng(0)
    popularity = rng.permutation(40).astype(np.float32) * 1e-9
    levels = np.array([-2.0, -1e-12, 0.0, 1e-30, 0.3, 0.3 + 1e-7, 1e6])
    scores = levels[rng.integers(0, len(levels), (30, 40))]
    rounded = scores * (1 + rng.integers(-2, 3, scores.shape) * 2.0**-52)
    for row, ordered in zip(scores, more_popular_first(rounded, popularity), strict=True):
        assert np.argsort(-ordered).tolist() == np.lexsort((-popularity, -row)).tolist()


def test_history_matrix_weighs_the_latest_occurrence() -> None:
    dense = history_matrix([np.array([3, 1, 3, 0]), np.array([2])], 4, decay=0.5).toarray()
    assert dense.tolist() == [[1.0, 0.25, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0]]


def test_keep_largest_breaks_ties_by_the_lower_column() -> None:
    from scipy import sparse

    matrix = sparse.csr_array(np.array([[0.0, 2.0, 2.0, 2.0], [1.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]]))
    assert keep_largest(matrix, 2).toarray().tolist() == [[0, 2, 2, 0], [1, 0, 0, 3], [0, 0, 0, 0]]
    assert keep_largest(matrix, 1).toarray().tolist() == [[0, 2, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]]


def test_tuning_finds_the_best_of_the_whole_grid() -> None:
    rng = np.random.default_rng(0)
    users = [rng.choice(60, rng.integers(4, 12), replace=False) for _ in range(50)]
    valid = EvalCases(
        [str(i) for i in range(50)], [user[:-1] for user in users], np.array([user[-1] for user in users])
    )
    train = [user[:-1] for user in users]
    recalls = [
        recall_at(rank_cases(fit_item_knn(train, 60, *settings), valid, masked=True), 10).mean()
        for settings in itertools.product((20, 50, 60), (0.0, 5.0, 20.0), (1.0, 0.9, 0.8, 0.7))
    ]
    assert len(set(recalls)) > 3
    dataset = StubDataset(pl.DataFrame({"item_index": range(60)}), pl.DataFrame(), {}, train)
    best, tuning = tune_item_knn(dataset, valid)
    assert recall_at(rank_cases(best, valid, masked=True), 10).mean() == max(recalls)
    assert sorted(tuning.values) == sorted(recalls)
    chosen = tuning.grid[tuning.chosen]
    again = fit_item_knn(train, 60, chosen["neighbours"], chosen["shrink"], chosen["decay"])
    assert recall_at(rank_cases(again, valid, masked=True), 10).mean() == max(recalls)


def test_recent_popularity_against_a_loop() -> None:
    items, times = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 2, 10, 9, 7])
    popularity = fit_recent_popularity(items, times, 4, half_life=2.0).popularity
    weights = np.zeros(4)
    for item, time in zip(items, times, strict=True):
        weights[item] += 2.0 ** (-(10 - time) / 2.0)
    assert popularity == pytest.approx(weights / weights.sum(), abs=2e-6)
    assert np.argsort(-popularity).tolist() == [2, 1, 0, 3]  # item 0 is the most popular of all times
    tiny = fit_recent_popularity(items, times, 4, half_life=1e-3).popularity
    assert np.argsort(-tiny).tolist() == [1, 0, 2, 3], "what no longer counts is ordered by its number of interactions"


def test_recent_popularity_is_tuned_on_valid_and_reads_train_alone() -> None:
    # users of time t take item t // 100, so the newest items are those taken next
    times = np.arange(4000)
    next_items = np.stack([times // 100, (times * 7) % 40])
    log = pl.DataFrame(
        {"user_id": (times % 500).astype(str), "item_index": next_items[times % 2, times], "timestamp": times}
    )
    late = log["timestamp"] >= 3900
    log = log.with_columns(split=pl.Series(np.where(late, "test", "train"))).sort("user_id", maintain_order=True)
    data = Dataset(pl.DataFrame({"item_index": range(40)}), log, {})
    valid = EvalCases(["a"] * 5, [np.array([0])] * 5, np.array([39, 39, 38, 38, 37]))
    best, tuning = tune_recent_popularity(data, valid)
    assert len(tuning.grid) == len(tuning.values) == 8
    assert tuning.values[tuning.chosen] == 1.0
    assert tuning.values[0] < 1.0
    other = log.with_columns(item_index=pl.when(pl.col("split") == "test").then(3).otherwise("item_index"))
    again = tune_recent_popularity(Dataset(data.items, other, {}), valid)[0]
    assert np.array_equal(best.popularity, again.popularity)


class StubDataset(Dataset):
    def __init__(self, items: pl.DataFrame, log: pl.DataFrame, info: dict, sequences: list[np.ndarray]) -> None:
        super().__init__(items, log, info)
        self.__dict__["train_sequences"] = sequences


def test_movielens_100k_figures() -> None:
    folder = os.environ.get("SIDREC_DATASETS")
    if not folder:
        pytest.skip("SIDREC_DATASETS is not set: MovieLens-100K is not at hand")
    names = ["user_id", "item_id", "rating", "timestamp"]
    raw = pl.read_csv(Path(folder) / "ml-100k" / "u.data", separator="\t", has_header=False, new_columns=names)
    raw = raw.sort("user_id", "timestamp", maintain_order=True).with_columns(item_index=pl.col("item_id") - 1)
    users = [np.array(items) for items in raw.group_by("user_id", maintain_order=True).agg("item_index")["item_index"]]
    train = [user[:-2] for user in users]
    test = EvalCases([str(i) for i in range(len(users))], [u[:-1] for u in users], np.array([u[-1] for u in users]))
    for scorer, recall, ndcg in (
        (fit_popularity(train, 1682), 0.0838, 0.0432),
        (fit_markov(train, 1682), 0.1442, 0.0766),
    ):
        ranks = rank_cases(scorer, test, masked=True)
        assert recall_at(ranks, 10).mean() == pytest.approx(recall, abs=0.0006)
        assert ndcg_at(ranks, 10).mean() == pytest.approx(ndcg, abs=0.0006)
