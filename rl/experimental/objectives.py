"""Objectives of which no row of RESULTS.md says anything yet. Arguments and scale are those of `sidrec.rl.objectives`."""

from __future__ import annotations

import torch
from torch import Tensor

from sidrec.rl.clipping import Clip, clipped


def gspo(log_probs: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, clip: Clip) -> Tensor:
    """GSPO (arXiv 2507.18071): one ratio an item, the geometric mean over its codes."""
    ratio = (log_probs - old).mean(1, keepdim=True).exp().expand_as(log_probs)
    return -(weights[:, None] * clipped(ratio, advantages, clip)).mean()


def ecpo(log_probs: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, clip: Clip) -> Tensor:
    """OneRec's early-clipped GRPO (arXiv 2506.13695): where A < 0, π_old is raised to π / (1 + ε + δ), so that ρ stays bounded."""
    raised = torch.maximum(old, log_probs.detach() - torch.tensor(1 + clip.high + clip.early).log())
    used = torch.where(advantages < 0, raised, old)
    return -(weights[:, None] * clipped((log_probs - used).exp(), advantages, clip)).mean()


def gbpo(log_probs: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, clip: Clip) -> Tensor:
    """OneRec-V2's gradient-bounded objective (arXiv 2508.20900): no clipping; π_old is raised to π where A >= 0, to 1 - π where A < 0.

    The gradient of a negative item is then at most that of binary cross-entropy. `clip` is not used.
    """
    now = log_probs.detach()
    complement = torch.log1p(-now.exp().clamp(max=1 - 1e-6))
    used = torch.maximum(old, torch.where(advantages < 0, complement, now))
    return -(weights[:, None] * (log_probs - used).exp() * advantages).mean()
