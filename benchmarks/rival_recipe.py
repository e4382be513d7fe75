"""RL as the nearest rival does it (MiniOneRec, arXiv 2510.24431), on this project's rollouts: a stage like rl/grpo.py, for comparison.

python -m benchmarks.rival_recipe --run_dir rival --draw beams --inject_target false --rewards exact_hit rank_penalty --reward_weights 1 1

Groups are the most probable items by beam search, taken for samples; log-probabilities are over the whole vocabulary; the divergence to
the SFT model is estimated by k3 on the drawn codes (weight 0.001); advantages are divided by the group's standard deviation; a reward for
the hit and a penalty by rank for the others of a group that hits. Flags are those of rl/grpo.py.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import item_log_probs
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.rl.group_log_probs import group_states
from sidrec.rl.practice import practise
from sidrec.rl.settings import CONFIGS, REFUSED
from sidrec.rl.trainer import SidGRPOTrainer

K3_WEIGHT = 1e-3


class RivalTrainer(SidGRPOTrainer):
    """The rival's loss: -mean(exp(log p - sg(log p)) A - K3_WEIGHT k3), p over the whole vocabulary, k3 = r - log r - 1, r = p_SFT / p."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # before TRL has it: a copy of a model that accelerate has wrapped would run the original
        self.sft_model = copy.deepcopy(kwargs["model"]).eval().requires_grad_(False)
        super().__init__(*args, **kwargs)
        self.sft_model.to(self.args.device)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        items = self._items(inputs["completion_ids"])
        log_probs = self._full_log_probs(model, inputs, items)
        with torch.no_grad():
            log_ratio = self._full_log_probs(self.sft_model, inputs, items) - log_probs.detach()
        self._note("kl/mean", (log_ratio.exp() - log_ratio - 1).mean())
        self._note("kl/max", (log_ratio.exp() - log_ratio - 1).max(), "max")
        # the gradient of k3 through log p is 1 - r
        k3 = (1 - log_ratio.exp()) * (log_probs - log_probs.detach())
        gain = (log_probs - log_probs.detach()).exp() * inputs["advantages"]
        return (K3_WEIGHT * k3 - gain).mean() / self.current_gradient_accumulation_steps

    def _full_log_probs(self, model: nn.Module, inputs: dict[str, Any], items: Tensor) -> Tensor:
        """float32 [B, L]: log-probabilities of the items' tokens in the softmax over the whole vocabulary."""
        head, vocabulary, trie = (
            OutputHead.of(self.accelerator.unwrap_model(model)),
            self.renderer.vocabulary,
            self.trie,
        )
        with self.accelerator.autocast():
            states = group_states(model, inputs["prompt_ids"], inputs["prompt_mask"], items, vocabulary, trie)
            return head.call(
                lambda whole, hidden: item_log_probs(hidden, items, whole, vocabulary, trie, "full"), states
            )


def main(arguments: list[str] | None = None) -> None:
    """rl/grpo.py with the rival's trainer."""
    config, objective, training = parse_configs(CONFIGS, arguments, stage="rl", refused=REFUSED)
    practise(config, objective, training, trainer_kind=RivalTrainer)


if __name__ == "__main__":
    run_as_command(main)
