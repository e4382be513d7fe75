"""How an RQ-Transformer's training step, its recommending and its memory grow with the catalogue.

python -m benchmarks.catalogue_growth
python -m benchmarks.catalogue_growth --items 10000 100000 --depth_head additive

Random catalogues with semantic IDs of 64 x 256 x 256 codes, a model of random weights with the sizes of docs/sft.md, random histories. A
step is forward, backward and AdamW of 4,096 items of histories in bfloat16; recommending is `Recommender.recommend`, top 10 of histories of
50 items without the seen ones, in float32, after one call. Every catalogue has a process of its own, of one thread; its peak of memory
holds all that. An exponent e says that a figure grows as items^e, fitted to the logarithms. The last line is one JSON object.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch

from benchmarks.harness import KIB_PER_GIB, announce, check_at_least, cpu_seconds, plain_console, print_figures
from benchmarks.random_catalogues import LEVEL_SIZES, random_model, random_sids
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.sft.recipe import recipe
from sidrec.tokenizer.semantic_ids import SemanticIds

STEP_ITEMS, HISTORY_ITEMS = 4096, 50
MEASURED = ("step_seconds", "recommend_ms_a_user", "peak_gib")


@dataclass
class CatalogueGrowthConfig:
    """Which catalogues, and how often each call is timed."""

    items: list[int] = field(
        default_factory=lambda: [10_000, 30_000, 100_000, 300_000, 1_000_000],
        metadata={"help": "Items of each catalogue."},
    )
    depth_head: Literal["by_size", "marginal", "additive"] = field(
        default="by_size", metadata={"help": "The model's depth head; by_size: what sft/train.py takes by itself."}
    )
    users: int = field(default=256, metadata={"help": "Histories that are recommended for in one call."})
    repeats: int = field(default=3, metadata={"help": "Timed calls of which the median is taken."})
    seed: int = field(default=0, metadata={"help": "Seed of catalogues, weights and histories."})

    def __post_init__(self) -> None:
        check_at_least(1, users=self.users, repeats=self.repeats)
        if len(set(self.items)) < 2 or not all(100 <= n <= 2_000_000 for n in self.items):
            raise InputError("--items must name two or more different numbers from 100 to 2,000,000.")


@dataclass(frozen=True)
class Measured:
    """Of one catalogue. step_seconds: processor seconds of a training step. recommend_ms_a_user: processor milliseconds. peak_gib: the
    process's largest resident memory."""

    items: int
    head: str
    parameters: int
    step_seconds: float
    recommend_ms_a_user: float
    users_a_second: float
    peak_gib: float


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(CatalogueGrowthConfig, arguments), plain_console()
    announce(console, "catalogue_growth", arguments)
    rows = []
    for n_items in sorted(set(config.items)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own_process:
            row = own_process.submit(measure, n_items, config).result()
        console.print(
            f"{row.items:,} items, {row.head}, {row.parameters / 1e6:.1f}M parameters: a step {row.step_seconds:.2f} s, "
            f"{row.users_a_second:,.0f} users/s, {row.peak_gib:.2f} GiB"
        )
        rows.append(row)
    exponents = {name: exponent([row.items for row in rows], [getattr(row, name) for row in rows]) for name in MEASURED}
    print_figures({"exponents": exponents, "rows": [asdict(row) for row in rows]})


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log value over log size, by least squares."""
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 3)


def measure(n_items: int, config: CatalogueGrowthConfig) -> Measured:
    """In a process of its own, with one thread."""
    torch.set_num_threads(1)
    sids = random_sids(n_items, config.seed)
    head = config.depth_head if config.depth_head != "by_size" else recipe(n_items, n_items)["depth_head"]
    model, vocabulary = random_model(sids, head, config.seed)
    rng = np.random.default_rng(config.seed)
    step_seconds = cpu_seconds(training_step(model, vocabulary, sids, rng), config.repeats)
    recommender = Recommender.build(model.eval(), Renderer.build(sids, vocabulary, HISTORY_ITEMS), sids)
    histories = list(rng.integers(0, n_items, (config.users, HISTORY_ITEMS)))
    seconds = cpu_seconds(lambda: recommender.recommend(histories, 10, exclude_seen=True), config.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB
    parameters = sum(weight.numel() for weight in model.parameters())
    per_user = seconds / config.users
    return Measured(
        n_items,
        head,
        parameters,
        round(step_seconds, 3),
        round(1000 * per_user, 4),
        round(1 / per_user, 1),
        round(peak, 3),
    )


def training_step(
    model: RqTransformerForCausalLM, vocabulary: SidVocabulary, sids: SemanticIds, rng: np.random.Generator
) -> Callable[[], None]:
    """A call that does one step on STEP_ITEMS items of histories."""
    items = torch.from_numpy(rng.integers(0, sids.n_items, (STEP_ITEMS // HISTORY_ITEMS, HISTORY_ITEMS)))
    tokens = torch.from_numpy(sids.codes).long()[items] + torch.tensor(vocabulary.first_tokens)
    starts = torch.full((len(items), 1), vocabulary.start_token)
    input_ids = torch.cat([starts, tokens.flatten(1)], dim=1)
    answers = torch.full_like(input_ids, -1)
    answers[:, 1 :: len(LEVEL_SIZES)] = items
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=input_ids, answers=answers)
        losses = [losses.mean() for losses in (output.answer_losses, output.item_losses) if losses is not None]
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    run_as_command(main)
