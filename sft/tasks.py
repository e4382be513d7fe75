"""What the model is taught: rows that say which items make an example of which task. `sft/examples.py` turns a row into tokens.

A row has the columns task (one of TASKS), items (item indices, oldest first), context (how many of the first items are given; the
others are answers) and length (its tokens, before an opening of a conversation). Interactions for training only are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from datasets import Dataset as TrainingRows
from datasets import concatenate_datasets

from sidrec.pipeline.errors import InputError
from sidrec.sft.own_text import TOKENS
from sidrec.sft.settings import TaskConfig


@dataclass(frozen=True)
class ItemWords:
    """Tokens of every item's text and of its title, as examples have them: integers [N] each, 0 where there is none."""

    texts: np.ndarray
    titles: np.ndarray

    @property
    def has_text(self) -> np.ndarray:
        """bool [N]: which items have a text and a title to learn from."""
        return (self.texts > 0) & (self.titles > 0)


def task_rows(
    sequences: Sequence[np.ndarray],
    words: ItemWords,
    n_levels: int,
    max_items: int,
    tasks: TaskConfig,
    seed: int,
    question_tokens: int = 0,
    own_texts: int = 0,
) -> TrainingRows:
    """The rows of all tasks that have a weight. sequences: every user's training items; words: how long the items' texts are.
    question_tokens: of a question, beside the title in it, at most. own_texts: how many there are."""
    makers: dict[str, Callable[[str], TrainingRows]] = {
        "next_item": lambda task: next_item_rows(sequences, max_items, n_levels, tasks.history_overlap),
        "next_item_windows": lambda task: window_rows(task, sequences, tasks.window_items, n_levels),
        "text_to_item": lambda task: item_rows(task, words, n_levels),
        "item_to_text": lambda task: item_rows(task, words, n_levels),
        "titles_to_next_item": lambda task: window_rows(task, sequences, tasks.window_items, n_levels, words),
        "history_to_next_title": lambda task: window_rows(task, sequences, tasks.window_items, n_levels, words),
        "question_to_item": lambda task: question_rows(task, sequences, words, n_levels, question_tokens),
        "own_text": lambda task: own_text_rows(task, own_texts, len(sequences)),
    }
    parts = []
    for number, (task, weight) in enumerate(tasks.weights.items()):
        if weight:
            rows = makers[task](task)
            if not len(rows):
                raise InputError(
                    f"{task}={weight:g} has no examples in these data; set it to 0 or give the items texts."
                )
            parts.append(rows.select(picked(len(rows), weight, seed + number)))
    return concatenate_datasets(parts)


def picked(n: int, weight: float, seed: int) -> np.ndarray:
    """Which of `n` examples are taken, ascending: all of them as often as `weight` is whole, and of the rest of it a random part."""
    whole, part = divmod(weight, 1)
    extra = np.random.default_rng(seed).choice(n, round(part * n), replace=False)
    return np.sort(np.concatenate([np.tile(np.arange(n), int(whole)), extra]).astype(np.int64))


def rows_of(task: str, items: list[list[int]], contexts: list[int], lengths: list[int]) -> TrainingRows:
    return TrainingRows.from_dict({"task": [task] * len(items), "items": items, "context": contexts, "length": lengths})


def next_item_rows(
    sequences: Sequence[np.ndarray], max_items: int, n_levels: int, overlap: float = 0.5
) -> TrainingRows:
    """One row a user; a history longer than `max_items` is cut into `windows`.

    Every item is an answer exactly once; the first items of a later window are given, because an earlier one asked for them.
    """
    assert max_items >= 2, f"a context of {max_items} items holds no history and target"
    items, contexts = [], []
    for sequence in sequences:
        for start, stop, context in windows(len(sequence), max_items, overlap):
            items.append(sequence[start:stop].tolist())
            contexts.append(context)
    return rows_of("next_item", items, contexts, [1 + n_levels * len(row) for row in items])


def windows(length: int, max_items: int, overlap: float) -> list[tuple[int, int, int]]:
    """(start, stop, context) of each window over a history of `length` items, oldest first.

    The last one ends at the newest item, and all but the first are `max_items` long and begin with a context, the share `overlap` of
    them (one item at least), that the window before ended with.
    """
    step = min(max_items - 1, max(1, round(max_items * (1 - overlap))))
    later = -(-max(0, length - max_items) // step)  # windows after the first
    first = length - later * step
    return [
        (0, first, 0),
        *((stop - max_items, stop, max_items - step) for stop in range(first + step, length + 1, step)),
    ]


def window_rows(
    task: str, sequences: Sequence[np.ndarray], window_items: int, n_levels: int, words: ItemWords | None = None
) -> TrainingRows:
    """One row for every interaction that has another before it: the newest `window_items` items before it, then the answer.

    With `words`, for tasks with titles: items without a text are left out, and an answer that stands in its own window is not asked for,
    since its title would be both given and wanted.
    """
    items = []
    for sequence in sequences:
        known = sequence if words is None else sequence[words.has_text[sequence]]
        for position in range(1, len(known)):
            window = known[max(0, position - window_items) : position + 1].tolist()
            if words is None or window[-1] not in window[:-1]:
                items.append(window)
    lengths = [window_length(task, row, n_levels, words) for row in items]
    return rows_of(task, items, [len(row) - 1 for row in items], lengths)


def window_length(task: str, items: list[int], n_levels: int, words: ItemWords | None) -> int:
    """Tokens of a row of a task with windows, as `sft/examples.py` writes it."""
    if words is None:
        return 1 + n_levels * len(items)
    if task == "titles_to_next_item":
        return (
            int(words.titles[items[:-1]].sum()) + len(items) + n_levels
        )  # a control token before each title, and <next>
    return 1 + n_levels * (len(items) - 1) + 1 + int(words.titles[items[-1]]) + 1  # <history> … <text> … <eos>


def item_rows(task: str, words: ItemWords, n_levels: int) -> TrainingRows:
    """One row for every item that has a text."""
    items = np.flatnonzero(words.has_text)
    marks = 3 if task == "item_to_text" else 2  # two control tokens, and <eos> after words that are asked for
    lengths = words.texts[items] + n_levels + marks
    return rows_of(task, [[int(item)] for item in items], [0] * len(items), lengths.tolist())


def question_rows(
    task: str, sequences: Sequence[np.ndarray], words: ItemWords, n_levels: int, question_tokens: int
) -> TrainingRows:
    """One row for every two different items that follow one another and have texts: what is asked with, and the answer."""
    items = []
    for sequence in sequences:
        known = sequence[words.has_text[sequence]]
        items += [[int(asked), int(answer)] for asked, answer in pairwise(known) if asked != answer]
    lengths = [int(words.titles[asked]) + question_tokens + n_levels for asked, _ in items]
    return rows_of(task, items, [1] * len(items), lengths)


def own_text_rows(task: str, n_texts: int, n_rows: int) -> TrainingRows:
    """So many rows, each with the number of one of the model's own texts in the place of an item."""
    return rows_of(task, [[row % n_texts] for row in range(n_rows)], [0] * n_rows, [TOKENS] * n_rows)
