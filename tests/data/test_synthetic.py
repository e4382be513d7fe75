import json
from collections import Counter, defaultdict
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.data.build import build
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.settings import PrepareConfig
from sidrec.data.synthetic import DemoModel, oracle_for
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen

SMALL = DemoModel(seed=3, n_users=50, n_clusters=9, items_per_cluster=3, min_length=1, max_length=27)
KS = (1, 5, 10, 20)


def slow_probabilities(model: DemoModel, history: list[int]) -> list[float]:
    """The formula of the module's docstring, one item at a time."""
    cluster_of, rank, popularity, successors = model._tables
    history_items = set(history)
    clusters = [int(cluster_of[item]) for item in history]

    def omega(c: int) -> float:
        if not clusters:
            return popularity[c]
        first, second = np.argsort(-successors[clusters[-1]])[:2]
        weight = (1 - model.p_forward - model.p_return) * popularity[c]
        weight += model.p_forward * (model.p_first * (c == first) + (1 - model.p_first) * (c == second))
        if len(clusters) > 1:
            weight += model.p_return * (c == clusters[-2])
        return weight

    def q(item: int) -> float:
        return (1 + rank[item]) ** -model.item_skew

    free = {
        c: [i for i in range(model.n_items) if cluster_of[i] == c and i not in history_items]
        for c in range(model.n_clusters)
    }
    total = sum(omega(c) for c, items in free.items() if items)
    result = [0.0] * model.n_items
    for c, items in free.items():
        for item in items:
            result[item] = omega(c) / total * q(item) / sum(q(other) for other in items)
    return result


@settings(max_examples=60)
@given(st.permutations(range(SMALL.n_items)), st.integers(0, SMALL.n_items - 1))
def test_probabilities_equal_the_formula(order: list[int], length: int) -> None:
    history = order[:length]
    got = SMALL.next_item_probabilities(np.array(history, dtype=np.int64))
    assert got.sum() == pytest.approx(1)
    assert (got[history] == 0).all()
    np.testing.assert_allclose(got, slow_probabilities(SMALL, history), atol=1e-12)


def test_the_structure_is_as_stated() -> None:
    model = DemoModel()
    cluster_of, rank, popularity, successors = model._tables
    assert Counter(cluster_of.tolist()) == dict.fromkeys(range(24), 20)
    assert sorted(zip(cluster_of.tolist(), rank.tolist(), strict=True)) == [
        (c, r) for c in range(24) for r in range(20)
    ]
    np.testing.assert_allclose(np.sort(popularity)[::-1] / popularity.max(), np.arange(1, 25) ** -0.8)
    assert (np.sort(successors, axis=1)[:, -2:] == [0.4, 0.6]).all()
    first = successors.argmax(axis=1)
    place, visited = 0, []
    for _ in range(24):
        visited.append(place)
        place = int(first[place])
    assert sorted(visited) == list(range(24))
    assert all(successors[visited[i], visited[(i + 7) % 24]] == 0.4 for i in range(24))


def test_draws_follow_the_probabilities() -> None:
    """Frequencies of the second item after the most frequent first one, over many users, within 5 standard errors."""
    model = DemoModel(seed=1, n_users=40_000, n_clusters=4, items_per_cluster=3, min_length=2, max_length=2)
    sequences = np.stack(model._draw_sequences(np.random.default_rng(0)))
    for history in ([], [int(np.bincount(sequences[:, 0]).argmax())]):
        chosen = sequences[(sequences[:, : len(history)] == history).all(axis=1), len(history)]
        expected = model.next_item_probabilities(np.array(history, dtype=np.int64))
        shares = np.bincount(chosen, minlength=model.n_items) / len(chosen)
        assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / len(chosen))).all()


