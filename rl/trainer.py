"""TRL's GRPOTrainer on the one policy.

What is overridden of TRL 1.16, and nothing else: `rollout_func` is given (public, experimental); `_calculate_rewards`, `compute_loss` and
`training_step` are listened to;
`_generate_and_score_completions` is followed by this project's advantages; `_compute_loss` is replaced by rl/objectives.py on the
packed log-probabilities of rl/group_log_probs.py; `evaluate` recommends on the valid cases. `tests/rl/test_grpo.py` fails when TRL's side
of this changes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.beams import Beams
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.rl.aims import ListFigures, with_kept
from sidrec.rl.clipping import Clip
from sidrec.rl.group_log_probs import GroupLogProbs, group_log_probs, group_states, leaked_mass_by_level
from sidrec.rl.groups import draw_groups, with_targets
from sidrec.rl.objectives import OBJECTIVES, divergence_to_come, exact_kl, group_advantages, s_dpo
from sidrec.rl.prompts import NO_TARGET
from sidrec.rl.rewards import first_difference
from sidrec.rl.settings import ObjectiveConfig
from sidrec.rl.step_seconds import StepSeconds
from sidrec.rl.training_metrics import group_figures
from sidrec.sft.unsharded import whole_model
from sidrec.sft.validation import RecommendingValidation

LEAK_QUESTIONS = 8  # of an update, a process: what is asked of the whole vocabulary is not cheap


class SidGRPOTrainer(RecommendingValidation, GRPOTrainer):
    """Groups of G items of π; log-probabilities over the codes that exist; exact KL to `reference`; the SFT loss on what was taken."""

    def __init__(
        self,
        *args: Any,
        objective: ObjectiveConfig,
        of_lists: ListFigures,
        recall_margin: float,
        reference: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, rollout_func=rollout, **kwargs)
        self.objective, self.of_lists, self.recall_margin = objective, of_lists, recall_margin
        self.clock = StepSeconds(lambda name, seconds: self._metrics["train"][name].append(seconds))
        self.add_callback(self.clock)
        self.reference = None if reference is None else reference.to(self.args.device).eval().requires_grad_(False)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's; what is left of it beside the parts that are looked at alone is the backward pass."""
        with self.clock.part("backward"):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.clock.part("forward"):
            return super().compute_loss(*args, **kwargs)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[str], completions: list[str], completion_ids_list: list
    ) -> Tensor:
        """TRL's rewards of all processes, [B · processes, reward functions]; every row of `inputs` gets its own as `rewards`."""
        with self.clock.part("rewards"):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(inputs)
        for row, row_rewards in zip(inputs, rewards[first : first + len(inputs)], strict=True):
            row["rewards"] = row_rewards
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds weights [B], targets [B] (item indices) and group [B], and exchanges TRL's advantages for the weighted ones, [B, L].

        TRL writes what `rollout` returns beside the tokens into the rows that it is given, and so does `_calculate_rewards`.
        """
        rows = [{**row, "prompt": Question.of(row)} for row in inputs]
        with self.clock.part("generate"):
            scored = super()._generate_and_score_completions(rows)
        device, size, objective = self.accelerator.device, self.num_generations, self.objective
        rewards_per_func = torch.stack([row["rewards"] for row in rows]).to(device)
        rewards = (rewards_per_func * self.reward_weights.to(device)).nansum(1).view(-1, size)
        weights = torch.tensor([row["weight"] for row in rows], device=device).view(-1, size)
        advantages = group_advantages(rewards, weights, OBJECTIVES[objective.objective].scaled).flatten()[:, None]
        items = self._items(scored["completion_ids"])
        targets = torch.tensor([row["target"] for row in inputs], device=device)
        if objective.token_credit:
            codes, wanted = self._codes(items), self._codes(targets.clamp(min=0))
            credit = torch.tensor(first_difference(codes.tolist(), wanted.tolist()), device=device)
            advantages = advantages + objective.token_credit * credit * (targets != NO_TARGET)[:, None]
        scored["advantages"] = advantages.expand(-1, self.trie.n_levels).contiguous()
        scored["weights"] = (weights / weights.mean(1, keepdim=True)).flatten()
        scored["targets"] = targets
        scored["group"] = torch.arange(len(rewards), device=device).repeat_interleave(size)
        for level, share in enumerate(self._leaked(scored, items).unbind(1), 1):
            self._note(f"leaked_mass/{level}", share.mean())
        for name, value in group_figures(rewards, items.view(-1, size), targets.view(-1, size), self.trie).items():
            self._note(name, torch.tensor(value, device=device))
        return scored

    @torch.no_grad()
    def _leaked(self, scored: dict[str, Any], items: Tensor) -> Tensor:
        """Mass outside the codes that exist along the first items of LEAK_QUESTIONS groups: float32 [groups, L].

        An RQ-Transformer puts none there.
        """
        rows = torch.arange(0, len(items), self.num_generations, device=items.device)[:LEAK_QUESTIONS]
        if rq_transformer_of(self.model) is not None:
            return torch.zeros(len(rows), self.trie.n_levels, device=items.device)
        head, trie, vocabulary = (
            OutputHead.of(self.accelerator.unwrap_model(self.model)),
            self.trie,
            self.renderer.vocabulary,
        )
        with self.accelerator.autocast():
            prompts = scored["prompt_ids"][rows], scored["prompt_mask"][rows]
            hidden = group_states(self.model, *prompts, items[rows], vocabulary, trie)
            return head.call(
                lambda whole, states: leaked_mass_by_level(states, items[rows], whole, vocabulary, trie), hidden
            )

    def _note(self, name: str, value: Tensor, over_processes: Literal["mean", "max"] = "mean") -> None:
        """Log a figure of this update, NaN where a process has none; all processes call it."""
        values = self.accelerator.gather(value)
        self._metrics["train"][name].append((values.max() if over_processes == "max" else values.nanmean()).item())

    def _items(self, completion_ids: Tensor) -> Tensor:
        first_tokens = torch.tensor(self.renderer.vocabulary.first_tokens, device=completion_ids.device)
        return self.trie.item_of(completion_ids - first_tokens)

    def _codes(self, items: Tensor) -> Tensor:
        """int64 [R, L]."""
        levels = [
            self.trie.code[level][self.trie.node_of_item[level + 1][items]] for level in range(self.trie.n_levels)
        ]
        return torch.stack(levels, dim=1).long()

    def _log_probs(self, model: nn.Module, prompt_ids: Tensor, prompt_mask: Tensor, items: Tensor) -> GroupLogProbs:
        head = OutputHead.of(self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            return group_log_probs(model, head, prompt_ids, prompt_mask, items, self.renderer.vocabulary, self.trie)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_multimodal: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """log π of each completion token [B, L], and the entropy of each choice [B, L] when asked for. TRL calls it for π_old."""
        assert logits_to_keep == self.trie.n_levels, (
            f"completions of {logits_to_keep} tokens, SIDs of {self.trie.n_levels}"
        )
        items = self._items(input_ids[:, -logits_to_keep:])
        prompts = input_ids[:, :-logits_to_keep], attention_mask[:, :-logits_to_keep]
        policy = self._log_probs(model, *prompts, items)
        return policy.chosen, policy.entropies.detach() if compute_entropy else None, None

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The objective's loss, kl_weight times the exact KL to the reference, sft_loss_weight times -log π of what was taken."""
        objective, group, targets = self.objective, inputs["group"], inputs["targets"]
        prompts, mask, weights = inputs["prompt_ids"], inputs["prompt_mask"], inputs["weights"]
        items, n = self._items(inputs["completion_ids"]), len(inputs["completion_ids"])
        answered = torch.empty(0, dtype=torch.long, device=items.device)
        if objective.sft_loss_weight:
            answered = first_rows(group)
            answered = answered[targets[answered] != NO_TARGET]
        rows = torch.cat([torch.arange(n, device=items.device), answered])  # the taken items stand behind the groups
        policy = self._log_probs(model, prompts[rows], mask[rows], torch.cat([items, targets[answered]]))
        chosen, advantages, kl, reference = policy.chosen[:n], inputs["advantages"], None, None
        if self.reference is not None:
            with torch.no_grad():
                reference = self._log_probs(self.reference, prompts, mask, items)
            kl = torch.stack(
                [exact_kl(ours[:n], ref) for ours, ref in zip(policy.levels, reference.levels, strict=True)], 1
            )
            advantages = advantages - objective.kl_weight * self._above_group(divergence_to_come(kl.detach()), inputs)
        policy_loss = OBJECTIVES[objective.objective].loss
        if policy_loss is None:
            assert reference is not None, "s_dpo compares with a reference model"
            loss = self._s_dpo(chosen, reference, group, items == targets)
        else:
            old = inputs.get("old_per_token_logps")
            old = chosen.detach() if old is None else old
            loss = policy_loss(chosen, old, advantages, weights, Clip(self.epsilon_low, self.epsilon_high))
        if kl is not None:
            loss = loss + objective.kl_weight * (weights[:, None] * kl).mean()
            self._note("kl/mean", kl.detach().mean())
            self._note("kl/max", kl.detach().max(), "max")
        if objective.sft_loss_weight:
            sft_loss = -policy.chosen[n:].sum() / max(1, policy.chosen[n:].numel())
            loss = loss + objective.sft_loss_weight * sft_loss
            self._note("sft_loss", sft_loss.detach())
        self._note("entropy", policy.entropies[:n].detach().mean())
        return loss / self.current_gradient_accumulation_steps

    def _above_group(self, costs: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Each row's costs [B, L] less the weighted mean of its group's rows here: accumulation may part a group."""
        group, weights = inputs["group"], inputs["weights"][:, None]
        sums = costs.new_zeros(int(group.max()) + 1, costs.shape[1] + 1)
        sums.index_add_(0, group, torch.cat([weights * costs, weights], 1))
        return costs - (sums[:, :-1] / sums[:, -1:])[group]

    def _s_dpo(self, chosen: Tensor, reference: GroupLogProbs, group: Tensor, hits: Tensor) -> Tensor:
        order = torch.argsort(group, stable=True)
        margins = (chosen - reference.chosen).sum(1)[order].view(-1, self.num_generations)
        hits = hits[order].view(-1, self.num_generations)
        with_hit = hits.any(1)
        return (
            s_dpo(margins[with_hit], hits[with_hit], self.objective.s_dpo_beta) if with_hit.any() else margins.sum() * 0
        )

    def list_figures(self, lists: np.ndarray) -> dict[str, float]:
        return self.of_lists(lists)

    def measure(self, prefix: str) -> dict[str, float]:
        """Adds figures that choose a checkpoint; see `with_kept`."""
        metrics = super().measure(prefix)
        recall = f"{prefix}_recall@50"
        start = next((row for row in self.state.log_history if recall in row), metrics)
        return with_kept(metrics, start, prefix, self.recall_margin)


class Question(str):
    """A prompt that knows the item taken next (`target`): TRL hands nothing but the prompts to a rollout function."""

    target: int

    @classmethod
    def of(cls, row: dict[str, Any]) -> Question:
        """The question of a row of `training_prompts`."""
        question = cls(row["prompt"])
        question.target = row["target"]
        return question


def first_rows(group: Tensor) -> Tensor:
    """int64 [P]: one row of every group. group: int64 [B]."""
    order = torch.argsort(group, stable=True)
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[1:] = group[order][1:] != group[order][:-1]
    return order[starts]


def rollout(prompts: list[Question], trainer: SidGRPOTrainer) -> dict[str, list | None]:
    """TRL's rollout function: for every prompt, a group of G items (rl/groups.py).

    TRL hands each prompt over G times in a row, so a process must hold whole groups. Beside what TRL asks for, a row has codes (L
    integers), item (its index, as `items`), weight (how much the draw counts) and target_prob (π of the taken item, 0 where nothing asks
    for it).
    """
    size, objective = trainer.num_generations, trainer.objective
    distinct = prompts[::size]
    assert [prompt for prompt in distinct for _ in range(size)] == prompts, "a process must hold whole groups"
    prompt_ids = trainer.processing_class(distinct, add_special_tokens=False)["input_ids"]
    longest = max(len(ids) for ids in prompt_ids)
    device = trainer.accelerator.device
    padded = torch.tensor([[ids[0]] * (longest - len(ids)) + ids for ids in prompt_ids], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
    vocabulary, trie = trainer.renderer.vocabulary, trainer.trie
    with (
        whole_model(trainer) as model,
        trainer.accelerator.autocast(),
    ):

        def search(rows: Tensor, width: int, generators: list[torch.Generator] | None) -> Beams:
            return beam_search(model, padded[rows], mask[rows], vocabulary, trie, width, generators=generators)

        seeds = [f"{trainer.args.seed} {trainer.state.global_step} {prompt}" for prompt in distinct]
        groups, beams = draw_groups(search, len(distinct), size, objective.draw, seeds)
        probabilities = torch.zeros(len(distinct), device=device)
        if objective.inject_target or "hit_at_k" in objective.rewards:
            targets = torch.tensor([question.target for question in distinct], device=device)
            with torch.no_grad():
                probabilities = trainer._log_probs(model, padded, mask, targets.clamp(min=0)).chosen.sum(1).exp()
            probabilities = torch.where(targets >= 0, probabilities, 0.0)
        if objective.inject_target:
            groups = with_targets(groups, beams, targets, probabilities)
    weights = groups.weights if objective.importance_weights else torch.ones_like(groups.weights)
    items = groups.items.flatten().cpu()
    assert bool((items >= 0).all()), f"fewer than {size} items could be drawn"
    completion_ids = trainer.renderer.tokens_of(items)
    codes = completion_ids - torch.tensor(vocabulary.first_tokens)
    return {
        "prompt_ids": [ids for ids in prompt_ids for _ in range(size)],
        "completion_ids": completion_ids.tolist(),
        "logprobs": None,
        "codes": codes.tolist(),
        "items": items.tolist(),
        "weight": weights.flatten().tolist(),
        "target_prob": probabilities.repeat_interleave(size).tolist(),
    }
