"""Questions to practise on: prefixes of training histories, each with the training item that came next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset as TrainingRows
from transformers import PreTrainedTokenizerBase

from decoding.renderer import Renderer


def training_prompts(
    sequences: Sequence[np.ndarray],
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    positions_per_user: int,
) -> TrainingRows:
    """The newest `positions_per_user` next-item questions of every user, from training interactions only.

    Columns: prompt (the rendered history as text, which the tokenizer turns back into the very same ids), target (item index).
    The newest are taken because they are closest to what will be asked after training.
    """
    opening = tokenizer.decode(renderer.opening)
    rows: dict[str, list] = {"prompt": [], "target": []}
    for sequence in sequences:
        for position in range(max(1, len(sequence) - positions_per_user), len(sequence)):
            tokens = renderer.tokens(sequence[:position]).tolist()[len(renderer.opening) :]
            rows["prompt"].append(opening + "".join(tokenizer.convert_ids_to_tokens(tokens)))
            rows["target"].append(int(sequence[position]))
    return TrainingRows.from_dict(rows)
