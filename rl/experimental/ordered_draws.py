"""NDCG@K of a list drawn without replacement, expected exactly: no list is drawn.

A list drawn item by item, each by π among those that are left (Plackett-Luce), has the order of arrival times: item i comes at a time
that is exponential with rate π_i. So the place of the taken item y is 1 + how many others came before it, and

    P(y at place j) = ∫ π_y exp(-π_y t) P(exactly j - 1 others came before t) dt

At a time t the others have come independently of each other, with probability 1 - exp(-π_i t): a Poisson binomial number. The most
probable items are counted one by one; the others, of which each hardly comes, by the first ORDER cumulants of their number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidrec.rl.expectation import DenseReward, Questions

HEAD = 4  # times K: items that are counted one by one
ORDER = 4  # of the expansion for all others
POINTS = 32  # of the quadrature over log t
BEGIN, END = (
    1e-3,
    (4.0, 16.0),
)  # the first time; the last is 4 K + 16 over the mass outside of the K - 1 most probable items
ROWS_AT_ONCE = 256  # questions of which the quadrature is held at once
# of the cumulants of a number that is 0 or 1, as polynomials of its generating function's z: by order, the factor of z^0, z^1, …
CUMULANTS = ((-1, 1), (0, 1, -1), (0, 1, -3, 2), (0, 1, -7, 12, -6))
FACTORIALS = (1, 2, 6, 24)


def ndcg_at_k(ks: list[int]) -> DenseReward:
    """What an item's probability is worth to the NDCG@K of a list drawn without replacement, meaned over `ks`: its derivative by π of the
    item, so that the policy gradient is that of the expected NDCG. The expectation of it under π is the expected NDCG."""
    places = torch.arange(max(ks))
    gains = torch.stack([torch.where(places < k, 1 / (places + 2.0).log2(), 0.0) for k in ks]).mean(0)

    def ndcg_at_k(questions: Questions, probs: Tensor) -> Tensor:
        rows = [
            worth_of_items(*part, gains)
            for part in zip(probs.split(ROWS_AT_ONCE), questions.targets.split(ROWS_AT_ONCE), strict=True)
        ]
        return torch.cat(rows)

    return ndcg_at_k


def worth_of_items(probs: Tensor, targets: Tensor, gains: Tensor) -> Tensor:
    """float32 [R, N]: the derivative of `expected_gain` by every probability, plus the gain itself: Σ π · derivative is 0, since only the
    ratios of probabilities count, so Σ π · worth is the gain."""
    saved_as_they_are = torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)
    with torch.enable_grad(), saved_as_they_are:  # within a checkpoint these are no tensors to be computed again
        leaves = probs.detach().requires_grad_(True)
        gain = expected_gain(leaves, targets, gains)
        (slopes,) = torch.autograd.grad(gain.sum(), leaves)
    return slopes + gain.detach()[:, None]


def expected_gain(probs: Tensor, targets: Tensor, gains: Tensor) -> Tensor:
    """float32 [R]: the expected gain of the place at which the target is drawn, 0 behind the last.

    probs: float32 [R, N], with a gradient. targets: int64 [R], columns of it. gains: float32 [K], by place.
    """
    k, gains = len(gains), gains.to(probs)
    wanted = probs.gather(1, targets[:, None])  # [R, 1]
    others = probs.scatter(1, targets[:, None], 0.0)
    head, head_at = others.topk(min(HEAD * k, others.shape[1]))
    tail = others.scatter(1, head_at, 0.0)
    with torch.no_grad():
        outside = (1 - probs.topk(min(k - 1, probs.shape[1])).values.sum(1, keepdim=True)).clamp(min=1e-6)
        span = ((END[0] * k + END[1]) / outside / BEGIN).log()  # [R, 1]
        times = BEGIN * (span * torch.linspace(0, 1, POINTS, device=probs.device)).exp()  # [R, Q]
        shares = times * span / (POINTS - 1)  # dt = t d(log t)
        shares[:, [0, -1]] /= 2
    before = number_of_tail(tail, times, k)
    for place in range(head.shape[1]):
        before = one_more(before, -torch.expm1(-head[:, place, None] * times))
    density = wanted * torch.exp(-wanted * times)  # [R, Q]
    return (shares * density * (before @ gains)).sum(1) + wanted[:, 0] * BEGIN * gains[0]


def one_more(numbers: Tensor, probability: Tensor) -> Tensor:
    """float32 [R, Q, K]: the distribution of a number, 0 … K - 1, with another event. probability: float32 [R, Q], the event's."""
    more = torch.nn.functional.pad(numbers[..., :-1], (1, 0))
    return torch.lerp(numbers, more, probability[..., None])


def number_of_tail(tail: Tensor, times: Tensor, k: int) -> Tensor:
    """float32 [R, Q, K]: P(exactly m of the items came before t), m < K. tail: float32 [R, N], 0 for an item that does not belong to them.

    The logarithm of the generating function is Σ over orders n of t^n Σ_i π_i^n / n! times the n-th cumulant polynomial of CUMULANTS.
    """
    logs = [torch.zeros_like(times) for _ in range(max(k, ORDER + 1))]
    for order in range(1, ORDER + 1):
        size = tail.pow(order).sum(1, keepdim=True) * times.pow(order) / FACTORIALS[order - 1]
        for power, factor in enumerate(CUMULANTS[order - 1]):
            if factor:
                logs[power] = logs[power] + factor * size
    numbers = [logs[0].exp()]  # of exp(Σ logs z^n), power by power
    for m in range(1, k):
        numbers.append(
            sum((n * logs[n] * numbers[m - n] for n in range(1, min(m, ORDER) + 1)), torch.zeros_like(times)) / m
        )
    return torch.stack(numbers, dim=2)
