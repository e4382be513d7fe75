"""Questions: what they ask for is what the answer has and the item named has not."""

from __future__ import annotations

import polars as pl
import pytest

from sidrec.sft.backbone import byte_tokenizer
from sidrec.sft.questions import WITH_A_WISH, WITHOUT, Questions, item_traits

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "item_index": [0, 1, 2, 3],
        "title": ["Heat", "Babe", "Cop", "Big"],
        "text": ["", "", "", ""],
        "genres": ["Crime, Drama", "Children's, Drama", "Crime,Comedy", None],
        "tags": [["long"], ["pig", "short"], [], ["short"]],
        "year": ["1995", "1995", "1988", "1988"],
        "stock": [1, 1, 2, 2],
    }
)


def questions(chat: bool = False) -> Questions:
    tokenizer = byte_tokenizer()
    if chat:
        tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[assistant] "
    return Questions(ITEMS["title"].to_list(), item_traits(ITEMS), tokenizer)


def test_traits_are_what_columns_list_and_several_items_share():
    assert item_traits(ITEMS) == [{"Crime", "Drama"}, {"Drama", "short"}, {"Crime"}, {"short"}]


@pytest.mark.parametrize("item", range(4))
@pytest.mark.parametrize("answer", range(4))
def test_a_question_names_the_item_and_asks_for_what_only_the_answer_has(item, answer):
    asked = questions()
    text, traits = asked.text(item, answer), item_traits(ITEMS)
    assert text == asked.text(item, answer)
    wishes = traits[answer] - traits[item]
    templates = WITH_A_WISH if wishes else WITHOUT
    title = ITEMS["title"][item]
    assert text in {template.format(title=title, trait=wish) for template in templates for wish in wishes or [""]}
    rest = len(asked.tokenizer(text.replace(title, ""), add_special_tokens=False)["input_ids"])
    assert rest <= asked.longest_rest


def test_a_question_is_the_users_turn_of_a_chat():
    assert questions().tokenizer.decode(questions().prompt("Big?")) == "Big?"
    assert questions().tokenizer.decode(questions(chat=True).prompt("Big?")) == "[user] Big?[assistant] "
