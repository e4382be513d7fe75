"""What RL maximises: the published objectives, each a function of a group's log-probabilities, written as the loss to minimise.

Throughout: log_probs, float32 [B, L], log π of the codes of B sampled items, with a gradient; old, float32 [B, L], the same under the
policy that drew them, without one; advantages, float32 [B, 1] or [B, L]; weights, float32 [B], how much a row counts, 1 on average
(importance weights of draws without replacement; all 1 for independent draws). ρ = π / π_old. Every loss is a mean over rows and codes,
so that a learning rate means the same for all of them; all SIDs have L codes, so averaging over lengths in one way or another, in which
the papers differ, comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sidrec.rl.clipping import Clip, clipped
from sidrec.rl.experimental.objectives import ecpo, gbpo, gspo


def grpo(log_probs: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, clip: Clip) -> Tensor:
    """GRPO (arXiv 2402.03300): a ratio for every code, clipped on both sides alike.

    Dr. GRPO (arXiv 2503.20783) is the same with advantages that are not divided by the group's standard deviation; DAPO (arXiv
    2503.14476) with clip.high > clip.low.
    """
    gain = clipped((log_probs - old).exp(), advantages, clip)
    return -(weights[:, None] * gain).mean()


def s_dpo(margins: Tensor, hits: Tensor, beta: float) -> Tensor:
    """S-DPO (arXiv 2406.09215): the taken item against all others of its group at once, offline.

    margins: float32 [P, G], log π(item) - log π_ref(item) with a gradient; hits: bool [P, G], exactly one True a row. Returns the mean
    of -log σ(-log Σ_{d no hit} exp(β (margin_d - margin_hit))).
    """
    assert margins.shape == hits.shape
    assert bool((hits.sum(1) == 1).all()), "a group of S-DPO holds the taken item exactly once"
    wanted = margins[hits][:, None]
    rivals = (beta * (margins - wanted)).masked_fill(hits, -torch.inf).logsumexp(1)
    return -torch.nn.functional.logsigmoid(-rivals).mean()


PolicyLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Clip], Tensor]


@dataclass(frozen=True)
class Objective:
    """loss: (log_probs, old, advantages, weights, clip) → loss; None for `s_dpo`, which compares whole groups. scaled: whether the paper
    divides advantages by the group's standard deviation."""

    loss: PolicyLoss | None
    scaled: bool


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(grpo, scaled=True),
    "dr_grpo": Objective(grpo, scaled=False),
    "s_dpo": Objective(None, scaled=False),
    "dapo": Objective(grpo, scaled=True),  # this one and those below: experimental
    "gspo": Objective(gspo, scaled=True),
    "ecpo": Objective(ecpo, scaled=True),
    "gbpo": Objective(gbpo, scaled=False),
}


def group_advantages(rewards: Tensor, weights: Tensor, scaled: bool) -> Tensor:
    """float32 [P, G]: how much better than its group a row is. rewards, weights: float32 [P, G].

    The baseline is the weighted mean, the group's estimate of the policy's mean reward. scaled: divided by the weighted standard
    deviation.
    """
    assert rewards.shape == weights.shape
    centred = rewards - group_mean(rewards, weights)
    if not scaled:
        return centred
    return centred / (group_mean(centred.square(), weights).sqrt() + 1e-4)


def group_mean(values: Tensor, weights: Tensor) -> Tensor:
    """float32 [P, 1]: the group's estimate of the policy's mean. values, weights: float32 [P, G]."""
    return (weights * values).sum(1, keepdim=True) / weights.sum(1, keepdim=True)


def exact_kl(log_probs: Tensor, reference: Tensor) -> Tensor:
    """float32 [R]: Σ_c π(c) (log π(c) - log ref(c)) at a node of the trie; 0 where one code exists.

    log_probs, reference: float32 [R, K], log-softmax over the codes that exist, -inf elsewhere in both. Never an estimate: k3 on drawn
    codes has been seen to reach 1e11.
    """
    assert log_probs.shape == reference.shape
    exists = log_probs > -torch.inf
    gap = torch.where(exists, log_probs, 0.0) - torch.where(exists, reference, 0.0)
    return (log_probs.exp() * gap).sum(1)


def divergence_to_come(kl: Tensor) -> Tensor:
    """float32 [B, L]: what the codes behind each code will diverge by, Σ_{l' > l} KL at l'. kl: float32 [B, L], at every code's node.

    A code also decides which nodes come next, so the gradient of the expected divergence Σ_l E[KL_l] has, beside each node's own, the term
    Σ_l ∇log π(code l) · Σ_{l' > l} KL_l': the divergence to come is a cost of the code, as a reward is its gain.
    """
    return kl.flip(1).cumsum(1).flip(1) - kl
