"""What SFT is told: the run, the training, and which of it decides the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from sidrec.decoding.policy import Normaliser
from sidrec.sft.backbone import BackboneConfig
from sidrec.sft.embedding_init import check_row_start
from sidrec.sft.precision import has_bf16
from sidrec.sft.tasks import TaskConfig
from sidrec.sft.weights import WeightsConfig

# the fields of the training configuration that decide the result: another value means another model
DECISIVE_FIELDS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "seed",
    "bf16",
    "optim",
    "train_sampling_strategy",
    "eval_strategy",
    "eval_steps",
    "metric_for_best_model",
    "world_size",
)
# the same of SftConfig
IDENTITY_FIELDS = (
    "max_items",
    "valid_users",
    "row_start",
    "normaliser",
    "chat_template",
    "early_stopping_patience",
)


@dataclass
class SftConfig:
    run_dir: Path = field(
        default=Path("outputs/demo"), metadata={"help": "Run directory; reads data/ and sid/ there, writes sft/."}
    )
    max_items: int = field(
        default=200,
        metadata={
            "help": "Context in items; longer histories are cut into overlapping windows, and the newest items are kept."
        },
    )
    valid_users: int = field(
        default=500,
        metadata={"help": "Valid cases (at most) on which Recall@10 is measured during training, drawn once."},
    )
    row_start: str = field(
        default="codebook+text",
        metadata={
            "help": "Where the SID tokens' rows start from: `codebook` (the code vectors), `text` (the words of the items under a code), "
            "`codebook+text` (both; for a model made from scratch, which knows no words, `codebook`), or `mean` (of the old rows)."
        },
    )
    normaliser: Normaliser = field(
        default="children",
        metadata={
            "help": "What a code's probability is normalised over, in training and in ranking: the codes that exist under its prefix "
            "(children), all codes of its level (level), or the whole vocabulary (full), as usual for language models."
        },
    )
    chat_template: bool = field(
        default=False,
        metadata={"help": "Put every example into the model's chat template, as the assistant's answer to a question."},
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Measurements in a row without a better one (metric_for_best_model) that end training; 0: none."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete what sft/ holds and train again."})

    def __post_init__(self) -> None:
        check_row_start(self.row_start)


@dataclass
class SidTrainingConfig(SFTConfig):
    """TRL's SFTConfig with this project's defaults; the output folder is the run directory's `sft/checkpoints`."""

    per_device_train_batch_size: int = field(default=8, metadata={"help": "Histories a process and step."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over all histories."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warm-up: steps, or a share of all steps when below 1."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Decoupled weight decay on matrices."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second-moment decay."})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Gradient norm above which the gradient is scaled down."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast; left out: on where the hardware has it."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing."}
    )
    activation_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Batches of similar length."})
    length_column_name: str = field(default="length", metadata={"help": "Column with a row's length."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure valid Recall@10: epoch or steps."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to write a checkpoint; must equal eval_strategy."}
    )
    save_total_limit: int = field(default=1, metadata={"help": "Checkpoints kept beside the best one."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the checkpoint of best valid Recall@10."}
    )
    metric_for_best_model: str = field(default="eval_recall@10", metadata={"help": "eval_recall@10 or eval_ndcg@10."})
    greater_is_better: bool = field(default=True, metadata={"help": "More Recall is better."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "A resumed run goes on counting for early stopping."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log lines."})
    report_to: str = field(default="none", metadata={"help": "none, tensorboard, trackio or wandb."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs all columns."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pinned memory for copies to a GPU."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order and dropout."})

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = has_bf16()
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        super().__post_init__()


CONFIGS = (SftConfig, TaskConfig, BackboneConfig, WeightsConfig, SidTrainingConfig)


def identity_of(
    config: SftConfig,
    tasks: TaskConfig,
    backbone: BackboneConfig,
    weights: WeightsConfig,
    training: SidTrainingConfig,
) -> dict[str, Any]:
    """Every setting that decides the result."""
    identity = {name: getattr(config, name) for name in IDENTITY_FIELDS}
    identity |= asdict(tasks) | asdict(backbone) | asdict(weights)
    return identity | {name: getattr(training, name) for name in DECISIVE_FIELDS}
