"""-log softmax over items at the targets: over all of them, its matrix products in the autocast dtype, or, in a catalogue of more than
MOST_SCORED, over a sample with importance weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_SCORED = 50_000  # items: 4,096 positions times so many are 400 MB in bfloat16
SAMPLES = 8192
UNIFORM_SHARE = 0.5  # of the draws; the others follow popularity
ROWS_AT_ONCE = 256  # whose scores are in float32 at once: they stay in the cache


class ItemSoftmax(torch.autograd.Function):
    """Keeps one [R, N] matrix between forward and backward: softmax less one-hot, which every gradient is a product with."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        low_states, low_rows = states.to(dtype), rows.to(dtype)
        errors = low_states @ low_rows.T  # [R, N]
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        for part in torch.arange(len(states), device=states.device).split(ROWS_AT_ONCE):
            scores = errors[part].float().add_(bias)
            wanted = targets[part, None]
            log_total = scores.logsumexp(1, keepdim=True)
            losses[part] = (log_total - scores.gather(1, wanted))[:, 0]
            probabilities = scores.sub_(log_total).exp_()
            errors[part] = probabilities.scatter_add_(1, wanted, -torch.ones_like(log_total)).to(dtype)
        ctx.save_for_backward(low_states, low_rows, errors)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, rows, errors = ctx.saved_tensors
        weights = gradient[:, None]
        for_states = (errors @ rows).float() * weights
        weighted = (states.float() * weights).to(states.dtype)
        for_rows = (errors.T @ weighted).float()
        for_bias = (errors.T @ weights.to(errors.dtype))[:, 0].float()  # a product of matrices sums in float32
        return for_states, for_rows, for_bias, None, None


def item_losses(states: Tensor, rows: Tensor, bias: Tensor, targets: Tensor, popularity: Tensor) -> Tensor:
    """float32 [R]: -log softmax(states · rowsᵀ + bias) at `targets`; in the autocast dtype where autocast is on.

    states: float32 [R, H]. rows: float32 [N, H]. bias: float32 [N]. targets: int64 [R]. popularity: float32 [N], shares that sum to 1.
    """
    assert states.ndim == rows.ndim == 2
    if len(rows) > MOST_SCORED:
        return sampled_item_losses(states, rows, bias, targets, popularity, SAMPLES)
    assert states.shape[1] == rows.shape[1], f"states {tuple(states.shape)}, rows {tuple(rows.shape)}"
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    return ItemSoftmax.apply(states, rows, bias, targets, dtype)


def sampled_item_losses(
    states: Tensor, rows: Tensor, bias: Tensor, targets: Tensor, popularity: Tensor, n_samples: int
) -> Tensor:
    """As `item_losses`, the other items' part of the softmax's sum estimated from `n_samples` draws: without bias, of the sum.

    Half of the draws are uniform, so that every item is pushed down where it does not belong.
    """
    proposal = UNIFORM_SHARE / len(rows) + (1 - UNIFORM_SHARE) * popularity
    drawn = torch.multinomial(proposal, n_samples, replacement=True)
    others = states @ rows[drawn].T + (bias[drawn] - (n_samples * proposal[drawn]).log())
    others = others.float().masked_fill(drawn == targets[:, None], -torch.inf)
    wanted = (states * rows[targets]).sum(1) + bias[targets]
    return torch.cat([wanted[:, None], others], dim=1).logsumexp(1) - wanted
