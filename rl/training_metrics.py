"""What a look at training shows: figures of a batch's groups, and a picture of them over the steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidrec.decoding.trie import SidTrie
from sidrec.rl.prompts import NO_TARGET
from sidrec.rl.step_seconds import PARTS

PLACES = (1, 2, 5, 10)  # the target's place in its group is counted up to the next of these
PANELS = {
    "reward": ("reward",),
    "groups without a signal": ("zero_signal",),
    "the taken item's probability": ("target",),
    "questions with one above a half": ("solved",),
    "KL to the SFT model": ("kl/mean", "kl/max"),
    "entropy of a choice": ("entropy",),
    "mass on codes that do not exist": ("leaked_mass/1", "leaked_mass/2", "leaked_mass/3"),
    "seconds of an update": tuple(f"seconds/{part}" for part in PARTS),
    "valid": ("eval_ndcg@10", "eval_recall@10", "eval_recall@50"),
    "valid lists of ten": ("eval_coverage@10", "eval_evenness@10", "eval_diversity@10"),
}


def group_figures(rewards: Tensor, items: Tensor, targets: Tensor, trie: SidTrie) -> dict[str, float]:
    """Shares: of groups whose rewards are all equal (they teach nothing); of groups whose taken item is known those with it in them, by
    its place, and of their items those whose first d codes are the taken item's. NaN where no group's taken item is known.

    rewards: float32 [P, G]. items, targets: int64 [P, G], a group's items in the order in which they were drawn.
    """
    assert rewards.shape == items.shape == targets.shape
    figures = {"zero_signal": (rewards == rewards[:, :1]).all(1).float().mean().item()}
    known = targets[:, 0] != NO_TARGET
    items, targets = items[known], targets[known]
    hits = items == targets
    place = torch.where(hits.any(1), hits.int().argmax(1), -1)
    edges = [*(place_ - 1 for place_ in PLACES if place_ <= items.shape[1]), items.shape[1]]
    for first, end in pairwise(edges):
        inside = (place >= first) & (place < end)
        figures[f"target_place/{first + 1}-{end}"] = inside.float().mean().item()
    figures["target_place/none"] = (place < 0).float().mean().item()
    for depth in range(1, trie.n_levels + 1):
        node = trie.node_of_item[depth]
        figures[f"depth_accuracy/{depth}"] = (node[items] == node[targets]).float().mean().item()
    return figures


def draw_training(log: list[dict[str, Any]], path: Path) -> None:
    """Trainer's log as a PNG, a panel for each of PANELS that has been logged."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {title: [name for name in names if any(name in row for row in log)] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3), squeeze=False)
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            by_step = {row["step"]: row[name] for row in log if name in row}  # a resumed run measures a step once more
            axis.plot(list(by_step), list(by_step.values()), label=name.removeprefix("eval_"), marker=".")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        if len(names) > 1:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
