"""Stage 2: put the SID tokens into a language model's vocabulary and fine-tune it to write the next item.

accelerate launch sft/train.py --config configs/sft/demo.yaml --run_dir outputs/demo
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from data.config import parse_configs
from data.dataset import Dataset
from data.stage import InputError, Stage, run_as_command
from decoding.output_head import causal_model
from decoding.policy import Normaliser, SidVocabulary
from decoding.renderer import Renderer
from decoding.trie import SidTrie
from sft.artefact import complete_folder
from sft.backbone import BackboneConfig, add_dropout, load_backbone
from sft.checkpoints import last_whole_checkpoint, refuse_unsaved_measurements
from sft.early_stopping import early_stopping
from sft.estimate import ModelShape, announce_estimate
from sft.examples import ExampleCollator, ExampleRenderer, chat_openings, token_ids
from sft.hub import HubRepository
from sft.precision import has_bf16
from sft.processes import begin_stage, finished_already, refuse_fewer_processes_than_asked
from sft.row_starts import check_row_start, row_start_for
from sft.tasks import TaskConfig, task_rows
from sft.trainer import SidSFTTrainer
from sft.validation import sample_cases
from sft.vocabulary import add_sid_tokens
from sft.weights import WeightsConfig, merge, with_adapters
from sft.whole_model import refuse_adapters_in_parts
from tokenizer.semantic_ids import SemanticIds

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


def main() -> None:
    refuse_fewer_processes_than_asked()
    config, tasks, backbone, weights, training = parse_configs(CONFIGS)
    identity = {name: getattr(config, name) for name in IDENTITY_FIELDS}
    identity |= asdict(tasks) | asdict(backbone) | asdict(weights)
    identity |= {name: getattr(training, name) for name in DECISIVE_FIELDS}
    inputs = (config.run_dir / "data" / "manifest.json", config.run_dir / "sid" / "codes_all.npy")
    stage = Stage(config.run_dir, "sft", identity, inputs)
    hub = HubRepository.asked_for(training)
    if finished_already(stage, config.overwrite):
        if hub is not None:
            hub.upload(stage.folder)
        return
    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    check(dataset, sids, config, tasks)
    refuse_adapters_in_parts(weights.train_weights)
    refuse_unsaved_measurements(training)
    callbacks = early_stopping(config.early_stopping_patience, training)
    valid_cases = sample_cases(dataset.cases("valid"), config.valid_users, training.seed)

    model, tokenizer, vocabulary = start_model(dataset, sids, config, backbone, training.seed)
    render = example_renderer(dataset, sids, config, tasks, tokenizer, vocabulary)
    rows = task_rows(dataset.train_sequences, render.has_text, sids.n_levels, config.max_items, tasks, training.seed)
    model = with_adapters(model, weights, new_tokens=list(range(vocabulary.start_token, len(tokenizer))))
    if backbone.model_name_or_path is None:
        add_dropout(causal_model(model), backbone.dropout)

    begin_stage(stage, config.overwrite)
    training.output_dir = str(stage.folder / "checkpoints")
    trainer = SidSFTTrainer(
        model=model,
        args=training,
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=rows.select([0]),  # asked for by Trainer, never read
        data_collator=ExampleCollator(render, tokenizer.pad_token_id),
        renderer=render.renderer,
        trie=SidTrie(torch.from_numpy(sids.codes), sids.level_sizes),
        valid_cases=valid_cases,
        callbacks=callbacks,
    )
    announce_estimate(trainer, np.asarray(rows["length"]), sids.level_sizes, tasks.with_text)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(stage.folder / "checkpoints"))
    trainer.accelerator.wait_for_everyone()  # one that is done may delete the checkpoint that another still reads

    trainer.save_model(str(stage.folder if weights.train_weights == "full" else stage.folder / "adapter"))
    if not trainer.accelerator.is_main_process:
        return
    if weights.train_weights != "full":
        base, _, _ = start_model(dataset, sids, config, backbone, training.seed)
        merge(base, stage.folder / "adapter").save_pretrained(stage.folder)
        tokenizer.save_pretrained(stage.folder)
    finish(stage, trainer, sids)
    if hub is not None:
        hub.upload(stage.folder)


def start_model(
    dataset: Dataset, sids: SemanticIds, config: SftConfig, backbone: BackboneConfig, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, SidVocabulary]:
    """The model that training begins with, SID tokens in its vocabulary: the same at every call."""
    torch.manual_seed(seed)  # rows of the control tokens are drawn
    model, tokenizer = load_backbone(backbone, seed)
    row_start = row_start_for(config.row_start, from_scratch=backbone.model_name_or_path is None)
    texts = dataset.items["text"].to_list()
    return model, tokenizer, add_sid_tokens(model, tokenizer, sids, texts, row_start, seed)


def example_renderer(
    dataset: Dataset,
    sids: SemanticIds,
    config: SftConfig,
    tasks: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: SidVocabulary,
) -> ExampleRenderer:
    """From rows of tasks to tokens; items' texts are tokenised only when a task asks for them."""
    openings = chat_openings(tokenizer) if config.chat_template else {}
    renderer = Renderer.build(sids, vocabulary, config.max_items, config.normaliser, openings.get("next_item", ()))
    texts = dataset.items["text"].to_list() if tasks.with_text else [""] * dataset.n_items
    titles = dataset.titles if tasks.with_text else texts
    longest = tasks.text_tokens
    return ExampleRenderer(
        renderer,
        token_ids(texts, tokenizer, longest),
        token_ids(titles, tokenizer, longest),
        tokenizer.eos_token_id,
        openings,
    )


def check(dataset: Dataset, sids: SemanticIds, config: SftConfig, tasks: TaskConfig) -> None:
    """Raise InputError for what would fail, or mean nothing, after hours of training."""
    if sids.n_items != dataset.n_items:
        raise InputError(
            f"{config.run_dir / 'sid'} has {sids.n_items} items, {config.run_dir / 'data'} has {dataset.n_items}; "
            "run `bash run_tokenizer.sh` again."
        )
    if config.max_items < 2:
        raise InputError(f"max_items={config.max_items} is too short: a context holds at least 2 items.")
    if tasks.next_item_windows and tasks.window_items >= config.max_items:
        raise InputError(
            f"window_items={tasks.window_items} must be less than max_items={config.max_items}: a window holds an answer, too."
        )


def finish(stage: Stage, trainer: SidSFTTrainer, sids: SemanticIds) -> None:
    """Write what makes the model folder complete, close the stage, and say where it is."""
    folder = stage.folder
    history = [row for row in trainer.state.log_history if "eval_recall@10" in row]
    complete_folder(stage, trainer.renderer, sids, history)
    Console().print(
        f"sft: {ModelShape.of(trainer.model).parameters / 1e6:.2f}M parameters, best valid Recall@10 {trainer.state.best_metric:.4f} "
        f"at step {trainer.state.best_global_step} of {trainer.state.max_steps}; the model is in {folder}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_as_command(main)
