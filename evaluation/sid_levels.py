"""How many codes of the next item's semantic ID a model gets right, level by level."""

from __future__ import annotations

import numpy as np

from sidrec.tokenizer.report.sid_metrics import prefix_ids


def prefix_hits(items: np.ndarray, targets: np.ndarray, codes: np.ndarray) -> dict[str, list[float]]:
    """top1: share of cases whose first item has the target's first d codes, for d = 1…L. recall@10: one of the list's items has them.

    items: int [B, k], best first, -1 for "no item"; targets: int [B]; codes: int [N, L], unique per row.
    """
    ids = prefix_ids(codes)  # [N, L]
    agrees = (ids[items] == ids[targets][:, None]) & (items >= 0)[..., None]  # [B, k, L]
    return {"top1": agrees[:, 0].mean(axis=0).tolist(), "recall@10": agrees.any(axis=1).mean(axis=0).tolist()}


def by_chance(targets: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> list[float]:
    """`top1` of an item that is drawn at random by its training interactions, counts [N]; exact, for d = 1…L."""
    shares = []
    for ids in prefix_ids(codes).T:
        of_prefix = np.bincount(ids, weights=counts) / counts.sum()
        shares.append(float(of_prefix[ids[targets]].mean()))
    return shares
