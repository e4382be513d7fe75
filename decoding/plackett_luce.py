"""Lists drawn at random, and the probability of every slot: what a service serves and logs so that another policy can be judged later.

A list is drawn without replacement: each slot's item by its probability among the items that are left (Plackett-Luce). So the
probability of a whole list is the product over its slots. At temperature T the scores are log π / T.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sidrec.decoding.beams import refuse_nan


def draw_list(log_probs: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a list of k items a request. Returns (choices, propensities), both [B, k].

    log_probs: float [B, N], scores up to a constant a row, -inf for what may not be served. generator: on the CPU.
    choices: int64, columns of `log_probs`, distinct, in order; -1 where no item is left. propensities: float64, the probability of each
    choice given the choices above it, 1 where there is none. The k largest sums of a score and Gumbel noise are such a list (Gumbel
    top-k, arXiv 1903.06059). Raises InputError when scores are not numbers.
    """
    assert log_probs.ndim == 2
    assert k >= 1
    refuse_nan(log_probs)
    noise = torch.empty(log_probs.shape, dtype=torch.float64).exponential_(generator=generator)
    keys = log_probs.double() - noise.clamp_(min=torch.finfo(torch.float64).tiny).log_().to(log_probs.device)
    best, choices = keys.topk(min(k, keys.shape[1]), dim=1)
    choices = torch.nn.functional.pad(choices.masked_fill(best == -torch.inf, -1), (0, k - choices.shape[1]), value=-1)
    return choices, slot_probabilities(log_probs, choices)


def slot_probabilities(log_probs: Tensor, choices: Tensor) -> Tensor:
    """float64 [B, K]: the probability of each choice given those above it, 1 where a choice is -1.

    log_probs: float [B, N], scores up to a constant a row, -inf for what is never served. choices: int64 [B, K], columns of it.
    """
    assert len(log_probs) == len(choices)
    columns = choices.clamp(min=0)
    slots = [
        open_log_probs.gather(1, columns[:, slot, None])
        for slot, open_log_probs in enumerate(log_probs_by_slot(log_probs, choices))
    ]
    return torch.cat(slots, dim=1).exp().masked_fill(choices < 0, 1.0)


def log_probs_by_slot(log_probs: Tensor, choices: Tensor) -> Iterator[Tensor]:
    """For every slot float64 [B, N]: the log-probability of each item there, -inf for the choices above it and where nothing is left."""
    scores = log_probs.double()
    for slot in range(choices.shape[1]):
        yield scores.log_softmax(1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        chosen = choices[:, slot, None]
        gone = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen.clamp(min=0), chosen >= 0)
        scores = scores.masked_fill(gone, -torch.inf)
