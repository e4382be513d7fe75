"""Settings of a training run that SFT and RL share: the fields of TRL's trainers that these stages honour, and why the others are refused.

Nothing here imports torch: `--help` and a mistake in a flag are answered at once. `sft/training_arguments.py` makes TRL's own configuration
from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sidrec.pipeline.errors import InputError

METRICS = ("eval_recall@10", "eval_ndcg@10", "eval_recall@50")
AT_LEAST = {  # the smallest value of each number; none may be infinite or NaN
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "max_grad_norm": 0,
    "save_total_limit": 1,
    "torch_empty_cache_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "ddp_timeout": 1,
}
ABOVE_ZERO = ("num_train_epochs", "eval_steps", "save_steps", "logging_steps")
UNDECISIVE = (  # where training runs, what it prints and where copies go; everything else decides the model
    "use_cpu",
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "logging_nan_inf_filter",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "save_total_limit",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
    "hub_private_repo",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "torch_empty_cache_steps",
    "ddp_backend",
    "ddp_timeout",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
)


@dataclass
class TrainerConfig:
    """What SFT and RL both pass to their trainer. max_steps: -1 for `num_train_epochs` passes."""

    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows a process and step."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches whose gradients are added up before a step.", "rare": True}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over all rows; max_steps wins."})
    max_steps: int = field(default=-1, metadata={"help": "Steps; -1: as many as num_train_epochs takes."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = field(default="cosine", metadata={"help": "Learning-rate schedule.", "rare": True})
    lr_scheduler_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": 'Further arguments of the schedule, as JSON: {"min_lr": 1e-5} of cosine_with_min_lr.',
            "rare": True,
        },
    )
    warmup_steps: float = field(
        default=0.0, metadata={"help": "Warm-up: steps, or a share of all steps when below 1.", "rare": True}
    )
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"] = field(
        default="adamw_torch_fused", metadata={"help": "Optimizer.", "rare": True}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Decoupled weight decay on matrices.", "rare": True})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's first-moment decay.", "rare": True})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW's second-moment decay.", "rare": True})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW's epsilon.", "rare": True})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Gradient norm above which the gradient is scaled down; 0: never.", "rare": True}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast; left out: on where the hardware has it.", "rare": True}
    )
    fp16: bool = field(default=False, metadata={"help": "float16 autocast, for GPUs without bfloat16.", "rare": True})
    tf32: bool | None = field(
        default=None, metadata={"help": "TensorFloat-32 products on GPUs that have them.", "rare": True}
    )
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations to save memory.", "rare": True}
    )
    eval_strategy: Literal["steps", "epoch", "no"] = field(
        default="steps", metadata={"help": "When to measure valid Recall@10: every eval_steps steps, or every epoch."}
    )
    eval_steps: float | None = field(
        default=None,
        metadata={"help": "eval_strategy=steps: steps between two measurements, or a share of all steps when below 1."},
    )
    eval_on_start: bool = field(
        default=False, metadata={"help": "Measure the model before its first step, too.", "rare": True}
    )
    save_strategy: Literal["steps", "epoch", "best"] = field(
        default="steps", metadata={"help": "When to write a checkpoint; must equal eval_strategy.", "rare": True}
    )
    save_steps: float = field(
        default=500,
        metadata={"help": "save_strategy=steps: steps between checkpoints; must equal eval_steps.", "rare": True},
    )
    save_total_limit: int | None = field(
        default=1, metadata={"help": "Checkpoints kept beside the best one while training runs.", "rare": True}
    )
    metric_for_best_model: str = field(default="eval_recall@10", metadata={"help": "What chooses the checkpoint."})
    logging_strategy: Literal["steps", "epoch", "no"] = field(
        default="steps", metadata={"help": "When to write figures to log.txt.", "rare": True}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two entries of log.txt.", "rare": True})
    logging_first_step: bool = field(
        default=False, metadata={"help": "An entry for the first step, too.", "rare": True}
    )
    logging_nan_inf_filter: bool = field(
        default=True, metadata={"help": "Leave NaN and infinite losses out of the logged mean.", "rare": True}
    )
    disable_tqdm: bool | None = field(default=None, metadata={"help": "true: no live bar.", "rare": True})
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = field(
        default="none", metadata={"help": "Where measurements are shown as well.", "rare": True}
    )
    run_name: str | None = field(default=None, metadata={"help": "The run's name for report_to.", "rare": True})
    project: str = field(default="huggingface", metadata={"help": "trackio: the project's name.", "rare": True})
    trackio_space_id: str | None = field(
        default=None, metadata={"help": "trackio: the Space that shows the run.", "rare": True}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Upload the finished folder to the Hugging Face Hub.", "rare": True}
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "push_to_hub: NAME or OWNER/NAME.", "rare": True})
    hub_token: str | None = field(
        default=None, metadata={"help": "push_to_hub: a token; left out: the one that is logged in.", "rare": True}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "push_to_hub: whether the repository is private; left out: yes.", "rare": True}
    )
    full_determinism: bool = field(
        default=False, metadata={"help": "Deterministic GPU kernels, which are slower.", "rare": True}
    )
    seed: int = field(default=0, metadata={"help": "Seed of all that is drawn."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave the GPU alone.", "rare": True})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that prepare batches.", "rare": True})
    dataloader_pin_memory: bool = field(
        default=False, metadata={"help": "Pinned memory for copies to a GPU.", "rare": True}
    )
    dataloader_prefetch_factor: int | None = field(
        default=None, metadata={"help": "Batches that each of these processes prepares ahead.", "rare": True}
    )
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = field(
        default=None, metadata={"help": "How these processes are started.", "rare": True}
    )
    torch_empty_cache_steps: int | None = field(
        default=None, metadata={"help": "Steps between two emptyings of the GPU's cache.", "rare": True}
    )
    ddp_backend: Literal["nccl", "gloo"] | None = field(
        default=None, metadata={"help": "How several processes talk; left out: nccl on GPUs.", "rare": True}
    )
    ddp_timeout: int = field(default=1800, metadata={"help": "Seconds a process waits for the others.", "rare": True})
    ddp_bucket_cap_mb: int | None = field(
        default=None, metadata={"help": "Megabytes of gradients that are sent at once.", "rare": True}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=None, metadata={"help": "Look for weights without a gradient at each step.", "rare": True}
    )

    def __post_init__(self) -> None:
        refuse_bad_numbers(self, AT_LEAST, ABOVE_ZERO)
        if self.max_steps != -1 and self.max_steps < 1:
            raise InputError(f"max_steps={self.max_steps} trains nothing; give 1 or more, or -1 for num_train_epochs.")
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name}={getattr(self, name)} is no decay; give 0 or more, and less than 1.")
        if self.bf16 and self.fp16:
            raise InputError("bf16 and fp16 are both true; set one of them.")
        if self.dataloader_num_workers == 0 and self.dataloader_prefetch_factor is not None:
            raise InputError("dataloader_prefetch_factor needs dataloader_num_workers of 1 or more; leave it out.")
        refuse_unsaved_measurements(self)


def refuse_bad_numbers(config: Any, at_least: Mapping[str, float], above_zero: tuple[str, ...] = ()) -> None:
    """Raise InputError for a number of `config` that is NaN, infinite or too small. Fields that are None are left out."""
    for name in (*at_least, *above_zero):
        value = getattr(config, name)
        if value is None:
            continue
        least = at_least.get(name)
        if math.isfinite(value) and (value > 0 if least is None else value >= least):
            continue
        wanted = "a number above 0" if least is None else f"{least:g} or more"
        what = "is negative" if value < 0 else "cannot be"
        raise InputError(f"{name}={value} {what}; give {wanted}.")


def refuse_unsaved_measurements(config: TrainerConfig) -> None:
    """Raise InputError when a model would be measured and not saved: it might be the best, and could not be kept."""
    if config.eval_strategy == "no":
        if config.save_strategy == "best":
            raise InputError("save_strategy=best needs measurements, and eval_strategy=no makes none; change one.")
        return
    if config.save_strategy not in (config.eval_strategy, "best"):
        raise InputError(
            f"save_strategy={config.save_strategy} is not eval_strategy={config.eval_strategy}: a model that is measured but not saved "
            "cannot be chosen; make them equal."
        )
    if config.eval_strategy == "epoch" or config.save_strategy == "best":
        return
    eval_steps = config.logging_steps if config.eval_steps is None else config.eval_steps
    if config.save_steps != eval_steps:
        raise InputError(
            f"save_steps={config.save_steps:g} is not eval_steps={eval_steps:g}: "
            "a model that is measured but not saved cannot be chosen; make them equal."
        )


def metric_named(name: str, known: tuple[str, ...] = METRICS) -> str:
    """`name` with its `eval_`. Raises InputError when it is none of `known`."""
    metric = f"eval_{name.removeprefix('eval_')}"
    if metric not in known:
        raise InputError(f"metric_for_best_model={name} is not measured here; give one of {', '.join(known)}.")
    return metric


def refuse_early_stopping_below_zero(patience: int) -> None:
    if patience < 0:
        raise InputError(
            f"early_stopping_patience={patience} is negative; give a number of evaluations, or 0 for none."
        )


def _all_because(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


REFUSED = {
    "output_dir": "a stage writes into its folder of the run directory; set --run_dir",
    **_all_because(
        "validation recommends for the valid cases and does not average a loss",
        "per_device_eval_batch_size",
        "prediction_loss_only",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_accumulation_steps",
        "include_for_metrics",
        "batch_eval_metrics",
        "label_names",
    ),
    **_all_because("validation is in float32, as the saved model is", "bf16_full_eval", "fp16_full_eval"),
    "eval_delay": "every saved checkpoint is measured, so that the best can be chosen",
    "load_best_model_at_end": "the best checkpoint is always the one that is kept",
    "greater_is_better": "Recall and NDCG are better when they are higher",
    **_all_because(
        "an interrupted run goes on from its last whole checkpoint by itself, and trains the same model",
        "resume_from_checkpoint",
        "ignore_data_skip",
        "save_only_model",
        "restore_callback_states_from_checkpoint",
        "enable_jit_checkpoint",
    ),
    "save_on_each_node": "all hosts see one run directory",
    **_all_because("the folder is uploaded once, at the end", "hub_strategy", "hub_always_push", "hub_revision"),
    **_all_because(
        "accelerate sets what processes share; use `accelerate launch --config_file configs/accelerate/zero2.yaml` or another",
        "deepspeed",
        "fsdp",
        "fsdp_config",
        "accelerator_config",
        "parallelism_config",
        "local_rank",
        "ddp_static_graph",
        "ddp_broadcast_buffers",
    ),
    **_all_because(
        "the loss is this project's own, a mean over the answers of all processes",
        "label_smoothing_factor",
        "average_tokens_across_devices",
        "router_aux_loss_coef",
        "use_liger_kernel",
        "liger_kernel_config",
    ),
    **_all_because(
        "models are not compiled: the shape of a batch changes from step to step",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
    ),
    **_all_because(
        "it is the old name of activation_checkpointing", "gradient_checkpointing", "gradient_checkpointing_kwargs"
    ),
    "activation_checkpointing_kwargs": "activations are recomputed in one way, without reentrance",
    "use_cache": "keys and values are not kept while training",
    "auto_find_batch_size": "the batch size decides the model; lower per_device_train_batch_size yourself",
    **_all_because("the optimizers here have no such arguments", "optim_args", "optim_target_modules"),
    **_all_because(
        "every row of the training data is used in every pass, in an order that the seed decides",
        "dataloader_drop_last",
        "dataloader_in_order",
        "dataloader_persistent_workers",
        "data_seed",
    ),
    **_all_because(
        "the columns of the training data are the stage's own",
        "remove_unused_columns",
        "length_column_name",
    ),
    **_all_because(
        "the first process writes what matters to the screen and the rest to log.txt",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "include_num_input_tokens_seen",
        "skip_memory_metrics",
        "debug",
    ),
    **_all_because("no tool here reads it", "trackio_bucket_id", "trackio_static_space_id"),
    **_all_because("the stage trains, validates and saves", "do_train", "do_eval", "do_predict"),
    **_all_because(
        "the stage loads the model itself, and runs no code that comes with it; set model_name_or_path for SFT",
        "model_init_kwargs",
        "trust_remote_code",
    ),
    "pad_to_multiple_of": "batches are as long as their longest row",
}
