"""What fine-tuning costs: all positions against one answer an example, existing codes against the vocabulary, the trainer's overhead.

python -m benchmarks.sft_cost --run_dirs outputs/ml-100k outputs/own

For every run directory (finished `data` and `sid` stages) a small model from scratch is trained by a plain loop:
  all_positions   whole histories, the next item at every position, the codes that exist under the prefix (this project's way)
  windows         the newest 10 items and one answer, as rivals have it; the same softmax
  full            as all_positions, with the usual softmax over the whole vocabulary, in training and in ranking
Recall@10 of sampled valid cases is measured as they go. The learning rate is constant after a warm-up, so that how fast one learns does
not depend on where it was planned to end.
  token_ratio       windows' tokens over all_positions' until both reach the lower of their two best Recalls; cpu_ratio: CPU seconds
  likelihood_ratio  full's CPU seconds over all_positions' until 95 % of full's best Recall; the same for one step of a model whose
                    vocabulary has 151,936 other tokens (likelihood_ratio_152k)
  trainer_overhead  a step of sft/train.py's trainer over one of the plain loop, the same batches
  tokens_per_second of all_positions, in CPU seconds
The last line is one JSON object, by run directory.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset as TrainingRows
from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from trl import SFTConfig

from benchmarks.harness import announce, plain_console, print_figures
from benchmarks.plain_loop import StepClock, endless_batches, step
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.normaliser import Normaliser
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.precision import has_bf16
from sidrec.sft.backbone import add_dropout, byte_tokenizer, load_backbone
from sidrec.sft.examples import NO_LABEL, ExampleCollator, ExampleRenderer
from sidrec.sft.settings import BackboneConfig, SftTrainerConfig
from sidrec.sft.tasks import next_item_rows, window_rows
from sidrec.sft.trainer import SidSFTTrainer, answer_loss
from sidrec.sft.training_arguments import trl_arguments, with_hardware
from sidrec.sft.validation import sample_cases
from sidrec.sft.vocabulary import add_sid_tokens
from sidrec.tokenizer.semantic_ids import SemanticIds

K = 10
WARM_UP = 50  # steps
LARGE_VOCABULARY = 151_936  # tokens of Qwen3
OVERHEAD_STEPS, LARGE_STEPS = 40, 5


@dataclass
class SftCostConfig:
    """Measure what SFT costs, on finished `data` and `sid` stages."""

    run_dirs: list[Path] = field(metadata={"help": "Run directories with finished `data` and `sid` stages."})
    max_items: int = field(default=200, metadata={"help": "Longest history of all_positions and full, in items."})
    window_items: int = field(default=10, metadata={"help": "Items before the answer in windows."})
    epochs: float = field(default=12, metadata={"help": "Passes of all_positions and full over all histories."})
    window_epochs: float = field(default=3, metadata={"help": "Passes of windows over all its examples."})
    tokens_per_step: int = field(default=2048, metadata={"help": "Tokens of a batch, about; the same for all."})
    measurements: int = field(default=24, metadata={"help": "How often Recall@10 is measured in each training."})
    cases: int = field(default=1000, metadata={"help": "Valid cases, at most, drawn once."})
    learning_rate: float = field(default=2e-3, metadata={"help": "AdamW's, constant after 50 steps."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, dropout and cases."})


@dataclass(frozen=True)
class Kind:
    """One way to train. rows: its examples; max_items: the longest history that it is given in ranking."""

    name: str
    rows: TrainingRows
    max_items: int
    normaliser: Normaliser
    epochs: float


@dataclass(frozen=True)
class Point:
    """Where a training stood when its Recall was measured."""

    tokens: int
    seconds: float
    recall: float


class PlainLoop:
    """A model of one kind and its plain training loop: forward, loss on labels only, AdamW."""

    def __init__(
        self, kind: Kind, dataset: Dataset, sids: SemanticIds, backbone: BackboneConfig, config: SftCostConfig
    ) -> None:
        self.kind, self.config = kind, config
        torch.manual_seed(config.seed)
        self.model, tokenizer = load_backbone(backbone, config.seed)
        texts = dataset.items["text"].to_list()
        vocabulary = add_sid_tokens(self.model, tokenizer, sids, texts, "codebook", config.seed)
        add_dropout(self.model, backbone.dropout)
        self.trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
        self.renderer = Renderer.build(sids, vocabulary, kind.max_items, kind.normaliser)
        self.collate = ExampleCollator(ExampleRenderer(self.renderer, [], [], 1, {}), tokenizer.pad_token_id)
        mean_length = sum(kind.rows["length"]) / len(kind.rows)
        self.batch_size = max(1, round(config.tokens_per_step / mean_length))
        self.steps = round(kind.epochs * len(kind.rows) / self.batch_size)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: min(1.0, (done + 1) / WARM_UP))

    def batches(self) -> Iterator[dict[str, Tensor]]:
        return endless_batches(self.kind.rows, self.collate, self.batch_size, self.config.seed)

    def step(self, batch: dict[str, Tensor]) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            total = answer_loss(self.model, OutputHead.of(self.model), batch, self.renderer, self.trie)
        loss = total / (batch["labels"] != NO_LABEL).sum()
        step(loss, self.model, self.optimizer, self.schedule)
        return float(loss.detach())

    def recall(self, cases: EvalCases) -> float:
        self.model.eval()
        recommender = Recommender(self.model, self.renderer, LiveCatalogue(self.trie))
        items = recommender.recommend(cases.histories, K, exclude_seen=True).items
        self.model.train()
        return float((items == cases.targets[:, None]).any(1).mean())

    def learn(self, cases: EvalCases) -> list[Point]:
        """Train, and measure Recall at even distances; CPU seconds of training alone."""
        points, tokens, seconds = [], 0, 0.0
        measured_at = {round(self.steps * (i + 1) / self.config.measurements) for i in range(self.config.measurements)}
        batches = self.batches()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.model.train()
        with Progress(*columns, transient=True, disable=not get_console().is_terminal) as progress:
            for done in progress.track(range(1, self.steps + 1), description=self.kind.name):
                start = time.process_time()
                batch = next(batches)
                self.step(batch)
                seconds += time.process_time() - start
                tokens += int((batch["input_ids"] != self.collate.pad_token).sum())
                if done in measured_at:
                    points.append(Point(tokens, seconds, self.recall(cases)))
        return points

    def step_seconds(self, n: int) -> float:
        """CPU seconds of a step, the mean of `n` after one."""
        batches = self.batches()
        self.model.train()
        self.step(next(batches))
        start = time.process_time()
        for _ in range(n):
            self.step(next(batches))
        return (time.process_time() - start) / n


def main(arguments: list[str] | None = None) -> None:
    config, backbone = parse_configs((SftCostConfig, SmallBackbone), arguments)
    if not config.run_dirs:
        raise InputError("--run_dirs is empty; give one folder or more.")
    console = plain_console()
    announce(console, "sft_cost", arguments)
    figures = {run_dir.name: measure(run_dir, backbone, config, console) for run_dir in config.run_dirs}
    print_figures(figures)


@dataclass
class SmallBackbone(BackboneConfig):
    architecture: Literal["rq_transformer", "qwen3"] = field(default="qwen3", metadata={"help": "Kind of the model."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Decoder layers."})
    num_attention_heads: int = field(default=2, metadata={"help": "Attention heads."})


def measure(run_dir: Path, backbone: BackboneConfig, config: SftCostConfig, console: Console) -> dict[str, object]:
    """All figures of one run directory, printed as they come."""
    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    cases = sample_cases(dataset.cases("valid"), config.cases, config.seed)
    kinds = kinds_of(dataset, sids, config)
    console.print(f"\n{run_dir}: {dataset.n_items:,} items, {len(cases):,} valid cases")
    curves: dict[str, list[Point]] = {}
    for kind in kinds:
        loop = PlainLoop(kind, dataset, sids, backbone, config)
        curves[kind.name] = points = loop.learn(cases)
        best = max(points, key=lambda point: point.recall)
        console.print(
            f"{kind.name}: {loop.steps} steps of {loop.batch_size} rows, {points[-1].tokens:,} tokens, {points[-1].seconds:.0f} CPU s; "
            f"best Recall@{K} {best.recall:.4f} after {best.tokens:,} tokens"
        )
    figures = ratios(curves)
    large = {kind.name: large_step(kind, dataset, sids, backbone, config) for kind in kinds if kind.name != "windows"}
    figures["likelihood_ratio_152k"] = large["full"] / large["all_positions"]
    figures["trainer_overhead"] = trainer_overhead(PlainLoop(kinds[0], dataset, sids, backbone, config), cases)
    for name, value in figures.items():
        console.print(f"{name}: {value:,.3f}")
    return figures | {"curves": {name: [vars(point) for point in points] for name, points in curves.items()}}


def kinds_of(dataset: Dataset, sids: SemanticIds, config: SftCostConfig) -> list[Kind]:
    sequences = dataset.train_sequences
    whole = next_item_rows(sequences, config.max_items, sids.n_levels)
    windows = window_rows("next_item_windows", sequences, config.window_items, sids.n_levels)
    return [
        Kind("all_positions", whole, config.max_items, "children", config.epochs),
        Kind("windows", windows, config.window_items + 1, "children", config.window_epochs),
        Kind("full", whole, config.max_items, "full", config.epochs),
    ]


def reached(points: list[Point], recall: float) -> Point:
    """The first point at which `recall` was reached."""
    return next(point for point in points if point.recall >= recall)


def ratios(curves: dict[str, list[Point]]) -> dict[str, float]:
    """token_ratio, cpu_ratio, likelihood_ratio (0 where it is not reached) and tokens_per_second."""
    best = {name: max(point.recall for point in points) for name, points in curves.items()}
    ours, windows, full = curves["all_positions"], curves["windows"], curves["full"]
    both = min(best["all_positions"], best["windows"])
    most = 0.95 * best["full"]
    likelihood = reached(full, most).seconds / reached(ours, most).seconds if best["all_positions"] >= most else 0.0
    return {
        "recall_reached": both,
        "token_ratio": reached(windows, both).tokens / reached(ours, both).tokens,
        "cpu_ratio": reached(windows, both).seconds / reached(ours, both).seconds,
        "likelihood_ratio": likelihood,
        "tokens_per_second": ours[-1].tokens / ours[-1].seconds,
    }


def large_step(
    kind: Kind, dataset: Dataset, sids: SemanticIds, backbone: BackboneConfig, config: SftCostConfig
) -> float:
    """CPU seconds of a step when the vocabulary has LARGE_VOCABULARY other tokens beside the project's."""
    loop = PlainLoop(kind, dataset, sids, backbone, config)
    loop.model.resize_token_embeddings(
        len(loop.model.get_input_embeddings().weight) + LARGE_VOCABULARY, mean_resizing=False
    )
    loop.optimizer = torch.optim.AdamW(loop.model.parameters(), config.learning_rate, fused=True)
    loop.schedule = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda done: 1.0)
    return loop.step_seconds(LARGE_STEPS)