def test_log_and_catalogue_are_sound_and_the_same_twice() -> None:
    raw, again = DemoModel().generate(), DemoModel().generate()
    assert raw.interactions.equals(again.interactions)
    assert raw.items.equals(again.items)
    assert not raw.interactions.equals(DemoModel(seed=1).generate().interactions)
    assert raw.interactions.select("user_id", "item_id").is_duplicated().sum() == 0
    steps = raw.interactions.select(pl.col("timestamp").diff().over("user_id")).to_series().drop_nulls()
    assert (steps > 0).all()
    lengths = raw.interactions.group_by("user_id").len()["len"]
    assert (lengths.min(), lengths.max(), len(lengths)) == (20, 40, 1200)
    assert raw.items["title"].n_unique() == 480
    cluster_of = DemoModel()._tables[0]
    by_genre = defaultdict(set)
    for genre, cluster in zip(raw.items["genre"], cluster_of.tolist(), strict=True):
        by_genre[genre].add(cluster)
    assert all(len(clusters) == 1 for clusters in by_genre.values())
    nouns = raw.items["title"].str.split(" ").list.last()
    assert pl.DataFrame({"noun": nouns, "cluster": cluster_of}).group_by("noun").n_unique()["cluster"].max() == 1


@pytest.fixture(scope="module")
def demo() -> Dataset:
    return build(PrepareConfig(run_dir="unused", dataset="demo"), (), Screen("data", quiet=True))


def test_parameters_survive_json(demo: Dataset) -> None:
    assert DemoModel(**json.loads(json.dumps(demo.info["demo_model"]))) == DemoModel()
    assert asdict(DemoModel()) == demo.info["demo_model"]


def recall(scores: np.ndarray, cases: EvalCases, k: int) -> float:
    """Share of cases whose target is among the k best unseen items."""
    for row, history in enumerate(cases.histories):
        scores[row, history] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == cases.targets[:, None]).any(axis=1).mean())


def test_nothing_simple_reaches_the_oracle(demo: Dataset) -> None:
    """Popularity, item-level Markov, and a Markov model that is even told the clusters and the popularity within them."""
    cases = demo.cases("test")
    oracle = oracle_for(demo, "test", KS)
    assert 0.45 <= oracle["expected"][10] <= 0.65
    for k in KS:  # the realised rate is a mean of independent draws with these expectations
        p = oracle["expected"][k]
        assert abs(oracle["realised"][k] - p) < 4 * np.sqrt(p * (1 - p) / len(cases))

    sequences = demo.train_sequences
    popularity = np.bincount(np.concatenate(sequences), minlength=demo.n_items).astype(float)
    transitions = np.zeros((demo.n_items, demo.n_items))
    model = DemoModel(**demo.info["demo_model"])
    cluster_of, rank, _, _ = model._tables
    between = np.zeros((24, 24))
    for sequence in sequences:
        np.add.at(transitions, (sequence[:-1], sequence[1:]), 1)
        np.add.at(between, (cluster_of[sequence[:-1]], cluster_of[sequence[1:]]), 1)
    last = np.array([history[-1] for history in cases.histories])
    within = (1.0 + rank) ** -model.item_skew
    scores = {
        "popularity": np.tile(popularity, (len(cases), 1)),
        "markov": transitions[last] + 1e-6 * popularity,
        "markov that knows the clusters": between[cluster_of[last]][:, cluster_of] * within,
    }
    for name, score in scores.items():
        assert recall(score, cases, 10) <= 0.85 * oracle["expected"][10], name


def test_oracle_recall_follows_the_datasets_item_indices(demo: Dataset) -> None:
    """Renumbering the items changes nothing."""
    model = DemoModel(**demo.info["demo_model"])
    cases = demo.cases("test").take(np.arange(50))
    new = np.random.default_rng(0).permutation(demo.n_items)  # old index -> new index
    item_ids = np.empty(demo.n_items, dtype=object)
    item_ids[new] = demo.items["item_id"].to_list()
    renumbered = EvalCases(cases.user_ids, [new[history] for history in cases.histories], new[cases.targets])
    one = model.oracle_recall(cases, KS, demo.items["item_id"].to_list())
    other = model.oracle_recall(renumbered, KS, item_ids.tolist())
    assert one["realised"] == other["realised"]
    assert one["expected"] == pytest.approx(other["expected"])


def test_oracle_refuses_what_it_does_not_know(demo: Dataset) -> None:
    with pytest.raises(InputError, match="demo data only"):
        oracle_for(Dataset(demo.items, demo.interactions, {"name": "own"}), "test")
    cut = build(PrepareConfig(run_dir="unused", dataset="demo", k_item=30), (), Screen("data", quiet=True))
    with pytest.raises(InputError, match="k-core that removed"):
        oracle_for(cut, "test")
