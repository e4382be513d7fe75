"""The rotation trick: gradients through a quantization turned and scaled as the vector itself was (arXiv 2410.06424)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

TINY = 1e-6


def rotate(z: Tensor, zq: Tensor) -> Tensor:
    """zq in value; the gradient with respect to z is that of the linear map that takes z to zq.

    With unit vectors u = z / ||z||, w = zq / ||zq|| and v = (u + w) / ||u + w||: R = I - 2 v v^T + 2 w u^T is the rotation of u to w,
    and the result is sg[||zq|| / ||z|| · R] z. z, zq: [n, e]; no gradient reaches zq.
    """
    assert z.shape == zq.shape
    with torch.no_grad():
        z_norm, zq_norm = z.norm(dim=1, keepdim=True), zq.norm(dim=1, keepdim=True)
        u, w = z / z_norm.clamp_min(TINY), zq / zq_norm.clamp_min(TINY)
        v = normalize(u + w, dim=1, eps=TINY)
        scale = zq_norm / z_norm.clamp_min(TINY)
    along_v, along_u = (z * v).sum(1, keepdim=True), (z * u).sum(1, keepdim=True)
    turned = scale * (z - 2 * along_v * v + 2 * along_u * w)
    return turned + (zq - turned).detach()  # the value is zq for rows of length 0, too
