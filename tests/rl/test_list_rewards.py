"""Rewards of categories' quotas and of calibrated popularity: by loops over items, in both forms, and in a run."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from run_dirs import COLOURS, assert_one_sentence, exit_code, finished_rq_run, flags, run_stage, small_dataset

from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import NO_ITEM
from sidrec.pipeline.errors import InputError
from sidrec.rl import dense_rewards, grpo, practice
from sidrec.rl.aims import ListFigures
from sidrec.rl.expectation import Questions
from sidrec.rl.list_rewards import Categories, Popularity
from sidrec.rl.rewards import calibrated_popularity, category_quota
from sidrec.rl.settings import ObjectiveConfig, RlConfig, RlTrainerConfig

GENRES = [["drama"], ["drama", "comedy"], [], ["comedy"], ["horror"], ["drama", "comedy", "horror"]]
SEQUENCES = [np.array([0, 0, 1]), np.array([1, 3, 4, 0]), np.array([5])]
N, LEAVES = 6, np.array([4, 2, 0, 5, 1, 3])  # the item at every leaf


def dataset_of(genres: pl.Series) -> Dataset:
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(N)], "item_index": range(N)}).with_columns(genres=genres)
    rows = [
        (f"u{user}", int(item), time, "train")
        for user, items in enumerate(SEQUENCES)
        for time, item in enumerate(items)
    ]
    return Dataset(items, pl.DataFrame(rows, ["user_id", "item_index", "timestamp", "split"], orient="row"), {})


@pytest.fixture
def dataset() -> Dataset:
    return dataset_of(pl.Series([", ".join(each) or None for each in GENRES]))


def log_shares() -> dict[str, float]:
    """Of the training log, an item counting alike for each of its categories."""
    sums = dict.fromkeys(("comedy", "drama", "horror"), 0.0)
    for sequence in SEQUENCES:
        for item in sequence:
            for genre in GENRES[item]:
                sums[genre] += 1 / len(GENRES[item])
    return {genre: value / sum(sums.values()) for genre, value in sums.items()}


def test_targets_are_the_logs_shares_but_for_those_that_are_given(dataset):
    of_log = log_shares()
    assert dict(zip(*[(c := Categories.of(dataset, "genres", [])).names, c.targets], strict=True)) == pytest.approx(
        of_log
    )
    given = Categories.of(dataset, "genres", ["drama=.6", "comedy=0"])
    assert dict(zip(given.names, given.targets, strict=True)) == pytest.approx(
        {"comedy": 0, "drama": 0.6, "horror": 0.4}
    )
    lists = dataset_of(pl.Series(GENRES))
    assert np.array_equal(Categories.of(lists, "genres", []).membership, given.membership)


@pytest.mark.parametrize("quotas", [[], ["drama=.2", "horror=.7"]])
def test_category_quota_is_the_log_of_target_over_share(dataset, quotas):
    categories = Categories.of(dataset, "genres", quotas)
    targets = dict(zip(categories.names, categories.targets.tolist(), strict=True))
    drawn = [0, 0, 1, 4, 2, 5, 0, 3]
    shares = dict.fromkeys(targets, 0.0)
    total = sum(bool(GENRES[item]) for item in drawn)
    for item in drawn:
        for genre in GENRES[item]:
            shares[genre] += 1 / len(GENRES[item]) / total
    wanted = [
        sum(math.log(targets[genre] / shares[genre]) for genre in GENRES[item]) / max(1, len(GENRES[item]))
        for item in range(N)
    ]
    assert category_quota(categories)(items=drawn) == pytest.approx([wanted[item] for item in drawn], abs=1e-6)
    exposure = torch.from_numpy(np.bincount(drawn, minlength=N)[LEAVES] / 4).float()
    asked = Questions(torch.tensor([0, 1]), torch.tensor([0, 1]), exposure)
    dense = dense_rewards.category_quota(categories, LEAVES)(asked, torch.full((2, N), 1 / N))
    assert dense.expand(2, N)[1].tolist() == pytest.approx([wanted[item] for item in LEAVES], abs=1e-6)


def test_category_quota_is_the_gradient_of_minus_the_divergence_from_the_targets(dataset):
    """Of the items' shares x: -Σ_c s_c log(s_c / target_c), s = x's shares by category; up to a number that all items share."""
    categories = Categories.of(dataset, "genres", ["drama=.2"])
    scores = torch.linspace(-1, 1, N, dtype=torch.float64).requires_grad_()
    items = [item for item in range(N) if GENRES[item]]  # of an item without a category nothing is said
    shares = torch.zeros(N, dtype=torch.float64).index_put((torch.tensor(items),), scores[items].softmax(0))
    by_category = shares @ torch.from_numpy(categories.membership)
    divergence = (by_category * (by_category / torch.from_numpy(categories.targets)).log()).sum()
    lack = torch.from_numpy(categories.lack(shares.detach().numpy())).double()
    ours, theirs = (
        torch.autograd.grad(value, scores, retain_graph=True)[0] for value in ((shares * lack).sum(), -divergence)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_a_category_without_an_item_in_the_lists_is_worth_most_and_not_infinitely_much(dataset):
    lack = Categories.of(dataset, "genres", ["comedy=.1", "horror=.4"]).lack(np.array([3, 0, 0, 0, 0, 0]))
    assert lack[4] == lack.max() > lack[0]
    assert np.isfinite(lack).all()
    assert lack[2] == 0, "no category"


def test_calibrated_popularity_is_the_distance_from_what_the_user_takes():
    counts = [sum(int((sequence == item).sum()) for sequence in SEQUENCES) for item in range(N)]
    logs = [math.log(1 + count) for count in counts]
    mean = sum(logs) / N
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logs) / N)
    wanted = [
        [-abs(logs[item] - sum(logs[other] for other in sequence) / len(sequence)) / deviation for item in range(N)]
        for sequence in SEQUENCES
    ]
    popularity = Popularity(SEQUENCES, N)
    users = [user for user in range(3) for _ in range(N)]
    listed = calibrated_popularity(popularity)(items=list(range(N)) * 3, user=users)
    assert listed == pytest.approx(np.ravel(wanted).tolist(), abs=1e-5)
    asked = Questions(torch.tensor([0, 0, 0, 0]), torch.tensor([2, 0, 1, 2]))
    dense = dense_rewards.calibrated_popularity(popularity, LEAVES)(asked, torch.full((4, N), 1 / N))
    np.testing.assert_allclose(dense, np.array(wanted)[[2, 0, 1, 2]][:, LEAVES], atol=1e-5)


@pytest.mark.parametrize(
    ("column", "quotas", "sentence"),
    [
        (
            "genre",
            [],
            r"items\.parquet has no column 'genre' with categories of the items \(it has genres\); name another one",
        ),
        ("item_id", [], r"has no column 'item_id' with categories"),
        ("genres", ["war=.2"], "quotas has 'war=.2'; write category=share with one of comedy, drama, horror"),
        ("genres", ["drama"], "quotas has 'drama'; write category=share"),
        ("genres", ["drama=much"], "whose share is no number; write drama=0.3"),
        ("genres", ["drama=1.2"], "whose share is not within 0 and 1"),
        ("genres", ["drama=.7", "comedy=.7"], r"add up to 1\.4; make it 1"),
        ("genres", ["drama=.1", "comedy=.1", "horror=.1"], r"add up to 0\.3; make it 1"),
    ],
)
def test_bad_columns_and_quotas_are_named(dataset, column, quotas, sentence):
    with pytest.raises(InputError, match=sentence):
        Categories.of(dataset, column, quotas)


def test_a_column_of_one_category_is_refused():
    with pytest.raises(InputError, match="column 'genres' has 1 categories, and a quota needs two"):
        Categories.of(dataset_of(pl.Series(["drama"] * N)), "genres", [])


def test_a_reward_and_its_column_belong_together():
    with pytest.raises(InputError, match="rewards has category_quota; name the column"):
        ObjectiveConfig(rewards=["category_quota"])
    for half in ({"quota_column": "genres"}, {"quotas": ["drama=.3"]}):
        with pytest.raises(InputError, match="are read by category_quota alone"):
            ObjectiveConfig(**half)


def test_what_lists_are_measured_by_counts_their_items(dataset):
    """Three cases, one of a user who took nothing in training; two items a list, one place empty."""
    lists = np.array([[0, 3], [4, NO_ITEM], [1, 5]])
    cases = EvalCases(["u1", "new", "u0"], [np.array([0])] * 3, np.array([1, 2, 3]))
    categories = Categories.of(dataset, "genres", ["drama=.2"])
    figures = ListFigures.of(dataset, cases, None, categories)(lists)
    held = {"drama": 1 + 1 / 2 + 1 / 3, "comedy": 1 + 1 / 2 + 1 / 3, "horror": 1 + 1 / 3}
    targets = dict(zip(categories.names, categories.targets, strict=True))
    too_much = sum(max(0.0, held[name] / 5 - targets[name]) for name in targets)
    assert figures["quotas@10"] == pytest.approx(1 - too_much)
    popularity = Popularity(SEQUENCES, N)
    gaps = [
        abs(popularity.of_items[item] - popularity.of_users[user]) for item, user in ((0, 1), (3, 1), (1, 0), (5, 0))
    ]
    assert figures["popularity_gap@10"] == pytest.approx(np.mean(gaps))


def test_the_quotas_metric_needs_quotas():
    training = RlTrainerConfig(metric_for_best_model="eval_kept_quotas@10", reward_weights=None)
    with pytest.raises(InputError, match="is of quotas; reward by category_quota and name quota_column"):
        practice.refuse_contradictions(RlConfig(), ObjectiveConfig(), training)


@pytest.fixture
def run_dir(tmp_path_factory, tmp_path, monkeypatch):
    """With a colour of every item, seen by the RL stage alone: the catalogue on disk is hashed by the stages before."""
    rings = small_dataset()
    coloured = rings.items.with_columns(colour=pl.Series([COLOURS[item // 10] for item in range(rings.n_items)]))
    monkeypatch.setattr(
        practice.Dataset, "load", lambda _: Dataset(coloured, rings.interactions, rings.info, rings.left_out)
    )
    return shutil.copytree(finished_rq_run(tmp_path_factory), tmp_path / "run")


@pytest.mark.parametrize("draw", ["every_item", "gumbel"])
def test_a_run_with_quotas_and_calibrated_popularity(run_dir, draw):
    hits = "ndcg_at_k" if draw == "every_item" else "exact_hit"
    rewards = {"rewards": [hits, "category_quota", "calibrated_popularity"], "reward_weights": [1, 0.1, 0.2]}
    quotas = {"quota_column": "colour", "quotas": ["red=.1", "blue=.5"]}
    trainer = run_stage(grpo, run_dir, draw=draw, batch_items=60, max_steps=2, **rewards, **quotas)
    measured = [row for row in trainer.state.log_history if "eval_quotas@10" in row]
    assert measured
    assert all(row["eval_kept_quotas@10"] in (0, row["eval_quotas@10"]) for row in measured)
    for row in (row for row in trainer.state.log_history if "reward" in row):
        parts = [row[f"rewards/{name}/mean"] for name in rewards["rewards"]]
        assert row["reward"] == pytest.approx(np.dot(parts, rewards["reward_weights"]), abs=1e-4)
        assert 0 < parts[0] < 1
        assert parts[2] < 0
    assert json.loads((run_dir / "rl" / "manifest.json").read_text())["fingerprint"]["quotas"] == quotas["quotas"]


def test_an_unknown_column_ends_the_command_in_one_sentence(tmp_path_factory, tmp_path, capsys):
    run_dir = shutil.copytree(finished_rq_run(tmp_path_factory), tmp_path / "run")
    asked = {"rewards": ["category_quota"], "reward_weights": [1], "quota_column": "genre", "draw": "every_item"}
    assert exit_code("rl/grpo.py", *flags(grpo, run_dir, **asked)) == 2
    error = capsys.readouterr().err
    assert_one_sentence(error)
    assert "has no column 'genre'" in error
    assert not (run_dir / "rl").exists()
