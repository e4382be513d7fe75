"""The multi-layer perceptron of the trained quantizers, one per block of dimensions: their encoder and their decoder."""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.1  # of batch normalisation's running mean and variance: the share of the newest batch


class Mlp(nn.Module):
    """Linear, ReLU, …, Linear, separately for each block of input dimensions (one block: an ordinary perceptron).

    blocks: (in, out) dimensions of each block; hidden: sizes of the hidden layers, the same in every block; skip: add the input to
    the output (in must equal out): X + MLP(X); zero_start: with a skip, the last layer starts at zero, so that the module starts as the
    identity (else at random, as the others). batch_norm:
    between every Linear but the last and its ReLU; dropout: the share of each Linear's inputs that training sets to zero (both as in
    MiniOneRec's layers). A module that has learnt is used in eval() mode, where dropout does nothing.
    """

    def __init__(
        self,
        blocks: list[tuple[int, int]],
        hidden: list[int],
        skip: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
        zero_start: bool = True,
    ) -> None:
        super().__init__()
        assert not skip or all(width == out for width, out in blocks), f"a skip needs in = out, got {blocks}"
        self.blocks = [(int(width), int(out)) for width, out in blocks]
        self.hidden, self.skip, self.batch_norm, self.dropout = list(hidden), skip, batch_norm, dropout
        self.stacks = nn.ModuleList(self._stack([width, *hidden, out]) for width, out in self.blocks)
        if skip and zero_start:
            for _, last in self.ends():
                nn.init.zeros_(last.weight)

    def _stack(self, sizes: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width, out in itertools.pairwise(sizes):
            linear = nn.Linear(width, out)
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
            layers += [linear, *([nn.BatchNorm1d(out)] if self.batch_norm else []), nn.ReLU()]
        return nn.Sequential(*layers[: -2 if self.batch_norm else -1])

    def ends(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """The first and the last Linear of each block."""
        linears = [[layer for layer in stack.children() if isinstance(layer, nn.Linear)] for stack in self.stacks]
        return [(layers[0], layers[-1]) for layers in linears]

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them; without how it starts, and of dropout and batch norm what is on."""
        built: dict[str, Any] = {"blocks": [list(block) for block in self.blocks], "hidden": self.hidden}
        built |= {"skip": self.skip} | ({"batch_norm": True} if self.batch_norm else {})
        return built | ({"dropout": self.dropout} if self.dropout else {})

    def rescaled(self, gain_in: float, gain_out: float) -> Mlp:
        """A copy whose output is gain_out times this one's at gain_in times the input, to the bit where the gains are powers of two.

        It is in eval() mode. With a skip, the product of the gains must be 1.
        """
        assert not self.skip or gain_in * gain_out == 1
        copy = deepcopy(self).eval()
        with torch.no_grad():
            for first, last in copy.ends():
                first.weight.mul_(gain_in)
                last.weight.mul_(gain_out)
                last.bias.mul_(gain_out)
        return copy

    @torch.no_grad()
    def settle(self, x: Tensor) -> None:
        """Give batch normalisation the means and variances that rows x [n, sum of in] have, layer by layer, and nothing else."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm1d)]
        self.eval()  # no dropout
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        self(x)
        for norm in norms:
            norm.momentum = MOMENTUM
        self.train()

    def of_sum(self, parts: int) -> Mlp:
        """A copy that takes [n, parts · in], vectors side by side, and gives what this one gives for their sum. One block, no skip."""
        assert len(self.blocks) == 1
        assert not self.skip
        copy = deepcopy(self)
        (width, out) = self.blocks[0]
        copy.blocks = [(parts * width, out)]
        first, _ = copy.ends()[0]
        first.weight, first.in_features = nn.Parameter(first.weight.detach().repeat(1, parts)), parts * width
        return copy

    def forward(self, x: Tensor) -> Tensor:
        """[n, sum of in] to [n, sum of out]."""
        assert x.shape[1] == sum(width for width, _ in self.blocks), f"x is {tuple(x.shape)}, blocks are {self.blocks}"
        parts = x.split([width for width, _ in self.blocks], dim=1)
        out = torch.cat([stack(part) for stack, part in zip(self.stacks, parts, strict=True)], dim=1)
        return x + out if self.skip else out
