"""Questions to practise on: prefixes of training histories, each with the training item that came next, and whole training histories,
whose next item is not known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset as TrainingRows
from transformers import PreTrainedTokenizerBase

from sidrec.decoding.renderer import Renderer
from sidrec.pipeline.errors import InputError
from sidrec.sft.tasks import windows

NO_TARGET = -1  # the target of an open question


def history_rows(
    sequences: Sequence[np.ndarray], max_items: int, n_levels: int, positions_per_user: int
) -> TrainingRows:
    """Whole histories whose newest `positions_per_user` items are asked for, each after those before it: for exact expectations, which
    answer all questions of a history at once.

    Columns: those of `sft/tasks.py` (task, items, context, length), and user, the history's place in `sequences`. A history longer than
    `max_items` is cut into windows, of which only those that ask for something are rows. Raises InputError when there is nothing to ask.
    """
    columns: dict[str, list] = {name: [] for name in ("task", "items", "context", "length", "user")}
    for user, sequence in enumerate(sequences):
        oldest = max(1, len(sequence) - positions_per_user)  # of the items that are asked for
        for start, stop, context in windows(len(sequence), max_items, overlap=0.5):
            first = max(start + context, start + 1, oldest)
            if first < stop:
                row = ("next_item", sequence[start:stop].tolist(), first - start, 1 + n_levels * (stop - start), user)
                for name, value in zip(columns, row, strict=True):
                    columns[name].append(value)
    if not columns["user"]:
        raise InputError(f"positions_per_user={positions_per_user} leaves no question to practise on; raise it.")
    return TrainingRows.from_dict(columns)


def training_prompts(
    sequences: Sequence[np.ndarray],
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    positions_per_user: int,
    open_questions: bool,
) -> TrainingRows:
    """The newest `positions_per_user` next-item questions of every user, from training interactions only; with `open_questions` one more.

    Columns: prompt (the rendered history as text, which the tokenizer turns back into the very same ids), history (item indices), target
    (item index), user (the place of the sequence). The newest are taken because they are closest to what will be asked after training.
    An open question is what a user takes after all training interactions: nothing here knows its answer, so its target is NO_TARGET.
    Raises InputError when there is nothing to ask.
    """
    opening = tokenizer.decode(renderer.opening)
    rows: dict[str, list] = {"prompt": [], "history": [], "target": [], "user": []}
    for user, sequence in enumerate(sequences):
        for position in range(max(1, len(sequence) - positions_per_user), len(sequence) + open_questions):
            tokens = renderer.tokens(sequence[:position]).tolist()[len(renderer.opening) :]
            rows["prompt"].append(opening + "".join(tokenizer.convert_ids_to_tokens(tokens)))
            rows["history"].append(sequence[:position].tolist())
            rows["target"].append(int(sequence[position]) if position < len(sequence) else NO_TARGET)
            rows["user"].append(user)
    if not rows["prompt"]:
        raise InputError(
            f"positions_per_user={positions_per_user} and open_questions={open_questions} leave no question to practise on; "
            "raise positions_per_user or set open_questions to true."
        )
    return TrainingRows.from_dict(rows)
