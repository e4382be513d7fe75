"""What RL maximises and on what it practises: objective, groups, rewards."""

from __future__ import annotations

from dataclasses import dataclass, field

from data.stage import InputError
from rl.groups import Draw
from rl.objectives import Objective
from rl.rewards import REWARDS


@dataclass
class ObjectiveConfig:
    objective: Objective = field(
        default="dr_grpo",
        metadata={
            "help": "grpo (arXiv 2402.03300), dr_grpo (2503.20783), dapo (2503.14476: set epsilon_high), gspo (2507.18071), ecpo "
            "(2506.13695), gbpo (2508.20900), or s_dpo (2406.09215: the taken item against the others of its group)."
        },
    )
    draw: Draw = field(
        default="gumbel",
        metadata={
            "help": "How a group is drawn: gumbel (distinct items, weighted), independent (may repeat), or beams (the most probable ones: "
            "no sample, so the gradient is biased)."
        },
    )
    importance_weights: bool = field(
        default=True,
        metadata={
            "help": "Weigh a group's items by how they were drawn, which makes the gradient that of the reward expected under π."
        },
    )
    inject_target: bool = field(
        default=False,
        metadata={"help": "Put the taken item into every group, weighted by its own probability (gumbel only)."},
    )
    rewards: list[str] = field(
        default_factory=lambda: ["exact_hit", "prefix_credit"],
        metadata={"help": f"Rewards that are added up, weighted by reward_weights: any of {', '.join(REWARDS)}."},
    )
    token_credit: float = field(
        default=0.0,
        metadata={"help": "Weight of a credit for every code: 1 up to the first wrong one, -1 for that, 0 behind it."},
    )
    kl_weight: float = field(
        default=0.0, metadata={"help": "Weight of the exact KL divergence to the SFT model at the codes drawn."}
    )
    anchor_weight: float = field(
        default=0.0, metadata={"help": "Weight of the SFT loss on the taken items, which protects the tail."}
    )
    s_dpo_beta: float = field(default=1.0, metadata={"help": "s_dpo: how strongly the model is held to the SFT model."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.rewards if name not in REWARDS]
        if unknown or not self.rewards:
            raise InputError(f"rewards has {unknown[0] if unknown else 'nothing'}; give any of {', '.join(REWARDS)}.")
        if self.inject_target and self.draw != "gumbel":
            raise InputError(f"inject_target needs draw=gumbel, not {self.draw}: other groups have no place for it.")
        if self.objective == "s_dpo" and not self.inject_target:
            raise InputError("objective=s_dpo compares the taken item with others; set inject_target to true.")
        for name in ("token_credit", "kl_weight", "anchor_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)} is negative; give 0 or more.")

    @property
    def needs_reference(self) -> bool:
        return self.kl_weight > 0 or self.objective == "s_dpo"
