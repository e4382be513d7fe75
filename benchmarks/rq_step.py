"""What the trainer adds to a training step of an RQ-Transformer, beside a bare loop on the same batches.

python -m benchmarks.rq_step --run_dir outputs/ml-100k

From a run directory's finished `data` and `sid` stages the model that sft/train.py would begin with, and the batches that it would make.
The bare loop: forward in bfloat16, backward, gradients of norm 1 at most, fused AdamW. The trainer: `SidSFTTrainer`, TRL's with this
project's loss, without validations and checkpoints. Processor seconds of this process, batches made before both; what making them costs
stands beside. The last line is one JSON object; trainer_overhead is the ratio of the medians over --repeats turns of both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from datasets import Dataset as TrainingRows
from torch import Tensor
from trl import SFTConfig

from benchmarks.harness import announce, check_at_least, plain_console, print_figures
from benchmarks.plain_loop import StepClock, step
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config, parse_configs
from sidrec.pipeline.precision import has_bf16
from sidrec.pipeline.stage import require_finished
from sidrec.sft.backbone import byte_tokenizer
from sidrec.sft.batches import LengthBatches
from sidrec.sft.examples import NO_LABEL, ExampleCollator
from sidrec.sft.fine_tuning import TrainingStart, length_batches, prepare
from sidrec.sft.recipe import settings_by_size
from sidrec.sft.settings import CONFIGS, SftTrainerConfig
from sidrec.sft.trainer import SidSFTTrainer, answer_loss
from sidrec.sft.training_arguments import sft_arguments, trl_arguments, with_hardware


@dataclass
class RqStepConfig:
    """Time a step by the trainer and by a bare loop."""

    run_dir: Path = field(metadata={"help": "Run directory with finished `data` and `sid` stages."})
    steps: int = field(default=20, metadata={"help": "Timed steps of a turn, after one that is not."})
    repeats: int = field(default=3, metadata={"help": "Turns of each."})

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, repeats=self.repeats)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(RqStepConfig, arguments), plain_console()
    announce(console, "rq_step", arguments)
    require_finished(config.run_dir, "sid", f"bash run_tokenizer.sh --run_dir {config.run_dir}")
    asked = ["--run_dir", str(config.run_dir), "--architecture", "rq_transformer", "--batch_items", "4096"]
    settings, tasks, backbone, weights, training = parse_configs(CONFIGS, asked, suited=settings_by_size)
    training = with_hardware(training)
    start = prepare(settings, tasks, backbone, weights, training)
    with tempfile.TemporaryDirectory() as folder:
        batches = length_batches(start, settings.batch_items, sft_arguments(training, Path(folder)))
    assert batches is not None
    collate = ExampleCollator(start.render, start.tokenizer.pad_token_id, start.drop)
    began = time.process_time()
    rows = [row for _, row in zip(range(config.steps + 1), endless(batches), strict=False)]
    chosen = [collate([start.rows[place] for place in row]) for row in rows]
    making = (time.process_time() - began) / len(chosen)
    ways: dict[str, Callable[[], float]] = {
        "bare": lambda: bare_loop(start, chosen, training),
        "trainer": lambda: by_the_trainer(start, chosen, training),
    }
    seconds = {name: statistics.median(way() for _ in range(config.repeats)) for name, way in ways.items()}
    figures = {f"{name}_step_seconds": round(value / config.steps, 4) for name, value in seconds.items()}
    figures |= {"batch_seconds": round(making, 4), "trainer_overhead": round(seconds["trainer"] / seconds["bare"], 3)}
    items = sum(int((batch["items"] >= 0).sum()) for batch in chosen) / len(chosen)
    console.print(f"{items:,.0f} items a step; {figures}")
    print_figures(figures)


def endless(batches: LengthBatches) -> Iterator[list[int]]:
    """The rows of every batch, pass after pass."""
    while True:
        yield from batches
        batches.epoch += 1


def bare_loop(start: TrainingStart, batches: list[dict[str, Tensor]], training: SftTrainerConfig) -> float:
    """Processor seconds of all steps but the first."""
    model = start.model
    optimizer = torch.optim.AdamW(model.parameters(), training.learning_rate, weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0)
    trie = SidTrie(torch.from_numpy(start.sids.codes), start.sids.level_sizes)
    model.train()
    began = 0.0
    for place, batch in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            total = answer_loss(model, OutputHead.of(model), batch, start.render.renderer, trie)
        step(total / (batch["labels"] != NO_LABEL).sum(), model, optimizer, schedule)
        if place == 0:
            began = time.process_time()
    return time.process_time() - began


def by_the_trainer(start: TrainingStart, batches: list[dict[str, Tensor]], training: SftTrainerConfig) -> float:
    """Processor seconds of all steps but the first."""
    clock = StepClock()
    settings = replace(
        training,
        max_steps=len(batches),
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        lr_scheduler_kwargs={},
        warmup_steps=0,
        logging_steps=10 * len(batches),
    )
    nothing_else = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SidSFTTrainer(
            model=start.model,
            args=trl_arguments(SFTConfig, settings, Path(folder), **nothing_else, **prepared),
            processing_class=byte_tokenizer(),
            train_dataset=TrainingRows.from_dict({"batch": list(range(len(batches)))}),
            data_collator=lambda picked: batches[picked[0]["batch"]],
            renderer=start.render.renderer,
            trie=SidTrie(torch.from_numpy(start.sids.codes), start.sids.level_sizes),
            valid_cases=start.valid_cases,
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds


if __name__ == "__main__":
    run_as_command(main)
