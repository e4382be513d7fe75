"""Three losses of a next-item model whose score of item i is h · e_i, and the items drawn for two of them.

h: hidden states [positions, dim]; items: the embeddings e [N, dim]; targets: the items that came next, int64 [positions]. Each
loss is a mean over positions. Run under autocast, the large products are in its type; the rest is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PAD = -1


def softmax_loss(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """-log softmax of the target over the whole catalogue."""
    return functional.cross_entropy((hidden @ items.T).float(), targets)


def bce_loss(hidden: Tensor, items: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """SASRec's own loss (arXiv 1808.09781): -log σ(s⁺) - log(1 - σ(s⁻)), one negative a position. negatives: int64 [positions]."""
    assert negatives.shape == targets.shape
    positive, negative = target_scores(hidden, items, targets), target_scores(hidden, items, negatives)
    return (functional.softplus(-positive) + functional.softplus(negative)).mean()


def sampled_softmax_loss(hidden: Tensor, items: Tensor, targets: Tensor, negatives: Tensor, proposal: Tensor) -> Tensor:
    """Softmax over the target and M items drawn from a proposal q, shared by all positions, with the logQ correction.

    -s⁺ + log(exp s⁺ + Σ_k [j_k ≠ target] exp(s_{j_k} - log(M q_{j_k}))), j_1 … j_M drawn with replacement. The sum is an unbiased
    estimate of Σ_{j ≠ target} exp s_j, so the loss tends to `softmax_loss` as M grows. The target is not drawn but always
    there, so its own score is not corrected (arXiv 2507.09331). negatives: int64 [M]; proposal: q, float [N], sums to 1.
    """
    assert negatives.dim() == 1
    assert proposal.shape == (len(items),)
    scores = (hidden @ items[negatives].T).float() - torch.log(len(negatives) * proposal[negatives])  # [positions, M]
    scores = scores.masked_fill(negatives == targets[:, None], -torch.inf)
    positive = target_scores(hidden, items, targets)
    logits = torch.cat([positive[:, None], scores], dim=1)
    return functional.cross_entropy(logits, torch.zeros_like(targets))


def target_scores(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """s = h · e of one item a position, float32 [positions]."""
    return (hidden.float() * items[targets].float()).sum(dim=-1)


def popularity_proposal(counts: Tensor) -> Tensor:
    """q of `sampled_softmax_loss`: half by training count, half uniform, so that no item is out of reach. Float32 [N]."""
    counts = counts.float()
    return 0.5 * counts / counts.sum() + 0.5 / len(counts)


def draw_outside(rows: Tensor, n_items: int) -> Tensor:
    """An item for each entry of a row, uniform over the items that are not in the row, as SASRec's paper draws its negatives.

    rows: int64 [B, T], PAD on the right. Returns int64 [B, T]. In a row that holds the whole catalogue, an entry's item is any
    but its own.
    """
    assert n_items > 1
    ordered = rows.sort(dim=1).values
    is_new = ordered != PAD
    is_new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    distinct = is_new.sum(dim=1, keepdim=True)
    # the i-th smallest of the row's items (from 0), item u, has u - i items outside the row before it
    outside_before = torch.where(is_new, ordered - (is_new.cumsum(dim=1) - 1), n_items).sort(dim=1).values
    uniform = torch.rand(rows.shape, dtype=torch.float64, device=rows.device)
    place = (uniform * (n_items - distinct)).long()
    drawn = place + torch.searchsorted(outside_before, place, right=True)
    other = (uniform * (n_items - 1)).long()
    return torch.where(distinct < n_items, drawn, other + (other >= rows))
