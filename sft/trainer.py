"""TRL's SFTTrainer with the loss of the one policy, and a validation that recommends instead of measuring a loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTTrainer

from data.dataset import Cases
from data.stage import InputError, Stage
from decoding.policy import SidVocabulary, item_log_probs
from decoding.recommender import Recommender
from decoding.renderer import Renderer
from decoding.trie import SidTrie
from sft.sequences import NO_ITEM

VALID_K = 10


def finished_already(stage: Stage, overwrite: bool) -> bool:
    """Whether there is nothing to do, and a word when so. Changes nothing: bad input that is found later claims no folder."""
    if overwrite or not stage.is_finished():
        return False
    if PartialState().is_main_process:
        Console().print(f"{stage.name}: finished already, nothing to do ({stage.folder})", soft_wrap=True)
    return True


def begin_stage(stage: Stage, overwrite: bool) -> None:
    """`Stage.begin` in every process, the first one first; only it may delete."""
    state = PartialState()
    with state.main_process_first():
        stage.begin(overwrite and state.is_main_process)


def sample_cases(cases: Cases, n: int, seed: int) -> Cases:
    """At most `n` cases, drawn once by the seed. Raises InputError when there are none to choose a checkpoint by."""
    if not len(cases):
        raise InputError("the data have no valid interactions, so no checkpoint can be chosen; prepare more data.")
    if len(cases) <= n:
        return cases
    return cases.take(np.sort(np.random.default_rng(seed).choice(len(cases), n, replace=False)))


class SidSFTTrainer(SFTTrainer):
    """Overrides two methods of TRL 1.16's SFTTrainer: `compute_loss` and `evaluate`."""

    def __init__(self, *args: Any, renderer: Renderer, trie: SidTrie, valid_cases: Cases, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.renderer = renderer
        self.trie = trie.to(self.args.device)
        self.valid_cases = valid_cases

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean over codes of -log π, forced codes counted as the zeros they are.

        `num_items_in_batch`: codes with a loss in the batches of all processes and accumulation steps.
        """
        total = sequence_loss(
            model, self._head(), inputs["input_ids"], inputs["items"], self.renderer.vocabulary, self.trie
        )
        if num_items_in_batch is None:
            return total / (inputs["items"] != NO_ITEM).sum() / self.trie.n_levels
        # the gradients of the processes are averaged, and each divides by the codes of all of them
        return total * self.accelerator.num_processes / num_items_in_batch

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Recall@10 and NDCG@10 on the valid cases, seen items excluded, by constrained decoding, shared among the processes."""
        metrics = valid_metrics(self, self.valid_cases, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _head(self) -> Tensor:
        return self.accelerator.unwrap_model(self.model).get_output_embeddings().weight


def sequence_loss(
    model: PreTrainedModel, head: Tensor, input_ids: Tensor, items: Tensor, vocabulary: SidVocabulary, trie: SidTrie
) -> Tensor:
    """Sum of -log π over the codes of all `items` that have a loss.

    model: the wrapped model (its forward is called, so that gradients are reduced). head: output rows [V, H]. input_ids: int64
    [B, 1 + J·L]. items: int64 [B, J], NO_ITEM where there is no loss.
    """
    n_rows, n_items = items.shape
    assert input_ids.shape == (n_rows, 1 + n_items * trie.n_levels), (
        f"{tuple(input_ids.shape)} for {tuple(items.shape)} items"
    )
    output = model(input_ids=input_ids, output_hidden_states=True, logits_to_keep=1, use_cache=False)
    # the hidden state before a code's token predicts it: states 0 … L-1 predict the first item's codes
    hidden = output.hidden_states[-1][:, :-1].unflatten(1, (n_items, trie.n_levels))  # [B, J, L, H]
    with_loss = items != NO_ITEM
    return -item_log_probs(hidden[with_loss], items[with_loss], head, vocabulary, trie).sum()


def valid_metrics(trainer: Any, cases: Cases, prefix: str) -> dict[str, float]:
    """Recall@10 and NDCG@10 of a trainer's present model; each process takes its share of the cases and all get the mean.

    In float32, as the saved model will be: so these are the figures that `evaluation.evaluate` finds on the same cases.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    share = cases.take(np.arange(trainer.accelerator.process_index, len(cases), trainer.accelerator.num_processes))
    recommender = Recommender(model, trainer.renderer, trainer.trie)
    lists = recommender.recommend(share.histories, VALID_K, exclude_seen=True).items
    model.train(was_training)
    hits = lists == share.targets[:, None]
    gains = (hits / np.log2(np.arange(2, VALID_K + 2))).sum()
    sums = torch.tensor([hits.sum(), gains, len(share)], dtype=torch.float32, device=trainer.args.device)
    hit_sum, gain_sum, n_cases = trainer.accelerator.reduce(sums, "sum").tolist()
    return {f"{prefix}_recall@{VALID_K}": hit_sum / n_cases, f"{prefix}_ndcg@{VALID_K}": gain_sum / n_cases}
