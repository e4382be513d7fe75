"""The multi-layer perceptron of the trained quantizers, one per block of dimensions: their encoder and their decoder."""

from __future__ import annotations

import itertools
from copy import deepcopy

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, ReLU, …, Linear, separately for each block of input dimensions (one block: an ordinary perceptron).

    blocks: (in, out) dimensions of each block; hidden: sizes of the hidden layers, the same in every block; skip: add the input to
    the output (in must equal out) and start the last layer at zero, so that the module starts as the identity: X + MLP(X).
    """

    def __init__(self, blocks: list[tuple[int, int]], hidden: list[int], skip: bool = False) -> None:
        super().__init__()
        assert not skip or all(width == out for width, out in blocks), f"a skip needs in = out, got {blocks}"
        self.blocks = [(int(width), int(out)) for width, out in blocks]
        self.hidden, self.skip = list(hidden), skip
        self.stacks = nn.ModuleList(self._stack([width, *hidden, out]) for width, out in self.blocks)
        if skip:
            for stack in self.stacks:
                nn.init.zeros_(stack[-1].weight)  # type: ignore[index]

    @staticmethod
    def _stack(sizes: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width, out in itertools.pairwise(sizes):
            linear = nn.Linear(width, out)
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def settings(self) -> dict[str, list[list[int]] | list[int] | bool]:
        """The constructor's arguments, as JSON can hold them."""
        return {"blocks": [list(block) for block in self.blocks], "hidden": self.hidden, "skip": self.skip}

    def rescaled(self, gain_in: float, gain_out: float) -> Mlp:
        """A copy whose output is gain_out times this one's at gain_in times the input, to the bit where the gains are powers of two.

        With a skip, the product of the gains must be 1.
        """
        assert not self.skip or gain_in * gain_out == 1
        copy = deepcopy(self)
        with torch.no_grad():
            for stack in copy.stacks:
                stack[0].weight *= gain_in  # type: ignore[index]
                stack[-1].weight *= gain_out  # type: ignore[index]
                stack[-1].bias *= gain_out  # type: ignore[index]
        return copy

    def of_sum(self, parts: int) -> Mlp:
        """A copy that takes [n, parts · in], vectors side by side, and gives what this one gives for their sum. One block, no skip."""
        assert len(self.blocks) == 1
        assert not self.skip
        copy = deepcopy(self)
        (width, out) = self.blocks[0]
        copy.blocks = [(parts * width, out)]
        first = copy.stacks[0][0]  # type: ignore[index]
        first.weight, first.in_features = nn.Parameter(first.weight.detach().repeat(1, parts)), parts * width
        return copy

    def forward(self, x: Tensor) -> Tensor:
        """[n, sum of in] to [n, sum of out]."""
        assert x.shape[1] == sum(width for width, _ in self.blocks), f"x is {tuple(x.shape)}, blocks are {self.blocks}"
        parts = x.split([width for width, _ in self.blocks], dim=1)
        out = torch.cat([stack(part) for stack, part in zip(self.stacks, parts, strict=True)], dim=1)
        return x + out if self.skip else out
