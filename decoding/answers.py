"""Prompts of words → items: what a language model with SID tokens answers to a text, under the constraint that items exist."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.recommender import FEWEST_BEAMS, Recommendations, Recommender

PROMPTS_PER_BATCH = 32


def answers(recommender: Recommender, prompts: list[list[int]], k: int) -> Recommendations:
    """The k items whose SIDs the model most probably writes after each prompt.

    prompts: token ids, as training wrote them (`sft/examples.py`), none of them empty. Only a language model reads words.
    """
    assert all(prompts), "an empty prompt asks for nothing"
    trie, device = recommender.trie, recommender.model.device
    vocabulary, normaliser = recommender.renderer.vocabulary, recommender.renderer.normaliser
    best = np.full((len(prompts), k), -1, dtype=np.int64)
    log_probs = np.full(best.shape, -np.inf, dtype=np.float32)
    reachable = np.zeros(len(prompts), dtype=np.int64)
    for first in range(0, len(prompts), PROMPTS_PER_BATCH):
        batch = prompts[first : first + PROMPTS_PER_BATCH]
        input_ids, attention_mask = (tensor.to(device) for tensor in left_padded(batch))
        width = max(k, FEWEST_BEAMS)
        beams = beam_search(
            recommender.model, input_ids, attention_mask, vocabulary, trie, width, normaliser=normaliser
        )
        rows, width = slice(first, first + len(batch)), min(k, beams.items.shape[1])
        best[rows, :width] = beams.items[:, :width].cpu().numpy()
        log_probs[rows, :width] = beams.log_probs[:, :width].cpu().numpy()
        reachable[rows] = beams.reachable.cpu().numpy()
    return Recommendations(best, log_probs, reachable)


def left_padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Input ids and attention mask, both int64 [B, T]; the last column is the last token of every prompt."""
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return input_ids, (torch.arange(longest) >= longest - lengths[:, None]).long()
