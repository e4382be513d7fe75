"""TRL's GRPOTrainer on the one policy.

What is overridden of TRL 1.16, and nothing else: `rollout_func` is given (public, experimental), the private
`_get_per_token_logps_and_entropies` is replaced, `evaluate` recommends on the valid cases. `tests/test_grpo.py` fails when TRL's
side of this changes.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from decoding.beam_search import beam_search
from decoding.output_head import OutputHead
from rl.group_log_probs import group_log_probs
from sft.validation import RecommendingValidation


class SidGRPOTrainer(RecommendingValidation, GRPOTrainer):
    """Groups of G distinct items drawn from π without replacement; log-probabilities over the codes that exist."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rollout_func=rollout, **kwargs)

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
        """log π of each completion token [B, L], and the entropy of each choice [B, L] when asked for."""
        assert logits_to_keep == self.trie.n_levels, (
            f"completions of {logits_to_keep} tokens, SIDs of {self.trie.n_levels}"
        )
        first_tokens = torch.tensor(self.renderer.vocabulary.first_tokens, device=input_ids.device)
        items = self.trie.item_of(input_ids[:, -logits_to_keep:] - first_tokens)
        head = OutputHead.of(self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            log_probs, entropies = group_log_probs(
                model,
                head,
                input_ids[:, :-logits_to_keep],
                attention_mask[:, :-logits_to_keep],
                items,
                self.renderer.vocabulary,
                self.trie,
            )
        return log_probs, entropies.detach() if compute_entropy else None, None

    def measure(self, prefix: str) -> dict[str, float]:
        """Adds `kept_ndcg@10`: NDCG@10, or 0 when Recall@10 is below that of the model that training began with.

        A reward on hits sharpens the top of the list; chosen by this, it does so only where nothing is lost further down.
        """
        metrics = super().measure(prefix)
        recall = f"{prefix}_recall@10"
        start = next((row[recall] for row in self.state.log_history if recall in row), metrics[recall])
        kept = metrics[f"{prefix}_ndcg@10"] if metrics[recall] >= start else 0.0
        return metrics | {f"{prefix}_kept_ndcg@10": kept}


def draw_generator(seed: int, step: int, prompt: str) -> torch.Generator:
    """The randomness of one prompt's group: the same whichever process draws it, and after a resume."""
    digest = hashlib.sha256(f"{seed} {step} {prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def rollout(prompts: list[str], trainer: SidGRPOTrainer) -> dict[str, list | None]:
    """TRL's rollout function: for every prompt, G distinct items by Gumbel top-k over π.

    TRL hands each prompt over G times in a row, so a process must hold whole groups.
    """
    group_size = trainer.num_generations
    distinct = prompts[::group_size]
    assert [prompt for prompt in distinct for _ in range(group_size)] == prompts, "a process must hold whole groups"
    prompt_ids = trainer.processing_class(distinct, add_special_tokens=False)["input_ids"]
    longest = max(len(ids) for ids in prompt_ids)
    device = trainer.accelerator.device
    padded = torch.tensor([[ids[0]] * (longest - len(ids)) + ids for ids in prompt_ids], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
        trainer.accelerator.autocast(),
    ):
        found = beam_search(
            model,
            padded,
            mask,
            trainer.renderer.vocabulary,
            trainer.trie,
            group_size,
            generators=[draw_generator(trainer.args.seed, trainer.state.global_step, prompt) for prompt in distinct],
        )
    items = found.items.flatten().cpu()
    assert bool((items >= 0).all()), f"fewer than {group_size} items could be drawn"
    completion_ids = trainer.renderer.tokens_of(items)
    codes = completion_ids - torch.tensor(trainer.renderer.vocabulary.first_tokens)
    return {
        "prompt_ids": [ids for ids in prompt_ids for _ in range(group_size)],
        "completion_ids": completion_ids.tolist(),
        "logprobs": None,
        "codes": codes.tolist(),
    }
