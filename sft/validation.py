"""Validation of a trainer by what the model is for: it recommends, and Recall says how well."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import NO_ITEM, ndcg_at, ranks_in_lists, recall_at
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

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card in every checkpoint: the finished folder has one (`sft/model_card.py`)."""

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

    def list_figures(self, lists: np.ndarray) -> dict[str, float]:
        """Further figures of the lists for the valid cases, int64 [cases, 50]; none."""
        return {}


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
    lists, loss = valid_lists(trainer, cases)
    figures = accuracy(lists, cases) | trainer.list_figures(lists) | {"loss": loss}
    return {f"{prefix}_{name}": value for name, value in figures.items()}


def valid_lists(trainer: Any, cases: EvalCases) -> tuple[np.ndarray, float]:
    """The lists of a trainer's present model for the cases, int64 [cases, 50], in every process, and the mean loss."""
    process, n_processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    share = cases.take(np.arange(process, len(cases), n_processes))
    with whole_model(trainer) as model:
        was_training = model.training
        model.eval()
        recommender = Recommender(model, trainer.renderer, LiveCatalogue(trainer.trie))
        lists = recommender.recommend(share.histories, DEEP_K, exclude_seen=True).items
        loss = -recommender.log_probs_of(share.histories, share.targets).sum() / trainer.trie.n_levels
        model.train(was_training)
    rows = -(-len(cases) // n_processes)  # of the largest share
    padded = np.full((rows, lists.shape[1]), NO_ITEM)
    padded[: len(lists)] = lists
    device = trainer.args.device
    gathered = trainer.accelerator.gather(torch.from_numpy(padded).to(device)).cpu().numpy()
    by_case = gathered.reshape(n_processes, rows, -1).swapaxes(0, 1).reshape(n_processes * rows, -1)[: len(cases)]
    total = trainer.accelerator.reduce(torch.tensor(loss, dtype=torch.float32, device=device), "sum").item()
    return by_case, total / len(cases)


def accuracy(lists: np.ndarray, cases: EvalCases) -> dict[str, float]:
    """Recall@10, NDCG@10 and Recall@50. lists: int64 [cases, 50]."""
    ranks = ranks_in_lists(lists, cases.targets)
    return {
        f"recall@{VALID_K}": float(recall_at(ranks, VALID_K).mean()),
        f"ndcg@{VALID_K}": float(ndcg_at(ranks, VALID_K).mean()),
        f"recall@{DEEP_K}": float(recall_at(ranks, DEEP_K).mean()),
    }
