"""Answers to prompts of words: the items of highest probability, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import torch
from run_dirs import make_run_dir, run_stage, save_pretrained

from sidrec.decoding.answers import PROMPTS_PER_BATCH, answers
from sidrec.decoding.recommender import Recommender
from sidrec.sft import train


def test_answers_are_the_most_probable_items_after_each_prompt(tmp_path):
    run_dir = make_run_dir(tmp_path / "run")
    save_pretrained(tmp_path / "pretrained", "Llama", tied=True)
    run_stage(train, run_dir, max_steps=2, model_name_or_path=tmp_path / "pretrained", text_to_item=1)
    recommender = Recommender.load(run_dir, "sft")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 40, rng.integers(1, 12)).tolist() for _ in range(PROMPTS_PER_BATCH + 2)]
    best = answers(recommender, prompts, 5)
    tokens, model = recommender.renderer.item_tokens, recommender.model
    first = recommender.renderer.vocabulary.first_tokens
    assert (best.reachable == len(tokens)).all()
    for prompt, items, log_probs in zip(prompts, best.items, best.log_probs, strict=True):
        scores = torch.zeros(len(tokens))
        for item, sid in enumerate(tokens):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *sid.tolist()]])).logits[0]
            for level, token in enumerate(sid):
                same = (tokens[:, :level] == sid[:level]).all(1)
                children = tokens[same, level].unique()
                at = logits[len(prompt) + level - 1, children]
                scores[item] += (at - at.logsumexp(0))[children == token].item()
        expected = scores.sort(descending=True, stable=True)
        np.testing.assert_allclose(scores[items], expected.values[:5], atol=1e-5)
        np.testing.assert_allclose(log_probs, expected.values[:5], atol=1e-5)
    assert min(first) > 40
