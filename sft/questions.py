"""Questions that a person would put: something like one item, but with what another one has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

WITH_A_WISH = (
    "Something like {title}, but {trait}?",
    "I liked {title}. What should I take next? I would like {trait}.",
    "Can you recommend {trait} for someone who enjoyed {title}?",
)
WITHOUT = (
    "Something like {title}?",
    "I liked {title}. What should I take next?",
    "What do people take after {title}?",
)
LISTED = (pl.String, pl.Categorical, pl.Enum, pl.List(pl.String))
FEWEST_ITEMS = 2  # that share a trait


@dataclass(frozen=True)
class Questions:
    """titles: of every item. traits: of every item what its columns list, such as its genres. tokenizer: the model's."""

    titles: Sequence[str]
    traits: Sequence[frozenset[str]]
    tokenizer: PreTrainedTokenizerBase

    def text(self, item: int, answer: int) -> str:
        """The question that asks for `answer` by what it has and `item` has not; always the same one of a pair."""
        wishes = sorted(self.traits[answer] - self.traits[item])
        number = np.random.default_rng((item, answer))
        if not wishes:
            return WITHOUT[number.integers(len(WITHOUT))].format(title=self.titles[item])
        template = WITH_A_WISH[number.integers(len(WITH_A_WISH))]
        return template.format(title=self.titles[item], trait=wishes[number.integers(len(wishes))])

    @property
    def longest_rest(self) -> int:
        """Tokens of a prompt beside the item's title, at most."""
        trait = max((trait for traits in set(self.traits) for trait in traits), key=len, default="")
        return max(len(self.prompt(text.format(title="", trait=trait))) for text in (*WITH_A_WISH, *WITHOUT))

    def prompt(self, question: str) -> list[int]:
        return question_prompt(question, self.tokenizer)


def question_prompt(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a question as a model is asked it: as the user's turn, up to the assistant's, where there is a chat template."""
    if not tokenizer.chat_template:
        return tokenizer(question, add_special_tokens=False)["input_ids"]
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def item_traits(items: pl.DataFrame) -> list[frozenset[str]]:
    """What the columns beside id, title and text list of every item, separated by commas or as lists; a number, and what fewer than two
    items share, is no trait."""
    traits: list[set[str]] = [set() for _ in range(len(items))]
    for name, dtype in items.schema.items():
        if name in ("item_id", "item_index", "title", "text") or dtype not in LISTED:
            continue
        for item, value in enumerate(items[name].to_list()):
            parts = value if dtype == pl.List(pl.String) else (value or "").split(",")
            traits[item] |= {part.strip() for part in parts or () if part and part.strip()}
    counts = Counter(trait for of_item in traits for trait in of_item)
    shared = {trait for trait, count in counts.items() if count >= FEWEST_ITEMS and not trait.isnumeric()}
    return [frozenset(of_item & shared) for of_item in traits]
