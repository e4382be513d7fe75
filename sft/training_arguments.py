"""TRL's configuration of a trainer, from this project's settings of it."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments, get_scheduler
from trl import SFTConfig

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.precision import has_bf16
from sidrec.sft.settings import SftTrainerConfig
from sidrec.sft.trainer_config import TrainerConfig

Trainer = TypeVar("Trainer", bound=TrainerConfig)
Arguments = TypeVar("Arguments", bound=TrainingArguments)
TAKES_NOTHING = (
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)  # schedules; transformers drops what they are given
SAME_FOR_ALL: dict[str, Any] = {
    "greater_is_better": True,
    "restore_callback_states_from_checkpoint": True,
    "remove_unused_columns": False,
    "gradient_checkpointing": None,  # TRL's own default is the old name of activation_checkpointing, switched on
}


def with_hardware(training: Trainer) -> Trainer:
    """`training` with what this machine decides: bfloat16 where it is left out, and the CPU where there is no GPU.

    Raises InputError for what this machine or this launch does not have.
    """
    use_cpu = training.use_cpu or not torch.cuda.is_available()
    if training.fp16 and use_cpu:
        raise InputError("fp16 needs a GPU; leave it out.")
    if training.ddp_backend is not None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise InputError("ddp_backend says how several processes talk, and this is one; leave it out.")
    if training.report_to != "none" and find_spec(training.report_to) is None:
        raise InputError(
            f"report_to={training.report_to} needs the package {training.report_to}, which is not installed; install it, or leave it out."
        )
    bf16 = (has_bf16() and not training.fp16) if training.bf16 is None else training.bf16
    return replace(training, bf16=bf16, use_cpu=use_cpu)


def trl_arguments(kind: type[Arguments], training: TrainerConfig, output_dir: Path, **given: Any) -> Arguments:
    """`training` as TRL's `kind`. The hub's token is left out: TRL writes its configuration into files.

    given: fields of TRL that are not a user's to choose. Raises InputError for what transformers or TRL refuse.
    """
    refuse_bad_schedule(training)
    chosen = {field.name: getattr(training, field.name) for field in fields(training)}
    chosen |= {"hub_token": None, "push_to_hub": False, "load_best_model_at_end": training.eval_strategy != "no"}
    try:
        return kind(output_dir=str(output_dir), **SAME_FOR_ALL | chosen | given)
    except (ValueError, ImportError) as error:
        raise InputError(f"{' '.join(str(error).split())}; change the setting that it names.") from error


def refuse_bad_schedule(training: TrainerConfig) -> None:
    """Raise InputError for lr_scheduler_kwargs that the schedule does not take or lacks; it is tried on a few steps of nothing."""
    further = training.lr_scheduler_kwargs
    if further and training.lr_scheduler_type in TAKES_NOTHING:
        raise InputError(
            f"lr_scheduler_kwargs={further} has no effect on lr_scheduler_type={training.lr_scheduler_type}; leave it out."
        )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=training.learning_rate)
    try:
        schedule = get_scheduler(training.lr_scheduler_type, optimizer, 1, 4, scheduler_specific_kwargs=further)
        for _ in range(4):
            optimizer.step()
            schedule.step()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"lr_scheduler_kwargs={further} cannot be used by lr_scheduler_type={training.lr_scheduler_type} ({reason}); change one."
        ) from error


def sft_arguments(training: SftTrainerConfig, output_dir: Path) -> SFTConfig:
    """The configuration of TRL's SFTTrainer. The training set is made by this project, so TRL does not prepare it."""
    dataset = {"dataset_kwargs": {"skip_prepare_dataset": True}, "length_column_name": "length"}
    return trl_arguments(SFTConfig, training, output_dir, **dataset)
