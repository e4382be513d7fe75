"""Where the rows of SID tokens start from, and what that saves: every method of sft/embedding_init.py, trained alike.

python -m benchmarks.row_starts --run_dirs outputs/ml-100k outputs/demo

For every run directory (finished `data` and `sid` stages) and two models: one made from scratch, and one of the same size that has
first learnt the items' texts as a language model, with a vocabulary of its own, as a pretrained one would have (kept in --work_dir). Each
method starts the rows, then the same steps of SFT follow. Columns: spread (mean pairwise cosine distance of the SID tokens' rows),
effective rank (exp of the entropy of their singular values as shares), -log π of a code of valid cases at the start, after 200 steps
and at the end, and the share of the steps after which a method is where `mean` ends. Finished rows are kept in --work_dir and not run
again. The last line is one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich import get_console
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from benchmarks.finished_rows import FinishedRows, Row, markdown
from benchmarks.harness import announce, check_at_least, plain_console, print_figures
from benchmarks.plain_loop import endless_batches, step
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.sft.backbone import add_dropout, load_backbone, scratch_qwen3
from sidrec.sft.examples import NO_LABEL, ExampleCollator, ExampleRenderer
from sidrec.sft.settings import BackboneConfig, EmbeddingInit
from sidrec.sft.tasks import next_item_rows, rows_of
from sidrec.sft.trainer import answer_loss
from sidrec.sft.validation import sample_cases
from sidrec.sft.vocabulary import add_sid_tokens
from sidrec.tokenizer.semantic_ids import SemanticIds

MIDDLE = 200  # steps
LEARNING_RATES = {"scratch": 2e-3, "pretrained": 1e-3}  # peaks, by kind of model
HEADER = "model|rows|spread|effective rank|loss at 0|loss at 200|loss at end|share of steps to mean's end"
ROW_STARTS: tuple[EmbeddingInit, ...] = get_args(EmbeddingInit)


@dataclass
class RowStartsConfig:
    """Start SID tokens' rows by every method, train alike, and compare."""

    run_dirs: list[Path] = field(metadata={"help": "Run directories with finished data/ and sid/; only read."})
    work_dir: Path = field(
        default=Path("outputs/row_starts"), metadata={"help": "Where the language models and finished rows are kept."}
    )
    row_starts: list[EmbeddingInit] = field(
        default_factory=lambda: list(ROW_STARTS), metadata={"help": f"Any of {' '.join(ROW_STARTS)}."}
    )
    steps: int = field(default=300, metadata={"help": "Steps of SFT for each method."})
    text_steps: int = field(
        default=400, metadata={"help": "Steps in which the pretrained-like model learns the texts."}
    )
    measure_every: int = field(default=20, metadata={"help": "Steps between two measurements on valid."})
    cases: int = field(default=300, metadata={"help": "Valid cases at most, drawn once."})
    batch_size: int = field(default=16, metadata={"help": "Histories, or texts, a step."})
    max_items: int = field(default=50, metadata={"help": "Context in items."})
    hidden_size: int = field(default=128, metadata={"help": "Width of both models."})
    layers: int = field(default=2, metadata={"help": "Decoder layers of both models."})
    words: int = field(
        default=2000, metadata={"help": "Tokens, at most, of the pretrained-like model's own vocabulary."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, rows, data order and dropout."})
    overwrite: bool = field(default=False, metadata={"help": "Run these rows again, even if they are finished."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.row_starts if name not in ROW_STARTS]
        if unknown or not self.row_starts:
            raise InputError(f"--row_starts has {unknown or 'nothing'}; give one or more of {' '.join(ROW_STARTS)}.")
        counts = ("steps", "text_steps", "measure_every", "cases", "batch_size", "layers")
        check_at_least(1, **{name: getattr(self, name) for name in counts})
        if self.max_items < 2 or self.words < 300:
            raise InputError("--max_items must be at least 2 and --words at least 300; raise them.")

    @property
    def backbone(self) -> BackboneConfig:
        return BackboneConfig(
            architecture="qwen3",
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=2,
            intermediate_size=3 * self.hidden_size,
        )


@dataclass(frozen=True)
class Run:
    """A run directory's data and SIDs, and the valid cases that are measured."""

    name: str
    dataset: Dataset
    sids: SemanticIds
    cases: EvalCases

    @property
    def texts(self) -> list[str]:
        return self.dataset.items["text"].to_list()


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(RowStartsConfig, arguments), plain_console()
    runs = [read_run(run_dir, config) for run_dir in config.run_dirs]
    if len({run.name for run in runs}) < len(runs):
        raise InputError("--run_dirs has two folders of one name; rename one.")
    announce(console, "row_starts", arguments)
    config.work_dir.mkdir(parents=True, exist_ok=True)
    finished = FinishedRows(config.work_dir / "rows.json")
    asked = [name for name in ROW_STARTS if name in config.row_starts]
    tables = {}
    for run in runs:
        folders = {"scratch": None, "pretrained": text_model(run, config)}
        table = []
        for kind, folder in folders.items():
            rows = [run_or_find(run, kind, folder, name, config, finished, console) for name in asked]
            table += with_shares(rows, config.steps)
        tables[run.name] = [{name: value for name, value in row.items() if name != "made_from"} for row in table]
        console.print(f"\n## {run.name}: {run.dataset.n_items:,} items, {len(run.cases):,} cases\n")
        console.print(markdown(HEADER.split("|"), [in_words(row) for row in table]))
    print_figures({"steps": config.steps, "seed": config.seed, "tables": tables})


def read_run(run_dir: Path, config: RowStartsConfig) -> Run:
    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    if sids.n_items != dataset.n_items:
        raise InputError(
            f"{run_dir / 'sid'} has {sids.n_items} items, {run_dir / 'data'} {dataset.n_items}; make it again."
        )
    cases = sample_cases(dataset.cases("valid"), config.cases, seed=0)
    return Run(run_dir.resolve().name, dataset, sids, cases)


def text_model(run: Run, config: RowStartsConfig) -> Path:
    """The folder of a model that has learnt the items' texts, made unless it is there."""
    made_from = [run.texts, asdict(config.backbone), config.text_steps, config.batch_size, config.words, config.seed]
    folder = config.work_dir / f"texts-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    model, tokenizer = learn_texts(run, config)
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


def learn_texts(run: Run, config: RowStartsConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model of the same size as the one from scratch, that writes the items' texts."""
    tokenizer = text_tokenizer(run.texts, config.words)
    model = scratch_qwen3(config.backbone, config.seed)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, model.config.initializer_range)
    ends = tokenizer.eos_token
    ids = [row[:128] for row in tokenizer([ends + text + ends for text in run.texts])["input_ids"]]
    generator = torch.Generator().manual_seed(config.seed)
    optimizer, schedule = optimizer_of(model, LEARNING_RATES["scratch"], config.text_steps)
    model.train()
    quiet = not get_console().is_terminal
    for _ in track(range(config.text_steps), f"{run.name}: texts", transient=True, disable=quiet):
        chosen = torch.randint(len(ids), (config.batch_size,), generator=generator).tolist()
        rows = [torch.tensor(ids[i]) for i in chosen]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = tokens.masked_fill(tokens == tokenizer.pad_token_id, -100)
        step(model(input_ids=tokens, labels=labels, use_cache=False).loss, model, optimizer, schedule)
    return model, tokenizer


def text_tokenizer(texts: list[str], words: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `words` tokens, learnt from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=["<pad>", "<eos>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def run_or_find(
    run: Run,
    kind: str,
    folder: Path | None,
    row_start: EmbeddingInit,
    config: RowStartsConfig,
    finished: FinishedRows,
    console: Console,
) -> Row:
    """A method's row, run unless it is finished."""
    settings = {
        name: value
        for name, value in asdict(config).items()
        if name not in ("run_dirs", "work_dir", "row_starts", "overwrite")
    }
    made_from = settings | {"sids": run.sids.digest, "folder": folder and folder.name}
    name = f"{run.name} {kind} {row_start} seed {config.seed}"
    row = None if config.overwrite else finished.find(name, made_from)
    if row is None:
        row = finished.keep(name, made_from, train_and_measure(run, kind, folder, row_start, config))
        losses = row["losses"]
        last = losses[max(losses, key=int)]
        console.print(f"{name}: loss {losses['0']:.4f} at the start, {last:.4f} at the end")
    return row


def train_and_measure(
    run: Run, kind: str, folder: Path | None, row_start: EmbeddingInit, config: RowStartsConfig
) -> Row:
    """What the rows are at the start, and the valid loss by step while the whole model trains."""
    backbone = config.backbone
    backbone.model_name_or_path = None if folder is None else str(folder)
    model, tokenizer = load_backbone(backbone, config.seed)
    vocabulary = add_sid_tokens(model, tokenizer, run.sids, run.texts, row_start, config.seed)
    if folder is None:
        add_dropout(model, backbone.dropout)
    trie = SidTrie(torch.from_numpy(run.sids.codes), run.sids.level_sizes)
    renderer = Renderer.build(run.sids, vocabulary, config.max_items)
    collate = ExampleCollator(ExampleRenderer(renderer, [], [], tokenizer.eos_token_id, {}), tokenizer.pad_token_id)
    first, n = vocabulary.first_tokens[0], sum(vocabulary.level_sizes)
    start = model.get_input_embeddings().weight[first : first + n].detach().clone()

    def loss(batch: dict[str, Tensor]) -> Tensor:
        """Mean of -log π over the codes that are answers."""
        total = answer_loss(model, OutputHead.of(model), batch, renderer, trie)
        return total / (batch["labels"] != NO_LABEL).sum()

    rows = next_item_rows(run.dataset.train_sequences, config.max_items, run.sids.n_levels)
    batches = endless_batches(rows, collate, config.batch_size, config.seed)
    optimizer, schedule = optimizer_of(model, LEARNING_RATES[kind], config.steps)
    losses: dict[str, float] = {}
    quiet = not get_console().is_terminal
    for done in track(range(config.steps + 1), f"{run.name}, {kind}, {row_start}", transient=True, disable=quiet):
        if done % config.measure_every == 0 or done in (MIDDLE, config.steps):
            losses[str(done)] = valid_loss(model, run, loss, collate, config)
        if done < config.steps:
            step(loss(next(batches)), model, optimizer, schedule)
    about = {"kind": kind, "row_start": row_start, "losses": losses}
    return about | {"spread": spread(start), "effective_rank": effective_rank(start)}


def optimizer_of(model: PreTrainedModel, learning_rate: float, steps: int) -> tuple[AdamW, LRScheduler]:
    """AdamW as sft/train.py has it by default, and its schedule."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, math.ceil(0.05 * steps), steps)


@torch.no_grad()
def valid_loss(
    model: PreTrainedModel,
    run: Run,
    loss: Callable[[dict[str, Tensor]], Tensor],
    collate: ExampleCollator,
    config: RowStartsConfig,
) -> float:
    """Mean of -log π over the codes of the valid cases' targets, each after its history's newest items."""
    model.eval()
    shortest_first = np.argsort([len(history) for history in run.cases.histories], kind="stable")
    total = 0.0
    for part in np.array_split(shortest_first, math.ceil(len(run.cases) / (4 * config.batch_size))):
        newest = [run.cases.histories[i][1 - config.max_items :] for i in part]
        items = [[*map(int, history), int(run.cases.targets[i])] for history, i in zip(newest, part, strict=True)]
        rows = rows_of("next_item", items, [len(row) - 1 for row in items], [len(row) for row in items])
        total += float(loss(collate(list(rows)))) * len(part)
    model.train()
    return total / len(run.cases)


def spread(rows: Tensor) -> float:
    """Mean of 1 - cosine over all pairs of different rows, [n, H]."""
    n = len(rows)
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return float(1 - (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum; rows: [n, H]."""
    values = torch.linalg.svdvals(rows.double())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def with_shares(rows: list[Row], steps: int) -> list[Row]:
    """The rows with the share of `steps` after which each is, for the first time, where `mean` ends; None where it never is."""
    ends = [row["losses"][str(steps)] for row in rows if row["row_start"] == "mean"]
    with_share = []
    for row in rows:
        reached = [int(done) for done, loss in row["losses"].items() if ends and loss <= ends[0]]
        with_share.append(row | {"share": min(reached) / steps if reached else None})
    return with_share


def in_words(row: Row) -> list[str]:
    """A line of the Markdown table, under HEADER."""
    losses = row["losses"]
    wanted = ("0", str(MIDDLE), max(losses, key=int))
    cells = [f"{losses[done]:.4f}" if done in losses else "" for done in wanted]
    share = "never" if row["share"] is None else f"{row['share']:.2f}"
    return [row["kind"], row["row_start"], f"{row['spread']:.3f}", f"{row['effective_rank']:.1f}", *cells, share]


if __name__ == "__main__":
    run_as_command(main)
