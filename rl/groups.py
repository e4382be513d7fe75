"""Groups: which items are drawn for a question, and how much each counts.

gumbel       G distinct items drawn from π without replacement (Gumbel top-k, arXiv 1903.06059). Item i counts φ_i / q_i, its probability
             over the probability that it is drawn, so that weighted sums over a group estimate sums over the catalogue.
independent  G independent draws, which may be the same; all count alike.
beams        the G most probable items by beam search; each counts by its probability. No sample: what lies below the beams is never
             seen, so the estimate is biased.

With `inject_target` the taken item is in every group: it counts by its own probability, which is exact, and the draws (one fewer) stand
for all other items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sidrec.decoding.beams import Beams, log_inclusion_probability
from sidrec.rl.settings import Draw

Search = Callable[[Tensor, int, "list[torch.Generator] | None"], Beams]


@dataclass(frozen=True)
class Groups:
    """items: int64 [P, G]. weights: float32 [P, G], how much an item counts; their scale means nothing."""

    items: Tensor
    weights: Tensor


def draw_groups(search: Search, n_prompts: int, size: int, draw: Draw, seeds: list[str]) -> tuple[Groups, Beams]:
    """The groups of prompts 0 … n_prompts - 1, and the search that they come from.

    search: (prompt numbers [R], width, generators) → Beams. seeds: one a prompt; its draws depend on nothing else.
    """
    every = torch.arange(n_prompts)
    if draw == "beams":
        beams = search(every, size, None)
        return Groups(beams.items, beams.log_probs.exp()), beams
    if draw == "gumbel":
        beams = search(every, size, [draw_generator(seed) for seed in seeds])
        assert beams.draws is not None
        return Groups(beams.items, beams.draws.weights), beams
    generators = [draw_generator(f"{seed} {i}") for seed in seeds for i in range(size)]
    beams = search(every.repeat_interleave(size), 1, generators)
    items = beams.items.view(n_prompts, size)
    return Groups(items, torch.ones(items.shape, device=items.device)), beams


def with_targets(groups: Groups, beams: Beams, targets: Tensor, target_probs: Tensor) -> Groups:
    """Groups of Gumbel draws that hold the taken item, targets int64 [P], each time; where it is not known (negative), the draws alone.
    target_probs: float32 [P], their π.

    Of the other items the first G - 1 are kept; their threshold is the key of the next of them, so that their weights estimate sums over
    all items but the target.
    """
    assert beams.draws is not None, "only draws without replacement can make room"
    draws, size = beams.draws, groups.items.shape[1]
    is_target = groups.items == targets[:, None]
    here = is_target.any(1)
    place = torch.where(
        here, is_target.int().argmax(1), size - 1
    )  # where the target stands, or the last draw, which gives way
    threshold = torch.where(here, draws.threshold, draws.keys[:, -1])
    weights = (draws.log_probs - log_inclusion_probability(draws.log_probs, threshold)).exp()
    rows = torch.arange(len(targets), device=targets.device)
    items = groups.items.clone()
    items[rows, place] = targets
    weights[rows, place] = target_probs
    known = (targets >= 0)[:, None]
    return Groups(torch.where(known, items, groups.items), torch.where(known, weights, groups.weights))


def draw_generator(seed: str) -> torch.Generator:
    """The randomness that a text stands for: the same in whichever process, batch or resumed run it is asked for."""
    digest = hashlib.sha256(seed.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
