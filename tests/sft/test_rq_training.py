"""SFT and RL of an RQ-Transformer: what they move, that they repeat and resume, and what they write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from run_dirs import RQ_FLAGS, logged, make_run_dir, run_stage, state, weights
from transformers import AutoModelForCausalLM

from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.evaluation import evaluate
from sidrec.pipeline.errors import InputError
from sidrec.rl import grpo
from sidrec.sft import train
from sidrec.sft.settings import BackboneConfig
from sidrec.sft.trainer import SidSFTTrainer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return make_run_dir(tmp_path_factory.mktemp("rq") / "run")


@pytest.fixture(scope="module")
def trainer(run_dir):
    return run_stage(train, run_dir, **RQ_FLAGS)


def test_all_weights_move_and_the_loss_goes_down(run_dir, trainer, tmp_path_factory) -> None:
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    start = run_stage(train, make_run_dir(tmp_path_factory.mktemp("start") / "run"), **RQ_FLAGS, learning_rate=0.0)
    before, after = start.model.state_dict(), trainer.model.state_dict()
    for name in before:
        moved = not torch.equal(before[name], after[name])
        assert moved == (name not in ("codes", "popularity")), name


@pytest.mark.parametrize("head", ["additive", "transformer"])
def test_the_other_heads_learn_too(head: str, tmp_path: Path) -> None:
    trainer = run_stage(train, make_run_dir(tmp_path / "run"), **RQ_FLAGS, depth_head=head)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]


def test_two_runs_give_the_same_bytes_and_the_folder_is_a_model(run_dir, trainer, tmp_path: Path) -> None:
    again = make_run_dir(tmp_path / "run")
    run_stage(train, again, **RQ_FLAGS)
    assert weights(again / "sft") == weights(run_dir / "sft")
    loaded = AutoModelForCausalLM.from_pretrained(run_dir / "sft")
    assert isinstance(loaded, RqTransformerForCausalLM)
    assert (Recommender.load(run_dir, "sft").trie.n_items,) == loaded.codes.shape[:1]


def test_rl_goes_on_from_it(run_dir, trainer) -> None:
    practised = run_stage(grpo, run_dir)
    rewards = [row["reward"] for row in practised.state.log_history if "reward" in row]
    assert len(rewards) == 6
    assert state(practised.model).keys() == state(trainer.model).keys()
    assert any(not torch.equal(state(practised.model)[name], value) for name, value in state(trainer.model).items())


def test_validation_sees_the_weights_of_its_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's fused AdamW changes weights without counting it, so nothing that was made of them may be kept over a step."""
    measure, rows = SidSFTTrainer.measure, []

    def measured(trainer: SidSFTTrainer, prefix: str) -> dict[str, float]:
        trainer.model.eval()
        with torch.no_grad():
            model = trainer.model
            assert torch.equal(model.table().item_rows, model._new_table(model._paths_of(model.trie)).item_rows)
            rows.append(model.table().item_rows)
        model.train()
        return measure(trainer, prefix)

    monkeypatch.setattr(SidSFTTrainer, "measure", measured)
    run_stage(train, make_run_dir(tmp_path / "run"), **RQ_FLAGS, optim="adamw_torch_fused")
    assert len(rows) == 3
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2])


def test_the_saved_model_has_the_recall_that_chose_it(run_dir, trainer) -> None:
    best = max(json.loads((run_dir / "sft" / "valid.json").read_text()), key=lambda row: row["eval_recall@10"])
    cases = Dataset.load(run_dir).cases("valid")
    recommender = Recommender.load(run_dir, "sft")
    lists = recommender.recommend(cases.histories, 10, exclude_seen=True).items
    assert (lists == cases.targets[:, None]).any(1).mean() == pytest.approx(best["eval_recall@10"])
    every = recommender.recommend(cases.histories, recommender.trie.n_items, exclude_seen=False)
    log_pi = every.log_probs[every.items == cases.targets[:, None]]
    assert recommender.log_probs_of(cases.histories, cases.targets) == pytest.approx(log_pi, abs=1e-4)
    logged_loss = next(
        row["eval_loss"] for row in logged(run_dir / "sft") if row.get("eval_recall@10") == best["eval_recall@10"]
    )
    assert -log_pi.mean() / recommender.trie.n_levels == pytest.approx(logged_loss, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"item_to_text": 1.0}, "a task with texts needs a model that reads words"),
        ({"chat_template": "true"}, "chat_template needs a model that reads words"),
        ({"normaliser": "full"}, "normaliser=full is over codes that do not exist"),
        ({"embedding_init": "mean"}, "embedding_init=mean is for rows of words and codebooks"),
        ({"train_weights": "lora"}, "train_weights=lora is for a language model's layers"),
        ({"joint_levels": 4, "depth_head": "additive"}, "joint_levels=4 is more than the 3 codes of an item"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        run_stage(train, make_run_dir(tmp_path / "run"), **RQ_FLAGS, **settings)
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_size": 18, "num_attention_heads": 2}, "is an odd width"),
        ({"item_loss_weight": 0.5}, "item_loss_weight has no effect on depth_head=marginal"),
        ({"joint_levels": 1}, "joint_levels has no effect on depth_head=marginal"),
        ({"exact_children": 0}, "exact_children has no effect on depth_head=marginal"),
        ({"exact_children": -1, "depth_head": "additive"}, "exact_children=-1"),
        ({"joint_levels": 0, "depth_head": "additive"}, "joint_levels=0 must be at least 1"),
        ({"item_loss_weight": float("nan")}, "item_loss_weight=nan"),
    ],
)
def test_settings_that_cannot_be_or_do_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BackboneConfig(architecture="rq_transformer", **settings)


def test_it_is_evaluated_and_its_card_runs(run_dir, trainer, tmp_path: Path, monkeypatch, capsys) -> None:
    evaluate.main(["--run_dir", str(run_dir), "--models", "sft", "item_knn"])
    leaks = json.loads((run_dir / "evaluation" / "metrics.json").read_text())["sft"]["decoding"]["leaked_full"]
    assert leaks == [0.0] * len(leaks)
    card = (run_dir / "sft" / "README.md").read_text()
    assert "an RQ-Transformer made from scratch" in card
    monkeypatch.chdir(run_dir / "sft")
    for example in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        exec(example, {})


@pytest.mark.parametrize(
    "part",
    [
        {"depth_head": "additive"},
        {"joint_levels": 1},
        {"exact_children": 2},
        {"smoothing": False},
        {"item_loss_weight": 0.5},
    ],
)
@pytest.mark.parametrize("other", [{"architecture": "qwen3"}, {"model_name_or_path": "a/model"}])
def test_its_parts_are_refused_for_another_model(part: dict[str, Any], other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(part))} is a part of an rq_transformer; set --"):
        BackboneConfig(**part, **other)
