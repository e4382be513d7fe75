"""TRL's GRPOTrainer where nothing needs to be drawn: an RQ-Transformer gives π of every item in one pass, so rewards are expected exactly.

A training row is a user's history; every item of it that is asked for is a question, and one forward pass answers all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM, asked_rows, rq_transformer_of
from sidrec.decoding.trie import SidTrie
from sidrec.rl.expectation import DenseReward, Questions, divergence, expected
from sidrec.rl.objectives import OBJECTIVES
from sidrec.rl.trainer import SidGRPOTrainer
from sidrec.sft.batches import LengthBatches
from sidrec.sft.examples import ExampleCollator
from sidrec.sft.unsharded import whole_model

LIST_LENGTH = 10  # of the lists whose items are counted for `coverage`
ROWS_AT_ONCE = 512  # questions of which lists are made
SOLVED = 0.5  # a question whose taken item is more probable
LeafLogProbs = Callable[[Tensor], Tensor]  # which questions, int64 [C] → log π of every leaf, float32 [C, N]


class HistoryCollator:
    """Rows of `history_rows` → a batch: what `ExampleCollator` makes of them, and users, int64 [B]."""

    def __init__(self, collate: ExampleCollator) -> None:
        self.collate = collate

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.collate(rows) | {"users": torch.tensor([row["user"] for row in rows])}


class ExactGRPOTrainer(SidGRPOTrainer):
    """Each step's gradient is that of the expected reward of all questions of the batch. dense_rewards: in the order of
    `reward_weights`."""

    def __init__(
        self,
        *args: Any,
        dense_rewards: list[DenseReward],
        batches: LengthBatches,
        collate: HistoryCollator,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, reward_funcs=dense_rewards, **kwargs)
        self.dense_rewards, self.batches, self.collate = dense_rewards, batches, collate
        self.add_callback(batches)

    def get_train_dataloader(self) -> DataLoader:
        """As SFT's: `LengthBatches` gives every process its own rows."""
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.collate)

    def _prepare_inputs(self, generation_batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch itself: nothing is drawn."""
        return Trainer._prepare_inputs(self, generation_batch)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Minus the expected reward, kl_weight times the exact KL to the reference, sft_loss_weight times -log π of what was taken, each a
        mean over the questions of all processes."""
        questions = self._questions(inputs)
        judge = Judge(self, questions, self._reference_of(inputs), self._is_logged())
        with self.accelerator.autocast():
            losses = model(input_ids=inputs["input_ids"], answers=inputs["items"], judge=judge).answer_losses
        count = self.accelerator.reduce(torch.tensor(float(len(questions)), device=losses.device), "sum")
        share = self.accelerator.num_processes / count  # of one question, in the mean over the processes' sums
        figures = judge.figures()
        for name, values in figures.items():
            self._note(name, values.sum() * share)
        if "kl/mean" in figures:
            self._note("kl/max", figures["kl/mean"].max(), "max")
        self._note("solved", (figures["target"] > SOLVED).sum() * share)
        self._note("questions", count)
        return losses.sum() * share / self.current_gradient_accumulation_steps

    def _is_logged(self) -> bool:
        """Whether this update ends with an entry of the log, as far as is known before its end."""
        if self.args.logging_strategy != "steps":
            return True
        return (self.state.global_step + 1) % max(1, int(self.state.logging_steps)) == 0

    def _questions(self, inputs: dict[str, Tensor]) -> Questions:
        answers = inputs["items"]
        rows, at = asked_rows(answers)
        targets = self.trie.leaf_of_item(answers[rows, at])
        wants_exposure = any(getattr(reward, "needs_exposure", False) for reward in self.dense_rewards)
        return Questions(targets, inputs["users"][rows], self._exposure(inputs) if wants_exposure else None)

    @torch.no_grad()
    def _exposure(self, inputs: dict[str, Tensor]) -> Tensor:
        """float32 [N]: the share of this batch's lists of ten, seen items left out, that hold the item at every leaf; of all processes."""
        with self.clock.part("lists"), whole_model(self) as model, self.accelerator.autocast():
            scorer = exact_model(model)
            states, _, table = scorer.asked_states(inputs["input_ids"], inputs["items"])
            seen = seen_leaves(inputs["input_ids"], inputs["items"], scorer, self.trie)
            counts = states.new_zeros(self.trie.n_items + 1)
            for part in torch.arange(len(states), device=states.device).split(ROWS_AT_ONCE):
                scores = scorer.depth.leaf_log_probs(states[part], table)
                scores = nn.functional.pad(scores, (0, 1)).scatter(1, seen[part], -torch.inf)[:, :-1]
                counts += (
                    scores.topk(min(LIST_LENGTH, scores.shape[1])).indices.flatten().bincount(minlength=len(counts))
                )
        sums = torch.cat([counts[:-1], counts.new_tensor([len(states)])])
        sums = self.accelerator.reduce(sums, "sum")
        return sums[:-1] / sums[-1]

    @torch.no_grad()
    def _reference_of(self, inputs: dict[str, Tensor]) -> LeafLogProbs | None:
        if self.reference is None:
            return None
        scorer = exact_model(self.reference)
        with self.accelerator.autocast():
            states, _, table = scorer.asked_states(inputs["input_ids"], inputs["items"])
        return lambda part: scorer.depth.leaf_log_probs(states[part], table)


class Judge:
    """What the distribution over all items loses, question by question, and what the log says of it.

    A part of the questions may be judged twice, the second time for its gradients; both say the same. with_entropy: whether the log is
    to say it, which takes a pass over every item.
    """

    def __init__(
        self, trainer: ExactGRPOTrainer, questions: Questions, reference: LeafLogProbs | None, with_entropy: bool
    ) -> None:
        self.trainer, self.questions, self.reference, self.with_entropy = trainer, questions, reference, with_entropy
        self.parts: dict[int, dict[str, Tensor]] = {}

    def __call__(self, log_probs: Tensor, part: Tensor) -> Tensor:
        """float32 [C]. log_probs: float32 [C, N]. part: int64 [C], which questions."""
        trainer, objective, asked = self.trainer, self.trainer.objective, self.questions.of(part)
        weights, scaled = trainer.reward_weights.tolist(), OBJECTIVES[objective.objective].scaled
        each = [self._timed(reward) for reward in trainer.dense_rewards]
        losses, rewards = expected(log_probs, asked, each, weights, scaled)
        answer = log_probs.gather(1, asked.targets[:, None])[:, 0]
        losses = losses - objective.sft_loss_weight * answer
        noted = {"target": answer.detach().exp()}
        if self.with_entropy:
            fixed = log_probs.detach()
            noted["entropy"] = -(fixed.exp() * fixed).sum(1)
        noted["reward"] = rewards @ rewards.new_tensor(weights)
        noted |= {
            f"rewards/{name}/mean": values for name, values in zip(trainer.reward_func_names, rewards.T, strict=True)
        }
        if self.reference is not None:
            with torch.no_grad():
                reference = self.reference(part)
            kl = divergence(log_probs, reference)
            losses, noted["kl/mean"] = losses + objective.kl_weight * kl, kl.detach()
        self.parts[int(part[0])] = noted
        return losses / trainer.trie.n_levels  # a mean over codes, as of groups

    def _timed(self, reward: DenseReward) -> DenseReward:
        def timed(questions: Questions, probs: Tensor) -> Tensor:
            with self.trainer.clock.part("rewards"):
                return reward(questions, probs)

        return timed

    def figures(self) -> dict[str, Tensor]:
        """Of every question, float32 [R], by name."""
        return {
            name: torch.cat([noted[name] for noted in self.parts.values()]) for name in next(iter(self.parts.values()))
        }


def exact_model(model: nn.Module) -> RqTransformerForCausalLM:
    scorer = rq_transformer_of(model)
    assert scorer is not None, "every item's probability in one pass is an RQ-Transformer's"
    return scorer


def seen_leaves(input_ids: Tensor, answers: Tensor, scorer: RqTransformerForCausalLM, trie: SidTrie) -> Tensor:
    """int64 [R, T]: the leaves of the items before each question, trie.n_items where there is none.

    input_ids, answers: int64 [B, ...], as of `RqTransformerForCausalLM.forward`, padded on the right.
    """
    n_levels, rows_at = len(scorer.config.level_sizes), asked_rows(answers)
    n_items = (input_ids.shape[1] - 1) // n_levels
    first = torch.tensor(scorer.config.first_tokens, device=input_ids.device)
    codes = input_ids[:, 1 : 1 + n_items * n_levels].unflatten(1, (n_items, n_levels)) - first
    leaves = trie.descend(codes.flatten(0, 1)).view(len(input_ids), n_items)
    rows, at = rows_at
    before = torch.arange(n_items, device=input_ids.device) < ((at - 1) // n_levels)[:, None]
    return torch.where(before & (leaves[rows] >= 0), leaves[rows], trie.n_items)
