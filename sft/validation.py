"""Validation of a trainer by what the model is for: it recommends, and Recall says how well."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import ndcg_at, ranks_in_lists, recall_at
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.sft.early_stopping import StayFinished
from sidrec.sft.unsharded import whole_model

VALID_K, DEEP_K = 10, 50


class RecommendingValidation:
    """Mixed into a transformers Trainer, before it: `evaluate` recommends for the valid cases instead of averaging a loss."""

    def __init__(self, *args: Any, renderer: Renderer, trie: SidTrie, valid_cases: EvalCases, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.renderer = renderer
        self.trie = trie.to(self.args.device)  # type: ignore[attr-defined]
        self.valid_cases = valid_cases
        self.add_callback(StayFinished())  # type: ignore[attr-defined]

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Recall@10, NDCG@10 and Recall@50 on the valid cases, seen items excluded, by constrained decoding, and the loss, shared among the
        processes."""
        metrics = self.measure(metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self, prefix: str) -> dict[str, float]:
        """What `evaluate` logs and the best checkpoint is chosen by."""
        return valid_metrics(self, self.valid_cases, prefix)


def sample_cases(cases: EvalCases, n: int, seed: int) -> EvalCases:
    """At most `n` cases, drawn once by the seed. Raises InputError when there are none to choose a checkpoint by."""
    if not len(cases):
        raise InputError("the data have no valid interactions, so no checkpoint can be chosen; prepare more data.")
    if len(cases) <= n:
        return cases
    return cases.take(np.sort(np.random.default_rng(seed).choice(len(cases), n, replace=False)))


def valid_metrics(trainer: Any, cases: EvalCases, prefix: str) -> dict[str, float]:
    """Recall@10, NDCG@10 and Recall@50 of a trainer's present model; each process takes its share of the cases and all get the mean.

    loss: the mean -log π of the cases' codes, as training's is, but without dropout. In float32, as the saved model will be: so these are
    the figures that `sidrec.evaluation.evaluate` finds on the same cases.
    """
    share = cases.take(np.arange(trainer.accelerator.process_index, len(cases), trainer.accelerator.num_processes))
    with whole_model(trainer) as model:
        was_training = model.training
        model.eval()
        recommender = Recommender(model, trainer.renderer, LiveCatalogue(trainer.trie))
        lists = recommender.recommend(share.histories, DEEP_K, exclude_seen=True).items
        loss = -recommender.log_probs_of(share.histories, share.targets).sum() / trainer.trie.n_levels
        model.train(was_training)
    ranks = ranks_in_lists(lists, share.targets)
    figures = {
        f"recall@{VALID_K}": recall_at(ranks, VALID_K).sum(),
        f"ndcg@{VALID_K}": ndcg_at(ranks, VALID_K).sum(),
        f"recall@{DEEP_K}": recall_at(ranks, DEEP_K).sum(),
        "loss": loss,
    }
    sums = torch.tensor([*figures.values(), len(share)], dtype=torch.float32, device=trainer.args.device)
    *totals, n_cases = trainer.accelerator.reduce(sums, "sum").tolist()
    return {f"{prefix}_{name}": total / n_cases for name, total in zip(figures, totals, strict=True)}
