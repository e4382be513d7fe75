"""Two models on the same cases, whatever catalogue each has: ranks in their lists, and the paired difference with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sidrec.baselines.blend import Blend
from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import ndcg_at, ranks_in_lists, recall_at
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation.statistics import p_in_words, paired_test
from sidrec.pipeline.screen import Screen

K, DEEPEST = 10, 50
FEW_CASES = 200  # with fewer, the interval of Recall@10 reaches some .05 to either side
METRICS = {"recall@10": recall_at, "ndcg@10": ndcg_at}
NAMES = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}


def in_lists(model: Recommender | Blend, cases: EvalCases, label: str, screen: Screen) -> np.ndarray:
    """0-based ranks of the targets in the model's first 50 items without those of the history, int64 [B]; 50 where absent."""
    with screen.bar(label, len(cases), "cases") as bar:
        lists = model.recommend(cases.histories, DEEPEST, exclude_seen=True, progress=bar.advance)
    return ranks_in_lists(lists.items, cases.targets)


def compared(first: np.ndarray, second: np.ndarray, cases: EvalCases, seed: int) -> dict[str, Any]:
    """By metric: both means and the paired difference of the second less the first, over users. first, second: ranks, int64 [B], of the old
    and the new model."""
    users = np.array(cases.user_ids)
    figures: dict[str, Any] = {"cases": len(cases), "users": len(np.unique(users))}
    for name, metric in METRICS.items():
        a, b = metric(first, K), metric(second, K)
        figures[name] = {
            "first": float(a.mean()),
            "second": float(b.mean()),
            **vars(paired_test(b, a, seed, users=users)),
        }
    return figures


def lines(figures: Mapping[str, Any], first: str, second: str) -> list[str]:
    """What `compared` gives, a line a metric, and whether the cases are few. first, second: what the models are called."""
    told = [f"{second} − {first}, {figures['cases']:,} cases of {figures['users']:,} users, seen items masked"]
    for metric, name in NAMES.items():
        row = figures[metric]
        told.append(
            f"{name}: {row['second']:.4f} − {row['first']:.4f} = {row['difference']:+.4f} (95 % interval {row['low']:+.4f} to "
            f"{row['high']:+.4f}), p {p_in_words(row['p'], row['p'])}"
        )
    if figures["cases"] < FEW_CASES:
        told.append(
            f"{figures['cases']:,} case{'' if figures['cases'] == 1 else 's'}, fewer than {FEW_CASES}, say little: a difference within the "
            "intervals may be chance; compare again when there are more events"
        )
    return told
