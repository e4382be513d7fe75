"""How far a policy-gradient step may move a code's probability: the clipped ratio that objectives share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """low, high: ρ is kept within 1 - low … 1 + high where leaving it would pay. early: ECPO's δ."""

    low: float
    high: float
    early: float = 0.1


def clipped(ratio: Tensor, advantages: Tensor, clip: Clip) -> Tensor:
    """PPO's surrogate min(ρ A, clip(ρ) A), the gain of each code."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip.low, 1 + clip.high) * advantages)
