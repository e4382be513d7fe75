"""Rewards expected under π over every item of the catalogue: no draw, so no variance, and the gradient is the exact one.

Throughout: R questions, N leaves of the trie; log_probs, float32 [R, N], log π of the item at every leaf.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-4  # added to a standard deviation, as in `rl.objectives.group_advantages`


@dataclass(frozen=True)
class Questions:
    """What rewards may look at. targets: int64 [R], the leaf of the item that was taken. users: int64 [R], whose question it is, by the
    order of `Dataset.train_sequences`. exposure: float32 [N], the share of the batch's lists of ten that hold an item, where a reward
    asks for it."""

    targets: Tensor
    users: Tensor
    exposure: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def of(self, rows: Tensor) -> Questions:
        """The questions at `rows`, int64 [C]."""
        return Questions(self.targets[rows], self.users[rows], self.exposure)


# (questions, π without a gradient, float32 [R, N]) → float32 [R, N], or broadcast to it: what each item earns
DenseReward = Callable[[Questions, Tensor], Tensor]


def expected(
    log_probs: Tensor, questions: Questions, rewards: list[DenseReward], weights: list[float], scaled: bool
) -> tuple[Tensor, Tensor]:
    """Minus the expected sum of the rewards [R], whose gradient is the policy gradient, and every reward's own expectation [R, rewards].

    scaled: divided by the standard deviation of the sum under π, as GRPO (arXiv 2402.03300) divides a group's advantages by the group's.
    """
    assert log_probs.ndim == 2
    assert len(log_probs) == len(questions), f"{tuple(log_probs.shape)}, {len(questions)}"
    probs = log_probs.exp()
    fixed = probs.detach()
    each = [reward(questions, fixed).expand_as(fixed) for reward in rewards]
    total = torch.stack([weight * values for weight, values in zip(weights, each, strict=True)]).sum(0)
    mean = (fixed * total).sum(1, keepdim=True)
    advantages = total - mean  # Σ π = 1, so the mean changes no gradient, but it keeps the sum small
    if scaled:
        advantages = advantages / ((fixed * advantages.square()).sum(1, keepdim=True).sqrt() + EPSILON)
    return -(probs * advantages).sum(1), torch.stack([(fixed * values).sum(1) for values in each], dim=1)


def divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """float32 [R]: KL(π ‖ π_ref), the sum over every item. reference: float32 [R, N]."""
    assert log_probs.shape == reference.shape
    return (log_probs.exp() * (log_probs - reference)).sum(1)
