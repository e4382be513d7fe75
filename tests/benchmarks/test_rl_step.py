"""benchmarks/rl_step.py: its exact gradient is one, its estimates come near it, and a short run prints all keys."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import make_sids
from run_dirs import finished_rq_run, finished_sft_run

from benchmarks import rl_step
from benchmarks.random_catalogues import small_qwen3
from benchmarks.rl_step import Question, RlStepConfig, cosine, vocabulary_of
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import item_log_probs
from sidrec.decoding.trie import SidTrie
from sidrec.rl import grpo


@pytest.fixture
def question(tmp_path):
    sids = make_sids(50, [4, 5, 6])
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    model = small_qwen3(1 + sum(sids.level_sizes), seed=0)
    return Question.ask(model, vocabulary_of(sids.level_sizes), trie, 2, RlStepConfig(index=tmp_path))


def test_the_exact_gradient_is_that_of_the_targets_probability(question):
    assert question.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert int((question.probabilities > question.probabilities[question.target]).sum()) == 2, "the rank asked for"
    gradient = question.gradient(question.exact_coefficients())
    model, trie, vocabulary = question.model, question.trie, question.vocabulary
    model.zero_grad()
    item = torch.tensor([question.target])
    codes = torch.stack([trie.code[level][trie.node_of_item[level + 1][item]] for level in range(3)], dim=1).long()
    ids = torch.cat([question.prompt, codes + torch.tensor(vocabulary.first_tokens)], dim=1)
    states = model(ids, output_hidden_states=True).hidden_states[-1][:, -4:-1]
    item_log_probs(states, item, OutputHead.of(model), vocabulary, trie).sum().exp().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_weighted_draws_come_nearer_to_it_than_beams(question):
    exact = question.gradient(question.exact_coefficients())
    cosines = {
        draw: cosine(question.gradient(question.drawn_coefficients(draw, 300, weighted=True)), exact)
        for draw in ("gumbel", "beams")
    }
    assert cosines["gumbel"] > 0.98
    assert cosines["gumbel"] > cosines["beams"]


def test_a_short_run_prints_all_keys(tmp_path_factory, tmp_path, monkeypatch, capfd):
    codes = np.unique(make_sids(60, [4, 5, 6]).codes, axis=0)
    np.save(tmp_path / "codes_all.npy", codes)
    for name, value in {
        "VOCABULARY": 600,
        "PROMPT_ITEMS": 3,
        "CATALOGUE": 200,
        "LEVELS": (8, 8, 8),
        "RANKS": (0,),
    }.items():
        monkeypatch.setattr(rl_step, name, value)
    run_dir = finished_sft_run(tmp_path_factory)
    flags = [
        "--index",
        tmp_path / "codes_all.npy",
        "--run_dir",
        run_dir,
        "--groups",
        20,
        "--kl_steps",
        3,
        "--repeats",
        1,
    ]
    rl_step.main([str(flag) for flag in flags])
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert figures["step_ratio"] == pytest.approx(figures["trl_seconds"] / figures["step_seconds"])
    assert set(figures["cosines"]) == {"gumbel", "independent", "beams", "gumbel, all alike"}
    assert 0.5 < figures["gradient_cosine"] <= 1
    assert 0 < figures["kl_max"] < 10
    assert not (run_dir / "rl").exists(), "the run itself is not touched"


def test_the_steps_of_both_kinds_are_timed(tmp_path_factory, monkeypatch):
    def in_this_process(command: list[str], run_dir, threads: int) -> float:
        sizes = ["--batch_items", "60", "--per_device_train_batch_size", "16", "--num_generations", "8"]
        grpo.main([*command[1:], *sizes, "--run_dir", str(run_dir), "--use_cpu", "true"])
        return 1.0

    monkeypatch.setattr(rl_step, "run_stage", in_this_process)
    monkeypatch.setattr(rl_step, "STEPS", 3)
    assert rl_step.exact_ratio(finished_rq_run(tmp_path_factory)) > 0
