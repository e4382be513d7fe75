"""Rewards of a column of the log: by hand, their dense form against the other, and a run of the stage."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import run_dirs
import torch
from run_dirs import make_run_dir, run_stage, small_dataset
from valued_logs import N, valued_dataset

from sidrec.baselines.value_model import FOLDS, fold_of
from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError
from sidrec.rl import dense_rewards, grpo
from sidrec.rl.expectation import Questions
from sidrec.rl.prompts import NO_TARGET
from sidrec.rl.reward_models import (
    ValueSource,
    logged_value,
    predicted_value,
)
from sidrec.rl.rewards import VALUE_REWARDS, refuse_unknown_rewards
from sidrec.sft import train


@pytest.fixture(scope="module")
def source() -> ValueSource:
    small = valued_dataset(gaps=True)
    lifted = small.interactions.with_columns(pl.col("rating") + 5)  # above 0
    return ValueSource(Dataset(small.items, lifted, small.info), "rating", seed=3)


def questions(source: ValueSource) -> dict[str, list]:
    """Each of the first users' last three training events, and one question that nothing knows the answer to."""
    columns: dict[str, list] = {"user": [], "history": [], "target": []}
    for user, sequence in enumerate(source.dataset.train_sequences[:6]):
        for position in range(len(sequence) - 3, len(sequence) + (user == 0)):
            columns["user"].append(user)
            columns["history"].append(sequence[:position].tolist())
            columns["target"].append(int(sequence[position]) if position < len(sequence) else NO_TARGET)
    return columns


def rollouts(columns: dict[str, list]) -> dict[str, list]:
    """Every item drawn for every question."""
    rows = {name: [value for value in values for _ in range(N)] for name, values in columns.items()}
    return rows | {"items": list(range(N)) * len(columns["user"])}


def test_a_hit_is_weighted_by_its_value_over_the_mean(source: ValueSource) -> None:
    columns = questions(source)
    train_rows = source.dataset.interactions.filter(pl.col("split") == "train")
    mean = train_rows["rating"].mean()
    of_event = {(row["user_id"], row["timestamp"]): row["rating"] for row in train_rows.iter_rows(named=True)}
    rewards = np.reshape(logged_value(source)(**rollouts(columns)), (-1, N))
    gaps = 0
    for row, user, history, target in zip(rewards, *columns.values(), strict=True):
        if target == NO_TARGET:
            assert not row.any()
            continue
        rating = of_event[f"u{user}", len(history)]
        gaps += rating is None
        assert row[target] == pytest.approx(1.0 if rating is None else rating / mean)
        assert np.count_nonzero(row) == 1
    assert gaps, "an event without a value counts as the mean"
    known = ~np.isnan(np.concatenate(source.values))
    assert np.mean(np.concatenate(source.values)[known] / source.mean) == pytest.approx(1), "a hit earns 1 on average"


def test_what_is_predicted_is_of_the_history_and_in_deviations_from_the_mean(source: ValueSource) -> None:
    columns = questions(source)
    rewards = np.reshape(predicted_value(source)(**rollouts(columns)), (-1, N))
    for row, user, history in zip(rewards, columns["user"], columns["history"], strict=True):
        log = source.dataset.interactions.filter(
            (pl.col("user_id") == f"u{user}") & (pl.col("timestamp") < len(history))
        )
        assert log["item_index"].to_list() == history
        values = log["rating"].fill_null(float("nan")).to_numpy()
        in_stars = source.model.values([f"u{user}"], [np.array(history)], [values])[0]
        assert row == pytest.approx((in_stars - source.model.mean) / source.model.deviation, abs=1e-5)
    assert rewards.std() > 0.1


