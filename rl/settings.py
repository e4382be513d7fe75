"""What RL is told: the run, the objective with its groups and rewards, the training, and which of it decides the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from sidrec.pipeline.errors import InputError
from sidrec.rl.groups import Draw
from sidrec.rl.objectives import Objective
from sidrec.rl.rewards import REWARDS
from sidrec.sft.precision import has_bf16

DECISIVE_FIELDS = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "num_iterations",
    "steps_per_generation",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "optim",
    "max_grad_norm",
    "reward_weights",
    "epsilon",
    "epsilon_high",
    "seed",
    "bf16",
    "eval_steps",
    "metric_for_best_model",
    "world_size",
)
# fields of TRL that this project has its own for
NOT_USED = {"loss_type": "objective", "scale_rewards": "objective", "beta": "kl_weight"}


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
        default=True,
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
        default=1.0, metadata={"help": "Weight of the SFT loss on the taken items, which protects the tail."}
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


@dataclass
class RlConfig:
    run_dir: Path = field(
        default=Path("outputs/demo"), metadata={"help": "Run directory; reads data/, sid/ and sft/ there, writes rl/."}
    )
    positions_per_user: int = field(
        default=5,
        metadata={"help": "Questions a user: their newest training items, each asked after what came before it."},
    )
    open_questions: bool = field(
        default=False,
        metadata={
            "help": "One question more a user: what is taken after all training interactions, which nothing in training knows; "
            "only history_score rewards its items, and needs them."
        },
    )
    valid_users: int = field(
        default=5000, metadata={"help": "Valid cases (at most) on which the checkpoint is chosen, drawn once."}
    )
    early_stopping_patience: int = field(
        default=4,
        metadata={
            "help": "Measurements in a row without a better one (metric_for_best_model) that end training; 0: none."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete what rl/ holds and train again."})


@dataclass
class SidGRPOConfig(GRPOConfig):
    """TRL's GRPOConfig with this project's defaults; the output folder is the run directory's `rl/checkpoints`."""

    per_device_train_batch_size: int = field(
        default=512, metadata={"help": "Rollouts a process and step: prompts times num_generations."}
    )
    num_generations: int = field(default=16, metadata={"help": "G, the distinct items drawn for each prompt."})
    max_steps: int = field(default=30, metadata={"help": "Updates."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or a share of all steps when below 1."})
    reward_weights: list[float] | None = field(
        default_factory=lambda: [1.0, 0.2], metadata={"help": "Weights of `rewards`, in their order."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Must be 1: the policy is what is served."})
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast; left out: on where the hardware has it."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing."}
    )
    activation_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to measure valid Recall@10."})
    eval_steps: float = field(default=10, metadata={"help": "Updates between two measurements."})
    eval_on_start: bool = field(default=True, metadata={"help": "Measure the SFT model first: it is a candidate too."})
    save_strategy: str = field(default="steps", metadata={"help": "When to write a checkpoint."})
    save_steps: float = field(default=10, metadata={"help": "Updates between two checkpoints; must equal eval_steps."})
    save_total_limit: int = field(default=1, metadata={"help": "Checkpoints kept beside the best one."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the checkpoint that is best on valid, by metric_for_best_model."}
    )
    metric_for_best_model: str = field(
        default="eval_kept_ndcg@10",
        metadata={
            "help": "eval_kept_ndcg@10: NDCG@10 where Recall@50 is not below the SFT model's; or eval_recall@10, eval_ndcg@10."
        },
    )
    greater_is_better: bool = field(default=True, metadata={"help": "More is better."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "A resumed run goes on counting for early stopping."}
    )
    logging_steps: float = field(default=5, metadata={"help": "Updates between two log lines."})
    report_to: str = field(default="none", metadata={"help": "none, tensorboard, trackio or wandb."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pinned memory for copies to a GPU."})
    seed: int = field(default=0, metadata={"help": "Seed of prompts' order and of the rollouts."})

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = has_bf16()
        self.per_device_eval_batch_size = self.num_generations  # TRL asks for it; `evaluate` does not use it
        super().__post_init__()


CONFIGS = (RlConfig, ObjectiveConfig, SidGRPOConfig)


def identity_of(config: RlConfig, objective: ObjectiveConfig, training: SidGRPOConfig) -> dict[str, Any]:
    """Every setting that decides the result."""
    fields = ("positions_per_user", "open_questions", "valid_users", "early_stopping_patience")
    identity = {name: getattr(config, name) for name in fields} | asdict(objective)
    return identity | {name: getattr(training, name) for name in DECISIVE_FIELDS}
