"""Rows of tasks → tokens, with a label where something is to be learnt.

    next_item, next_item_windows   <history> SID SID SID …              every SID that is no context is an answer
    text_to_item                   <text> words <item> SID              the SID
    item_to_text                   <item> SID <text> words <eos>        the words and <eos>
    titles_to_next_item            <text> title <text> title <next> SID the SID
    history_to_next_title          <history> SID SID <text> title <eos> the title and <eos>
    question_to_item               a person's question SID              the SID (`sft/questions.py`)
    own_text                       words of the model's own             the words (`sft/own_text.py`)

A history is written as in serving (decoding/renderer.py), before the model's opening of the conversation where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sidrec.decoding.renderer import Renderer
from sidrec.pipeline.errors import InputError
from sidrec.sft.item_dropout import ItemDropout
from sidrec.sft.questions import Questions
from sidrec.sft.settings import TASKS
from sidrec.sft.tasks import ItemWords

NO_ITEM = -1
NO_LABEL = -100
# what the user asks for in a chat; the example is the beginning of the assistant's answer
QUESTIONS = {
    "next_item": "Which items will this customer take, one after the other?",
    "text_to_item": "Which item has this text?",
    "item_to_text": "What is the text of this item?",
    "titles_to_next_item": "Which item comes after the items with these titles?",
    "history_to_next_title": "What is the title of the item that comes after these items?",
}


@dataclass(frozen=True)
class Example:
    """tokens: int64 [T]. items: int64 [T], the item whose SID is an answer and begins here, NO_ITEM elsewhere. labels: int64 [T], the
    token where it is a part of an answer, NO_LABEL elsewhere."""

    tokens: Tensor
    items: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ExampleRenderer:
    """texts, titles: token ids of every item's text and title. end_token: ends a text. openings: token ids before the example, by
    task; none where the model has no chat template. questions, own_texts: for the tasks that have
    them."""

    renderer: Renderer
    texts: list[list[int]]
    titles: list[list[int]]
    end_token: int
    openings: Mapping[str, tuple[int, ...]]
    questions: Questions | None = None
    own_texts: Sequence[list[int]] = ()

    @property
    def words(self) -> ItemWords:
        """How long the items' texts and titles are."""
        return ItemWords(*(np.array([len(row) for row in rows], dtype=np.int64) for rows in (self.texts, self.titles)))

    def __call__(self, row: Mapping[str, Any]) -> Example:
        """The example of a row (`sft/tasks.py`)."""
        task, items, context = row["task"], row["items"], row["context"]
        if task in ("next_item", "next_item_windows"):
            return self._next_items(items, context)
        if task == "own_text":
            first, *rest = self.own_texts[items[0]]
            return _with_text([first], rest)
        control = self.renderer.control
        opening, sids = list(self.openings.get(task, ())), self.renderer.tokens_of(torch.tensor(items)).tolist()
        if task == "text_to_item":
            return _with_item(
                [*opening, control("<text>"), *self.texts[items[0]], control("<item>")], sids[0], items[0]
            )
        if task == "titles_to_next_item":
            titles = [token for item in items[:-1] for token in (control("<text>"), *self.titles[item])]
            return _with_item([*opening, *titles, control("<next>")], sids[-1], items[-1])
        if task == "question_to_item":
            assert self.questions is not None, "questions are asked of an ExampleRenderer that has none"
            return _with_item(self.questions.prompt(self.questions.text(*items)), sids[-1], items[-1])
        if task == "item_to_text":
            return _with_text(
                [*opening, control("<item>"), *sids[0], control("<text>")], self._ended(self.texts[items[0]])
            )
        assert task == "history_to_next_title", f"{task!r} is none of {TASKS}"
        history = [token for sid in sids[:-1] for token in sid]
        prompt = [*opening, control("<history>"), *history, control("<text>")]
        return _with_text(prompt, self._ended(self.titles[items[-1]]))

    def _next_items(self, items: list[int], context: int) -> Example:
        tokens, n_levels = self.renderer.tokens(np.asarray(items)), self.renderer.codes.shape[1]
        starts = torch.full_like(tokens, NO_ITEM)
        first = len(tokens) - len(items) * n_levels
        starts[first + context * n_levels :: n_levels] = torch.tensor(items[context:])
        labels = torch.full_like(tokens, NO_LABEL)
        labels[first + context * n_levels :] = tokens[first + context * n_levels :]
        return Example(tokens, starts, labels)

    def _ended(self, text: list[int]) -> list[int]:
        return [*text, self.end_token]


def _with_item(prompt: list[int], sid: list[int], item: int) -> Example:
    """`prompt`, then one SID as the answer."""
    example = _with_text(prompt, sid)
    example.items[len(prompt)] = item
    return example


def _with_text(prompt: list[int], answer: list[int]) -> Example:
    """`prompt`, then token ids as the answer."""
    tokens = torch.tensor(prompt + answer)
    labels = tokens.clone()
    labels[: len(prompt)] = NO_LABEL
    return Example(tokens, torch.full_like(tokens, NO_ITEM), labels)


class ExampleCollator:
    """Rows → a batch of examples, padded on the right (causal attention never looks there, so no attention mask is needed).

    input_ids, items, labels: int64 [B, T], as in `Example`. drop: what rows go through before they are rendered.
    """

    def __init__(self, render: ExampleRenderer, pad_token: int, drop: ItemDropout | None = None) -> None:
        self.render = render
        self.pad_token = pad_token
        self.drop = drop or ItemDropout(0.0, seed=0)

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        examples = [self.render(self.drop(row)) for row in rows]
        columns = {
            "input_ids": ([example.tokens for example in examples], self.pad_token),
            "items": ([example.items for example in examples], NO_ITEM),
            "labels": ([example.labels for example in examples], NO_LABEL),
        }
        pad = torch.nn.utils.rnn.pad_sequence
        return {name: pad(values, batch_first=True, padding_value=fill) for name, (values, fill) in columns.items()}


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> list[list[int]]:
    """The first `longest` token ids of each text; a line break is a space."""
    lines = [" ".join((text or "").split()) for text in texts]
    ids = tokenizer(lines, add_special_tokens=False)["input_ids"] if lines else []
    return [row[:longest] for row in ids]


def chat_openings(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[int, ...]]:
    """By task, the user's question and the beginning of the assistant's turn in the model's chat template.

    Raises InputError when it has none.
    """
    if not tokenizer.chat_template:
        raise InputError("chat_template is true, but the model's tokenizer has no chat template; leave it out.")
    return {
        task: tuple(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
            )
        )
        for task, question in QUESTIONS.items()
    }
