"""What RL is trained with where nobody says otherwise: by the model, the catalogue's size and what is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidrec.pipeline.files import write_json
from sidrec.rl.recipe import EXACT, MOST_EXACT, has_exact_model, settings_by_size


def make_run(folder: Path, model_type: str = "rq_transformer", items: int = 100) -> Path:
    for name in ("sft", "data"):
        (folder / name).mkdir()
    write_json(folder / "sft" / "config.json", {"model_type": model_type})
    write_json(folder / "data" / "dataset.json", {"counts": {"items": items}})
    return folder


def test_an_rq_transformer_of_a_small_catalogue_is_trained_over_every_item(tmp_path):
    chosen = settings_by_size({"run_dir": make_run(tmp_path)})
    assert chosen == EXACT | {"reward_weights": [1.0], "sft_loss_weight": 0.0}


@pytest.mark.parametrize(
    ("model_type", "items"), [("qwen3", 100), ("rq_transformer", MOST_EXACT + 1)], ids=["words", "large"]
)
def test_another_model_or_a_large_catalogue_needs_groups(tmp_path, model_type, items):
    run_dir = make_run(tmp_path, model_type, items)
    assert not has_exact_model(run_dir)
    assert settings_by_size({"run_dir": run_dir}) == {}


@pytest.mark.parametrize(
    "named",
    [
        {"draw": "gumbel"},
        {"objective": "s_dpo"},
        {"rewards": ["exact_hit", "rank_penalty"]},
        {"rewards": ["my.own"]},
        {"open_questions": True},
        {"num_generations": 8},
        {"token_credit": 0.1},
    ],
)
def test_what_asks_for_groups_gets_their_defaults(tmp_path, named):
    assert settings_by_size({"run_dir": make_run(tmp_path), **named}) == {}


def test_what_is_named_stays_and_rewards_that_do_not_ask_for_hits_are_held_by_the_sft_loss(tmp_path):
    run_dir = make_run(tmp_path)
    chosen = settings_by_size({"run_dir": run_dir, "rewards": ["coverage", "novelty"], "num_train_epochs": 4})
    assert chosen["sft_loss_weight"] == 1.0
    assert chosen["reward_weights"] == [1.0, 1.0]
    assert chosen["max_steps"] == -1, "so that the passes count"
    assert not {"rewards", "num_train_epochs"} & set(chosen)
    assert settings_by_size({"run_dir": run_dir, "rewards": ["coverage", "hit_at_k"]})["sft_loss_weight"] == 0.0


def test_without_a_run_nothing_is_said(tmp_path):
    assert settings_by_size({"run_dir": tmp_path}) == {}


@pytest.mark.parametrize(
    ("before", "rate"),
    [
        ({"model_name_or_path": "a/model", "learning_rate": 3e-4, "train_weights": "full"}, 1.5e-5),
        ({"model_name_or_path": "a/model", "learning_rate": 2e-3, "train_weights": "full"}, 1e-4),
        ({"model_name_or_path": "a/model", "learning_rate": 1e-3, "train_weights": "lora"}, 1e-5),
        ({"model_name_or_path": None, "learning_rate": 2e-3, "train_weights": "full"}, None),
    ],
)
def test_a_pretrained_model_has_a_rate_of_its_kind(tmp_path, before, rate):
    run_dir = make_run(tmp_path, "llama")
    write_json(run_dir / "sft" / "manifest.json", {"fingerprint": before})
    chosen = settings_by_size({"run_dir": run_dir})
    assert chosen == ({} if rate is None else {"learning_rate": pytest.approx(rate)})
    assert settings_by_size({"run_dir": run_dir, "learning_rate": 1.0}) == {}


def test_a_pretrained_decoder_with_one_position_an_item_has_every_item_at_its_own_rate(tmp_path):
    run_dir = make_run(tmp_path)
    write_json(run_dir / "sft" / "config.json", {"model_type": "rq_transformer", "spatial": {"model_type": "llama"}})
    before = {"model_name_or_path": "a/model", "learning_rate": 3e-4, "train_weights": "full"}
    write_json(run_dir / "sft" / "manifest.json", {"fingerprint": before})
    chosen = settings_by_size({"run_dir": run_dir})
    assert chosen["draw"] == "every_item"
    assert chosen["learning_rate"] == pytest.approx(1.5e-5)
