"""benchmarks/rl_gain.py and the rival's recipe: its loss by its formula, and a table from small runs."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from run_dirs import RL_FLAGS, SFT_FLAGS, finished_sft_run, flags

from benchmarks import rival_recipe, rl_gain
from benchmarks.rival_recipe import K3_WEIGHT, RivalTrainer
from benchmarks.rl_gain import CONTINUED, OURS, RIVAL, SFT, Plan
from sidrec.data.dataset import Dataset
from sidrec.data.metrics import ndcg_at, ranks_in_lists
from sidrec.decoding.recommender import Recommender
from sidrec.rl import grpo
from sidrec.rl.practice import practise
from sidrec.rl.trainer import SidGRPOTrainer
from sidrec.sft import train

SHORT = {"max_steps": 2, "eval_steps": 1, "save_steps": 1}


@pytest.fixture
def run_dir(tmp_path_factory, tmp_path):
    return shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")


def test_the_rivals_loss_and_gradient_are_its_formula(run_dir, monkeypatch):
    """-(1 / B L) Σ (A - K3_WEIGHT · d k3 / d log p) ∇log p, p by the plain model over all tokens; at the start r = 1 and k3 is flat, so the
    SFT copy is moved first."""
    seen: list[tuple[RivalTrainer, dict]] = []

    class Watched(RivalTrainer):
        def _compute_loss(self, model, inputs):
            seen.append((self, inputs))
            return super()._compute_loss(model, inputs)

    monkeypatch.setattr(rival_recipe, "RivalTrainer", Watched)
    options = {
        "draw": "beams",
        "importance_weights": "false",
        "objective": "grpo",
        "rewards": ["exact_hit", "rank_penalty"],
    }
    rival_recipe.main(flags(grpo, run_dir, **SHORT, **options))
    default = inspect.signature(practise).parameters["trainer_kind"].default
    assert default is SidGRPOTrainer, "the stage itself is as it was"
    trainer, inputs = seen[0]
    Accelerator(cpu=True)
    model, old = trainer.model.eval(), trainer.sft_model
    with torch.no_grad():
        for weight in old.parameters():
            weight.mul_(0.9)
    trainer.current_gradient_accumulation_steps = 1
    model.zero_grad()
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}

    def token_log_probs(some_model):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], torch.ones_like(inputs["completion_ids"])], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = some_model(ids, attention_mask=mask, position_ids=positions).logits[:, -4:-1].log_softmax(-1)
        return logits.gather(2, inputs["completion_ids"][..., None])[..., 0]

    model.zero_grad()
    log_probs = token_log_probs(model)
    ratio = (token_log_probs(old) - log_probs.detach()).exp().detach()
    expected = -(log_probs * (inputs["advantages"] - K3_WEIGHT * (1 - ratio))).mean()
    expected.backward()
    assert float((ratio - 1).abs().max()) > 0.1
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-7, msg=name)


def in_this_process(command: list[str], run_dir: Path, _threads: int) -> float:
    """In the place of `run_stage`: the same work without six more starts of Python."""
    name, flags = (command[1], command[2:]) if command[0] == "-m" else (command[0], command[1:])
    module = {"benchmarks.rival_recipe": rival_recipe, "sft/train.py": train, "rl/grpo.py": grpo}[name]
    module.main([*flags, "--run_dir", str(run_dir)])
    return 1.0


def test_the_table_is_made_once_and_its_differences_are_the_ranks(run_dir, tmp_path, monkeypatch, capsys):
    sizes = {name: RL_FLAGS[name] for name in ("num_generations", "per_device_train_batch_size")} | SHORT
    more = {name: SFT_FLAGS[name] for name in ("max_items", "per_device_train_batch_size")} | SHORT
    plan = Plan(*(" ".join(f"--{name} {value}" for name, value in some.items()) for some in (sizes, more)))
    monkeypatch.setitem(rl_gain.PLANS, "ml-100k", plan)
    monkeypatch.setattr(rl_gain, "run_stage", in_this_process)
    work = tmp_path / "work"
    arguments = ["--dataset", "ml-100k", "--run_dir", str(run_dir), "--work_dir", str(work)]
    arguments += ["--seeds", "0", "1", "--settings", RIVAL, OURS]
    rl_gain.main(arguments)
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = json.loads((work / "rows.json").read_text())["rows"]
    assert set(rows) == {
        f"{SFT} seed 0",
        *(f"{name} seed {seed}" for name in (CONTINUED, RIVAL, OURS) for seed in (0, 1)),
    }
    dataset = Dataset.load(run_dir)
    cases = dataset.cases("valid")
    lists = Recommender.load(run_dir, "sft").recommend(cases.histories, 50, exclude_seen=True).items
    sft = ndcg_at(ranks_in_lists(lists, cases.targets), 10)
    assert first["rows"][SFT]["valid"]["ndcg@10"] == pytest.approx(sft.mean())
    gains = {}
    for name in (CONTINUED, OURS):
        run_dirs = [work / rows[f"{name} seed {seed}"]["run_dir"] for seed in (0, 1)]
        gains[name] = np.mean([ndcg_at(np.load(folder / "ranks.npy"), 10) for folder in run_dirs], axis=0)
    difference = (gains[OURS] - gains[CONTINUED]).mean()
    assert first["ndcg10_gain"] == pytest.approx(difference / gains[CONTINUED].mean())
    assert first["rows"][OURS]["seeds"] == 2
    assert 0 <= first["zero_signal"] <= 1

    def refuse(*_):
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr(rl_gain, "train", refuse)
    rl_gain.main(arguments)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
