"""A step of RL: how fast against TRL's own layout, how true its gradient, and whether the divergence stays finite.

python -m benchmarks.rl_step --index Industrial.index.json --run_dir outputs/demo

step_ratio       CPU seconds of TRL's own loss and its backward pass (each prompt repeated G times, softmax over the vocabulary) over
                 those of this project's (prompt once, codes that exist), on the same groups of a random Qwen3
gradient_cosine  of the gradient that groups of each kind give on average, with reward 1 for a hit, to the exact gradient of the expected
                 reward, enumerated over all items of --index (semantic IDs as MiniOneRec writes them, or codes_all.npy); the figure is
                 the default's, `cosines` has the others
exact_ratio      seconds a question of a step over every item, over those of a step of Gumbel groups, on --run_dir's SFT model where that
                 is an RQ-Transformer: the trainer's whole steps, draws and rewards included
kl_max           the largest divergence at a code in 1,000 updates at ten times the default learning rate, on --run_dir's SFT model
The last line is one JSON object.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset as TrainingRows
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from benchmarks.harness import RL, announce, cpu_seconds, plain_console, print_figures, run_stage
from benchmarks.random_catalogues import skewed_codes, small_qwen3
from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.beams import Beams
from sidrec.decoding.exhaustive import leaf_log_probs
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.files import read_json
from sidrec.rl.clipping import Clip
from sidrec.rl.group_log_probs import group_log_probs
from sidrec.rl.groups import draw_groups
from sidrec.rl.objectives import group_advantages, grpo
from sidrec.rl.recipe import has_exact_model
from sidrec.rl.settings import Draw, RlTrainerConfig
from sidrec.sft.backbone import byte_tokenizer
from sidrec.tokenizer.interchange import read_codes

G = 16
PROMPTS, PROMPT_ITEMS, CATALOGUE, LEVELS = 2, 86, 4000, (256, 256, 256)
VOCABULARY = 32_000  # tokens: TRL scores all of them at every position
RANKS = (0, 3, 8, 14)  # of the taken item among all: where a group holds it often enough
STEPS = 12  # of RL that are timed
SHARPNESS = 6.0  # the random model's logits are scaled by so much: the best item then has a probability of some percent


@dataclass
class RlStepConfig:
    """Measure a step of RL; no data set is needed but semantic IDs."""

    index: Path = field(metadata={"help": "Semantic IDs: MiniOneRec's .index.json, or codes_all.npy."})
    run_dir: Path | None = field(
        default=None,
        metadata={"help": "Run directory with a finished sft stage, for kl_max; without it that is left out."},
    )
    groups: int = field(default=300, metadata={"help": "Groups a question that the mean gradient is taken over."})
    kl_steps: int = field(default=1000, metadata={"help": "Updates that the divergence is watched for."})
    repeats: int = field(default=3, metadata={"help": "Timings of each step, of which the median counts."})
    seed: int = field(default=0, metadata={"help": "Seed of models, catalogues and draws."})


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(RlStepConfig, arguments), plain_console()
    torch.set_num_threads(1)
    announce(console, "rl_step", arguments)
    figures: dict[str, object] = {}

    def record(**measured: object) -> None:
        figures.update(measured)
        for name, value in measured.items():
            console.print(f"{name}: {value}")

    record(**step_ratio(config))
    cosines = gradient_cosines(config)
    record(gradient_cosine=cosines["gumbel"], cosines=cosines)
    if config.run_dir is not None and has_exact_model(config.run_dir):
        record(exact_ratio=exact_ratio(config.run_dir))
    if config.run_dir is not None:
        record(kl_max=kl_max(config.run_dir, config))
    print_figures(figures)


def vocabulary_of(level_sizes: list[int]) -> SidVocabulary:
    """SID tokens from token 1 on; token 0 begins a history."""
    offsets = np.cumsum([1, *level_sizes[:-1]])
    return SidVocabulary(0, tuple(int(offset) for offset in offsets), tuple(level_sizes))


def step_ratio(config: RlStepConfig) -> dict[str, float]:
    """Loss and backward pass of PROMPTS groups of G, prompts of 259 tokens, a vocabulary of 32 thousand."""
    codes = skewed_codes(CATALOGUE, list(LEVELS), config.seed)
    trie, vocabulary = SidTrie(codes, list(LEVELS)), vocabulary_of(list(LEVELS))
    model = small_qwen3(VOCABULARY, config.seed)
    rng = torch.Generator().manual_seed(config.seed)
    tokens = codes.long() + torch.tensor(vocabulary.first_tokens)
    histories = torch.randint(CATALOGUE, (PROMPTS, PROMPT_ITEMS), generator=rng)
    prompts = torch.cat([torch.zeros(PROMPTS, 1, dtype=torch.long), tokens[histories].flatten(1)], dim=1)
    items = torch.stack([torch.randperm(CATALOGUE, generator=rng)[:G] for _ in range(PROMPTS)]).flatten()
    prompt_ids = prompts.repeat_interleave(G, dim=0)
    advantages = torch.randn(len(items), generator=rng)
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": tokens[items],
        "completion_mask": torch.ones(len(items), 3, dtype=torch.long),
        "advantages": advantages,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, num_generations=G, per_device_train_batch_size=len(items),
            max_completion_length=3, loss_type="dr_grpo", beta=0, gradient_checkpointing=False, report_to="none",
        )  # fmt: skip
        trl = GRPOTrainer(
            model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=arguments,
            train_dataset=TrainingRows.from_dict({"prompt": ["a"] * len(items)}), processing_class=byte_tokenizer(),
        )  # fmt: skip
        trl.current_gradient_accumulation_steps = 1

        def theirs() -> None:
            trl._compute_loss(trl.model, inputs).backward()
            model.zero_grad()

        theirs_seconds = cpu_seconds(theirs, config.repeats)
    head = OutputHead.of(model)

    def ours() -> None:
        chosen = group_log_probs(model, head, prompt_ids, inputs["prompt_mask"], items, vocabulary, trie).chosen
        grpo(chosen, chosen.detach(), advantages[:, None], torch.ones(len(items)), Clip(0.2, 0.2)).backward()
        model.zero_grad()

    ours_seconds = cpu_seconds(ours, config.repeats)
    return {"step_ratio": theirs_seconds / ours_seconds, "trl_seconds": theirs_seconds, "step_seconds": ours_seconds}


def gradient_cosines(config: RlStepConfig) -> dict[str, float]:
    """Mean over questions of the cosine between the groups' mean gradient and the exact one."""
    raw, _ = read_codes(config.index)
    codes = torch.from_numpy(np.unique(raw, axis=0))
    level_sizes = [int(size) + 1 for size in codes.max(0).values]
    trie, vocabulary = SidTrie(codes, level_sizes), vocabulary_of(level_sizes)
    model = small_qwen3(1 + sum(level_sizes), config.seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(SHARPNESS)
    draws: tuple[Draw, ...] = ("gumbel", "independent", "beams")
    cosines: dict[str, list[float]] = {name: [] for name in (*draws, "gumbel, all alike")}
    for rank in track(RANKS, "questions", transient=True):
        question = Question.ask(model, vocabulary, trie, rank, config)
        exact = question.gradient(question.exact_coefficients())
        for name in cosines:
            draw: Draw = "gumbel" if name.startswith("gumbel") else name  # type: ignore[assignment]
            coefficients = question.drawn_coefficients(draw, config.groups, weighted="alike" not in name)
            cosines[name].append(cosine(question.gradient(coefficients), exact))
    return {name: float(np.mean(values)) for name, values in cosines.items()}


@dataclass(frozen=True)
class Question:
    """One history and the item taken next. prompt: int64 [1, T]. probabilities: float32 [N], π of every item."""

    model: PreTrainedModel
    vocabulary: SidVocabulary
    trie: SidTrie
    prompt: Tensor
    probabilities: Tensor
    target: int

    @classmethod
    def ask(
        cls, model: PreTrainedModel, vocabulary: SidVocabulary, trie: SidTrie, rank: int, config: RlStepConfig
    ) -> Question:
        history = torch.randint(trie.n_items, (10,), generator=torch.Generator().manual_seed(config.seed + rank))
        levels = [trie.code[level][trie.node_of_item[level + 1][history]] for level in range(trie.n_levels)]
        tokens = torch.stack(levels, dim=1).long() + torch.tensor(vocabulary.first_tokens)
        prompt = torch.cat([torch.zeros(1, dtype=torch.long), tokens.flatten()])[None]
        scores = leaf_log_probs(model, prompt, torch.ones_like(prompt), vocabulary, trie)[0]
        leaves = trie.item_of_leaf[torch.arange(trie.n_items)]
        probabilities = torch.zeros(trie.n_items).scatter_(0, leaves, scores.exp())
        target = int(probabilities.argsort(descending=True)[rank])
        return cls(model, vocabulary, trie, prompt, probabilities, target)

    def exact_coefficients(self) -> Tensor:
        """∇ E_π[hit] = Σ_y c_y ∇ log π(y), where c is π at the target and 0 elsewhere: float32 [N]."""
        coefficients = torch.zeros(self.trie.n_items)
        coefficients[self.target] = self.probabilities[self.target]
        return coefficients

    def drawn_coefficients(self, draw: Draw, n_groups: int, weighted: bool) -> Tensor:
        """The mean over groups that hold the target of what each item's log π is multiplied by: float32 [N]."""

        def search(rows: Tensor, width: int, generators: list[torch.Generator] | None) -> Beams:
            ids = self.prompt.expand(len(rows), -1)
            return beam_search(
                self.model, ids, torch.ones_like(ids), self.vocabulary, self.trie, width, generators=generators
            )

        groups, _ = draw_groups(search, n_groups, G, draw, [f"{i}" for i in range(n_groups)])
        weights = groups.weights if weighted else torch.ones_like(groups.weights)
        rewards = (groups.items == self.target).float()
        shares = weights / weights.sum(1, keepdim=True)
        gains = shares * group_advantages(rewards, weights, scaled=False)
        held = rewards.any(1)
        return torch.zeros(self.trie.n_items).scatter_add_(0, groups.items[held].flatten(), gains[held].flatten())

    def gradient(self, coefficients: Tensor) -> Tensor:
        """Σ_y c_y ∇ log π(y) over the items with a coefficient, flat."""
        self.model.zero_grad()
        head = OutputHead.of(self.model)
        for items in coefficients.nonzero().flatten().split(256):
            prompts = self.prompt.expand(len(items), -1)
            log_probs = group_log_probs(
                self.model, head, prompts, torch.ones_like(prompts), items, self.vocabulary, self.trie
            )
            (log_probs.chosen.sum(1) * coefficients[items]).sum().backward()
        gradients = [parameter.grad.flatten() for parameter in self.model.parameters() if parameter.grad is not None]
        return torch.cat(gradients).clone()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def exact_ratio(run_dir: Path) -> float:
    """Of the median step of STEPS, the first left out."""
    prompts = RlTrainerConfig.per_device_train_batch_size // RlTrainerConfig.num_generations
    exact, groups = (steps_of(run_dir, draw) for draw in ("every_item", "gumbel"))
    seconds = {
        "exact": [row["step_time"] / row["questions"] for row in exact],
        "groups": [row["step_time"] / prompts for row in groups],
    }
    return float(np.median(seconds["exact"]) / np.median(seconds["groups"]))


def steps_of(run_dir: Path, draw: Draw) -> list[dict[str, float]]:
    """What RL logged of every step but the first, on a copy of the run."""
    flags = {
        "draw": draw, "rewards": "hit_at_k", "reward_weights": 1, "max_steps": STEPS, "logging_steps": 1, "eval_steps": STEPS,
        "save_steps": STEPS, "valid_users": 50, "early_stopping_patience": 0, "disable_tqdm": "true",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("rl", "evaluation", "seeds"))
        run_stage(
            [*RL, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))], copy, threads=1
        )
        log = read_json(copy / "rl" / "log.json")["log"]
    return [row for row in log if "step_time" in row][1:]


def kl_max(run_dir: Path, config: RlStepConfig) -> float:
    """Train a copy of the run's SFT model with a penalty of 0.001 on the divergence, ten times as fast as by default."""
    flags = {
        "kl_weight": 0.001, "learning_rate": 10 * RlTrainerConfig.learning_rate, "lr_scheduler_type": "constant",
        "max_steps": config.kl_steps, "logging_steps": 1, "eval_steps": config.kl_steps, "save_steps": config.kl_steps,
        "valid_users": 50, "early_stopping_patience": 0, "per_device_train_batch_size": 128, "disable_tqdm": "true",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("rl", "evaluation"))
        run_stage(
            [*RL, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))], copy, threads=1
        )
        log = read_json(copy / "rl" / "log.json")["log"]
    return max(row["kl/max"] for row in log if "kl/max" in row)


if __name__ == "__main__":
    run_as_command(main)
