"""Training sequences: a user's whole training history in one row, the loss on every item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset as TrainingRows
from torch import Tensor

from decoding.renderer import Renderer

NO_ITEM = -1
NO_LABEL = -100


def training_rows(sequences: Sequence[np.ndarray], max_items: int) -> TrainingRows:
    """One row a user; a history longer than `max_items` is cut into windows that overlap by half.

    Columns: items (list of item indices, oldest first), context (the number of first items without a loss, because an earlier
    window had them), length (items in the row, for batches of similar length). Every item has its loss exactly once.
    """
    assert max_items >= 2, f"a context of {max_items} items holds no history and target"
    rows: dict[str, list] = {"items": [], "context": [], "length": []}
    for sequence in sequences:
        for start, stop, context in windows(len(sequence), max_items):
            rows["items"].append(sequence[start:stop].tolist())
            rows["context"].append(context)
            rows["length"].append(stop - start)
    return TrainingRows.from_dict(rows)


def windows(length: int, max_items: int) -> list[tuple[int, int, int]]:
    """(start, stop, context) of each window over a history of `length` items; the last one ends at the newest item."""
    if length <= max_items:
        return [(0, length, 0)]
    step = max_items // 2
    starts = [*range(0, length - max_items, step), length - max_items]
    stops = [start + max_items for start in starts]
    contexts = [0, *(previous - start for previous, start in zip(stops, starts[1:], strict=False))]
    return list(zip(starts, stops, contexts, strict=True))


class SequenceCollator:
    """Rows → a right-padded batch.

    input_ids: int64 [B, 1 + J·L], padded on the right (causal attention never looks there, so no attention mask is needed).
    items: int64 [B, J], NO_ITEM where there is no loss. labels: int64, shape of input_ids: the token ids that have a loss,
    NO_LABEL elsewhere; only counted, by the trainer, to average over the tokens of all processes.
    """

    def __init__(self, renderer: Renderer, pad_token: int) -> None:
        self.renderer = renderer
        self.pad_token = pad_token

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        n_levels = self.renderer.codes.shape[1]
        longest = max(len(row["items"]) for row in rows)
        input_ids = torch.full((len(rows), 1 + longest * n_levels), self.pad_token)
        items = torch.full((len(rows), longest), NO_ITEM)
        for i, row in enumerate(rows):
            tokens = self.renderer.tokens(np.asarray(row["items"]))
            input_ids[i, : len(tokens)] = tokens
            items[i, row["context"] : len(row["items"])] = torch.tensor(row["items"][row["context"] :])
        has_loss = (items != NO_ITEM).repeat_interleave(n_levels, dim=1)
        labels = torch.full_like(input_ids, NO_LABEL)
        labels[:, 1:] = input_ids[:, 1:].masked_fill(~has_loss, NO_LABEL)
        return {"input_ids": input_ids, "items": items, "labels": labels}
