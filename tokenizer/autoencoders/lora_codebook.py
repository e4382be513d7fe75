"""Codebooks with a low-rank part that all sources share: C_l^m = base_l^m + A_l B_l^m, for level l and source m.

A source (text, co-occurrence, …) has its own encoder and decoder, and e_m numbers of the latent vector: z = [z^1, …, z^M] [e]. Code k of
level l stands for C_l[k] = [C_l^1[k], …, C_l^M[k]], and one code is chosen for all sources together, on the fused latent:

    code_l = argmin_k sum_m ||r_l^m - C_l^m[k]||^2 = argmin_k ||r_l - C_l[k]||^2

so an item has one semantic ID, and the codebooks are additive as all others. A_l [K_l, r] belongs to the code and is the same for every
source (with share_a = all, for every level too); B_l^m [r, e_m] belongs to level and source. Side by side, B_l = [B_l^1, …, B_l^M] [r, e].
A starts small and random, B at 0: at first C = base. There is no scale beside A B (alpha / r is 1).

With a trainable base, A B adds no vector that base alone could not be; it moves all codes of a level together (dC = A dB), as in SimVQ
(arXiv 2411.02038). With a frozen base it is all that is learnt.

Penalties of a level, each times its weight, all times `layer0_multiplier` on level 0:
    L2              R(A^2) + R(B^2), R the mean over entries, or their sum
    orthogonality   R((A^T A - I)^2)
    relative        mean over sources of max(0, ||A B^m|| / ||base^m|| - limit)
L2 is of what is learnt (with inherit_levels, the differences between levels); an A that all levels share counts once, with level 0. As
sums, beside a reconstruction loss that is a mean, L2 pulls A and B to 0 before they have learnt anything: the low-rank part is then off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from sidrec.tokenizer.autoencoders.dead_codes import dead_codes, new_places

if TYPE_CHECKING:
    from sidrec.tokenizer.quantizers.lora import Lora

START = 0.02  # standard deviation of A at the start


class LoraCodebook(nn.Module):
    """One level's vectors [K, e] = base + A B, for all sources side by side.

    start: [K, e], the base at the start; blocks: e_m of each source; before: the level before this one, None for level 0.
    """

    counts: Tensor

    def __init__(
        self,
        start: Tensor,
        blocks: list[int],
        settings: Lora,
        before: LoraCodebook | None = None,
    ) -> None:
        super().__init__()
        K, e = start.shape
        assert sum(blocks) == e, f"blocks {blocks} do not make up {e} numbers"
        self.blocks, self.settings, self.is_first = list(blocks), settings, before is None
        self.base = nn.Parameter(start.clone(), requires_grad=settings.base == "trainable")
        self.inherits_a = settings.inherit_levels and settings.share_a == "sources" and before is not None
        self.inherits_b = settings.inherit_levels and before is not None
        self.before = [before]  # in a list: its parameters are its own, not this module's
        self.owns_a = settings.share_a == "sources" or before is None
        if self.owns_a:
            random = START * torch.randn(K, settings.rank)
            self.a_learnt = nn.Parameter(torch.zeros_like(random) if self.inherits_a else random)
        self.b_learnt = nn.Parameter(torch.zeros(settings.rank, e))
        if settings.condition_on_previous and before is not None:
            rows = len(before.base) if settings.condition_form == "one_hot" else e
            self.condition = nn.Parameter(torch.zeros(rows, e))  # T, or W
        self.register_buffer("counts", torch.zeros(K))  # rows coded by each code since the last `revive`

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """Take `vectors` [K, e] as the base, before the first step, when A B is 0."""
        self.base.copy_(vectors)

    def a(self) -> Tensor:
        """A_l, [K, r]."""
        before = self.before[0]
        if before is None:
            return self.a_learnt
        if not self.owns_a:
            return before.a()
        return before.a() + self.a_learnt if self.inherits_a else self.a_learnt

    def b(self) -> Tensor:
        """B_l of all sources, [r, e]."""
        before = self.before[0]
        return before.b() + self.b_learnt if self.inherits_b and before is not None else self.b_learnt

    def vectors(self) -> Tensor:
        """[K, e]."""
        return self.base + self.a() @ self.b()

    def offset(self, previous: Tensor, shares: Tensor) -> Tensor:
        """What the level before tells this one: W C_{l-1}[p], [n, e], for rows C_{l-1}[p] [n, e], which get no gradient from it.

        This level codes r + W C_{l-1}[p] with C_l, which is to code r with C_l[k] - W C_{l-1}[p]. (Residuals coded given the codes before:
        QINCo, arXiv 2401.14732; here linear.) With `condition_form` one_hot it is T[p], row p of a table [K_{l-1}, e]; of mixtures, the
        same mixture of rows. shares: p, int64 [n], or the mixtures, [n, K_{l-1}].
        """
        if self.settings.condition_form == "vector":
            return previous.detach() @ self.condition.T
        return shares.detach() @ self.condition if shares.is_floating_point() else embedding(shares, self.condition)

    def penalty(self) -> Tensor:
        """What the loss adds for this level, a scalar; see the module's docstring."""
        settings = self.settings
        reduce = torch.sum if settings.penalty_reduction == "sum" else torch.mean
        l2 = reduce(self.b_learnt.square())
        orthogonality = l2.new_zeros(())
        if self.owns_a:
            l2 = l2 + reduce(self.a_learnt.square())
            a = self.a()
            orthogonality = reduce((a.T @ a - torch.eye(a.shape[1], device=a.device)).square())
        relative = torch.relu(self.shares() - settings.relative_limit).mean()
        total = (
            settings.l2_weight * l2
            + settings.orthogonality_weight * orthogonality
            + settings.relative_weight * relative
        )
        return settings.layer0_multiplier * total if self.is_first else total

    @torch.no_grad()
    def observe(self, residuals: Tensor, codes: Tensor) -> None:
        """Count the codes of a step. residuals: [n, e]; codes: int64 [n]."""
        self.counts += torch.bincount(codes, minlength=len(self.counts))

    @torch.no_grad()
    def revive(self, residuals: Tensor, share: float, rng: np.random.Generator, iterations: int = 0) -> int:
        """Move codes used less than `share` of an equal use, since the last call, to `new_places` among residuals [n, e].

        Their base moves, by what A B leaves to it. iterations: of k-means there. Returns how many.
        """
        dead = dead_codes(self.counts, share * self.counts.mean(), len(residuals))
        places = new_places(residuals, self.vectors()[~dead], int(dead.sum()), rng, iterations)
        self.base[dead] = places - (self.a() @ self.b())[dead]
        self.counts.zero_()
        return len(places)

    def shares(self) -> Tensor:
        """||A B^m|| / ||base^m|| of each source, [M], Frobenius norms."""
        low_rank = (self.a() @ self.b()).split(self.blocks, dim=1)
        base = self.base.detach().split(self.blocks, dim=1)
        tiny = torch.finfo(self.base.dtype).tiny
        return torch.stack([part.norm() / of.norm().clamp_min(tiny) for part, of in zip(low_rank, base, strict=True)])
