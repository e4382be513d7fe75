"""Rows of SID tokens that do not shout: of a pretrained model's first answers none is far more likely than the others.

Rows as long as a pretrained model's own make its first logits of codes spread widely: the head's input is long, and nearly the same
wherever a code is asked for. Shorter rows cure that, and tell items apart badly as the model's input. So rows keep their length and lose
the few directions in which the head's input lies at those places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.renderer import Renderer

MOST_DIRECTIONS = 64
HISTORIES, ITEMS = 16, 30
ROUNDS = 2  # the head's input depends on the rows that the model reads, when they are its head's, too


def quiet_rows(model: PreTrainedModel, renderer: Renderer, sequences: Sequence[np.ndarray], old_rows: int) -> None:
    """Change the rows of SID tokens in the head (which may be the embedding, too), in place.

    sequences: users' training items, of which some are read. old_rows: tokens before the SID tokens; what all of the head's rows share
    stays in the new ones.
    """
    weight = model.get_output_embeddings().weight
    span = sid_span(renderer.vocabulary)
    mean = weight[:old_rows].detach().float().mean(dim=0)
    start = weight[span].detach().float() - mean
    histories = [sequence[:ITEMS] for sequence in sequences[:HISTORIES]]
    with torch.no_grad():
        for _ in range(ROUNDS):
            quiet = without(start, head_inputs(model, renderer, histories))
            for level in levels_of(renderer.vocabulary):
                quiet[level] *= start[level].norm(dim=1).mean() / quiet[level].norm(dim=1).mean().clamp(min=1e-12)
            weight[span] = (mean + quiet).to(weight.dtype)


def head_inputs(model: PreTrainedModel, renderer: Renderer, histories: Sequence[np.ndarray]) -> Tensor:
    """float32 [n, H]: the last hidden states from which the codes of the histories' items are predicted."""
    was_training = model.training
    model.eval()
    input_ids, mask = renderer.batch(list(histories))
    states = model(
        input_ids=input_ids,
        attention_mask=mask,
        output_hidden_states=True,
        logits_to_keep=1,
        use_cache=False,
    ).hidden_states[-1]
    model.train(was_training)
    return states[:, :-1][mask[:, :-1].bool()].float()


def without(rows: Tensor, states: Tensor) -> Tensor:
    """`rows` [K, H] less their part in the main directions of `states` [n, H]: an eighth of the width, 64 at most."""
    n_directions = min(MOST_DIRECTIONS, states.shape[1] // 8, len(states))
    directions = torch.linalg.svd(states, full_matrices=False)[2][:n_directions]
    return rows - rows @ directions.T @ directions


def sid_span(vocabulary: SidVocabulary) -> slice:
    """Where all codes' rows lie."""
    return slice(vocabulary.first_tokens[0], vocabulary.first_tokens[-1] + vocabulary.level_sizes[-1])


def levels_of(vocabulary: SidVocabulary) -> list[slice]:
    """Of the rows of `sid_span`, those of each level."""
    first = vocabulary.first_tokens[0]
    pairs = zip(vocabulary.first_tokens, vocabulary.level_sizes, strict=True)
    return [slice(token - first, token - first + size) for token, size in pairs]
