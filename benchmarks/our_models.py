"""Our models as the table of results trains them: what their semantic IDs are made from, and each data set's flags."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.harness import RL, SFT, TOKENIZE


@dataclass(frozen=True)
class Ours:
    """tokenizer: flags that say what the semantic IDs are made from. models: of `sidrec evaluate`, by the name of their row."""

    tokenizer: str
    models: dict[str, str]


OURS = {
    "random": Ours("--quantizer random", {"sft": "SFT, random codes"}),
    "text": Ours("--sources text --weights 1.0", {"sft": "SFT, text"}),
    "collaborative": Ours("--sources collaborative --weights 1.0", {"sft": "SFT, collaborative"}),
    "both": Ours(
        "",  # as the data set's config says
        {
            "sft": "SFT, both",
            "rl": "SFT + RL, both",
            "sft_blend": "SFT, blended",
            "rl_blend": "SFT + RL, blended",
            "sft_ensemble": "SFT, ensemble of the seeds, blended",
        },
    ),
}


@dataclass(frozen=True)
class Plan:
    """Flags of a data set's stages. minutes: most of one training of a neural baseline, more than it needs. valid_cases: most that rows
    are measured on, 0 for all. rl: None where RL is left out of the table (`benchmarks.rl_gain` measures it)."""

    tokenizer: str
    sft: str
    rl: str | None
    minutes: int
    valid_cases: int = 0


PLANS = {
    "ml-100k": Plan(
        tokenizer="--config configs/tokenizer/ml-100k.yaml",
        sft="--config configs/sft/ml-100k.yaml",
        rl="--config configs/rl/ml-100k.yaml",
        minutes=60,
    ),
    "amazon-beauty": Plan(
        tokenizer="--config configs/tokenizer/amazon-beauty.yaml",
        sft="--config configs/sft/amazon-beauty.yaml",
        rl=None,
        minutes=240,
        valid_cases=4000,
    ),
    "ml-1m": Plan(
        tokenizer="--config configs/tokenizer/ml-1m.yaml",
        sft="--config configs/sft/ml-1m.yaml",
        rl=None,
        minutes=240,
    ),
}


def training_commands(plan: Plan, ours: Ours, models: Iterable[str], seed: int) -> list[list[str]]:
    """The stages that one of our runs is made by, before it is measured."""
    seeded = ["--seed", str(seed)]
    tokenizer = [*shlex.split(f"{plan.tokenizer} {ours.tokenizer}"), *seeded]
    quiet = ["--disable_tqdm", "true", *seeded]
    commands = [[*TOKENIZE, *tokenizer], [*SFT, *shlex.split(plan.sft), *quiet]]
    if plan.rl is not None and "rl" in models:
        commands.append([*RL, *shlex.split(plan.rl), *quiet])
    return commands