def test_the_answer_has_no_part_in_what_is_predicted(source: ValueSource) -> None:
    """Where one user's last training event is worth something else, the rewards of its questions are the same."""
    columns = {name: values[:1] for name, values in questions(source).items()}
    is_last = (
        (pl.col("user_id") == "u0") & (pl.col("timestamp") >= len(columns["history"][0])) & (pl.col("split") == "train")
    )
    log = source.dataset.interactions.with_columns(rating=pl.when(is_last).then(99.0).otherwise("rating"))
    other = ValueSource(Dataset(source.dataset.items, log, source.dataset.info), "rating", seed=3)
    fold = fold_of("u0", FOLDS, 3)
    mine, others = (each.model.folds[fold] for each in (source, other))
    assert np.array_equal(
        mine.predicted([np.array([1])], [np.array([5.0])]), others.predicted([np.array([1])], [np.array([5.0])])
    )
    # the line, two numbers that all users share, is all that differs
    rewards = [predicted_value(each)(**rollouts(columns)) for each in (source, other)]
    assert np.corrcoef(rewards)[0, 1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", VALUE_REWARDS)
def test_the_dense_form_is_the_reward_of_every_item(source: ValueSource, name: str) -> None:
    """Of each user's last training event; what is predicted densely is by all of the user's training events."""
    leaves = np.random.default_rng(0).permutation(N)  # the item at every leaf
    leaf_of = np.argsort(leaves)
    users = list(range(6))
    sequences = [source.dataset.train_sequences[user] for user in users]
    targets = [int(sequence[-1]) for sequence in sequences]
    asked = Questions(torch.tensor(leaf_of[targets]), torch.tensor(users))
    dense_form = {"logged_value": dense_rewards.logged_value, "predicted_value": dense_rewards.predicted_value}[name]
    dense = dense_form(source, leaves)(asked, torch.full((len(users), N), 1 / N))
    assert dense.dtype == torch.float32
    history = [sequence if name == "predicted_value" else sequence[:-1] for sequence in sequences]
    columns = {"user": users, "history": [before.tolist() for before in history], "target": targets}
    single = {"logged_value": logged_value, "predicted_value": predicted_value}[name](source)(**rollouts(columns))
    assert dense[:, leaf_of].flatten().tolist() == pytest.approx(single, abs=1e-5)


def test_a_mean_that_nothing_can_be_a_multiple_of() -> None:
    small = valued_dataset(change={f"u{user}": -9.0 for user in range(60)})
    source = ValueSource(small, "rating", 0)
    for make in (logged_value, lambda values: dense_rewards.logged_value(values, np.arange(N))):
        with pytest.raises(
            InputError, match=r"interactions\.parquet: the mean of column 'rating' is -.* divides by it"
        ):
            make(source)
    assert predicted_value(source)(items=[1], user=[0], history=[small.train_sequences[0][:2].tolist()])


def test_rewards_and_column_belong_together() -> None:
    refuse_unknown_rewards(["exact_hit", "logged_value"], "rating")
    with pytest.raises(InputError, match="rewards has predicted_value, which rewards values; name their column"):
        refuse_unknown_rewards(["exact_hit", "predicted_value"])
    with pytest.raises(InputError, match="value_column=rating is read by none of rewards=exact_hit"):
        refuse_unknown_rewards(["exact_hit"], "rating")


def test_a_run_with_values(tmp_path, monkeypatch) -> None:
    """The trainer hands the questions' columns on, and what the rewards give is what they give outside of it."""
    rings = small_dataset()
    rated = rings.interactions.with_columns(stars=1.0 + pl.col("item_index") % 5)
    monkeypatch.setattr(run_dirs, "small_dataset", lambda: Dataset(rings.items, rated, rings.info, rings.left_out))
    run_dir = make_run_dir(tmp_path / "run")
    run_stage(train, run_dir, max_steps=4)
    with pytest.raises(InputError, match=r"run/data/interactions\.parquet has no column 'price'"):
        run_stage(grpo, run_dir, rewards=["logged_value"], reward_weights=[1], value_column="price")
    assert not (run_dir / "rl").exists()
    weights = {"rewards": ["logged_value", "predicted_value"], "reward_weights": [1, 0.5], "value_column": "stars"}
    trainer = run_stage(grpo, run_dir, inject_target="true", max_steps=2, **weights)
    for row in (row for row in trainer.state.log_history if "reward" in row):
        hits, predicted = row["rewards/logged_value/mean"], row["rewards/predicted_value/mean"]
        assert 0 < hits < 2 / 8
        assert row["reward"] == pytest.approx(hits + 0.5 * predicted, abs=1e-6)
    assert json.loads((run_dir / "rl" / "manifest.json").read_text())["fingerprint"]["value_column"] == "stars"