def trainer_overhead(loop: PlainLoop, cases: EvalCases) -> float:
    """A step of SidSFTTrainer over one of the plain loop, on the same batches."""
    batches = loop.batches()
    chosen = [next(batches) for _ in range(OVERHEAD_STEPS + 1)]
    loop.model.train()
    seconds = {"plain": 0.0, "trainer": 0.0}
    loop.step(chosen[0])
    start = time.process_time()
    for batch in chosen[1:]:
        loop.step(batch)
    seconds["plain"] = time.process_time() - start
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        settings = SftTrainerConfig(
            max_steps=len(chosen),
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            disable_tqdm=True,
            logging_steps=10 * OVERHEAD_STEPS,
        )
        nothing_else = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}}
        training = trl_arguments(SFTConfig, with_hardware(settings), Path(folder), **nothing_else, **prepared)
        rows = TrainingRows.from_dict({"batch": list(range(len(chosen)))})
        trainer = SidSFTTrainer(
            model=loop.model,
            args=training,
            processing_class=byte_tokenizer(),
            train_dataset=rows,
            data_collator=lambda picked: chosen[picked[0]["batch"]],
            renderer=loop.renderer,
            trie=loop.trie,
            valid_cases=cases,
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds / seconds["plain"]


if __name__ == "__main__":
    run_as_command(main)
