"""What a search gives back: `Beams`, how they were drawn, and the order of equal scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidrec.pipeline.errors import InputError

LARGEST_NODE = 0x7FFFFFFF


@dataclass(frozen=True)
class Draws:
    """How the items of a stochastic search were drawn (arXiv 1903.06059, section 4.2).

    keys: float32 [B, W], the Gumbel keys by which the items were drawn, largest first. log_probs: float32 [B, W], log φ, the
    probabilities drawn by: π, renormalised at every prefix where codes without an eligible item are left out. threshold: float32 [B], κ,
    the largest key that was not drawn, -inf when all were. log_inclusion: float32 [B, W], log q = log(1 - exp(-exp(log φ - κ))), the
    probability that an item's key is above κ.
    """

    keys: Tensor
    log_probs: Tensor
    threshold: Tensor
    log_inclusion: Tensor

    @property
    def weights(self) -> Tensor:
        """float32 [B, W]: φ / q. Σ weights · f(item) is an unbiased estimate of Σ φ · f over all items; 0 where no item is."""
        return (self.log_probs - self.log_inclusion).exp()


@dataclass(frozen=True)
class Beams:
    """items: int64 [B, W], best first (in sampling order when stochastic), -1 where there are fewer; log_probs: float32 [B, W], -inf
    there. reachable: int64 [B], how many items could have come back: the eligible ones. draws: only when stochastic."""

    items: Tensor
    log_probs: Tensor
    reachable: Tensor
    draws: Draws | None = None


def best_first(keys: Tensor, nodes: Tensor, n: int) -> Tensor:
    """int64 [B, n]: columns of the n largest keys, best first; of equal keys the lower node is first, on every device.

    keys: float32 [B, C]. nodes: int64 [B, C], below 2^31. NaN counts as the largest, so that it is not lost.
    """
    assert keys.shape == nodes.shape
    bits = (keys.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0).view(torch.int32)  # + 0.0: no -0
    rising = bits ^ ((bits >> 31) & LARGEST_NODE)  # as integers, in the order of the floats
    return ((rising.long() << 32) | (LARGEST_NODE - nodes)).topk(n, dim=1).indices


def draws_of(log_probs: Tensor, keys: Tensor, beams: int) -> Draws:
    """log_probs: [B, W ≤ beams]. keys: [B, W'], one more than `beams` where as many exist, best first."""
    nothing_left = torch.full_like(keys[:, 0], -torch.inf)
    threshold = keys[:, beams] if keys.shape[1] > beams else nothing_left
    log_inclusion = log_inclusion_probability(log_probs, threshold).masked_fill(log_probs == -torch.inf, 0.0)
    return Draws(keys[:, :beams], log_probs, threshold, log_inclusion)


def log_inclusion_probability(log_probs: Tensor, threshold: Tensor) -> Tensor:
    """float32 [B, W]: log q = log(1 - exp(-exp(log φ - κ))), the probability that an item's Gumbel key is above κ (arXiv 1903.06059).

    log_probs: [B, W], log φ. threshold: [B], κ.
    """
    return torch.log(-torch.expm1(-torch.exp(log_probs - threshold[:, None])))


def refuse_nan(log_probs: Tensor) -> None:
    """Raise InputError when scores are not numbers."""
    if bool(log_probs.isnan().any()):
        raise InputError("the model's scores are not numbers (NaN); its weights, or its precision, are broken.")
