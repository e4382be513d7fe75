"""TRL's configuration of the GRPO trainer, from this project's settings of it."""

from __future__ import annotations

from pathlib import Path

from trl import GRPOConfig

from sidrec.rl.settings import RlTrainerConfig
from sidrec.sft.training_arguments import trl_arguments


def grpo_arguments(training: RlTrainerConfig, output_dir: Path) -> GRPOConfig:
    """The configuration of TRL's GRPOTrainer."""
    evaluation = {
        "per_device_eval_batch_size": training.num_generations
    }  # TRL asks for whole groups; `evaluate` does not use it
    return trl_arguments(GRPOConfig, training, output_dir, **evaluation)
