"""Tasks: what is given and what is asked for; every answer once, none of them in its own prompt, none from the future."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_sids
from hypothesis import given
from hypothesis import strategies as st
from run_dirs import N_ITEMS, small_dataset

from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.renderer import CONTROL_TOKENS, Renderer
from sidrec.pipeline.errors import InputError
from sidrec.sft.backbone import byte_tokenizer
from sidrec.sft.examples import (
    NO_ITEM,
    NO_LABEL,
    QUESTIONS,
    Example,
    ExampleCollator,
    ExampleRenderer,
    chat_openings,
    token_ids,
)
from sidrec.sft.own_text import TOKENS
from sidrec.sft.questions import Questions
from sidrec.sft.settings import TASKS, TaskConfig
from sidrec.sft.tasks import ItemWords, next_item_rows, picked, task_rows, windows

PAD, START = 0, 300
ALL = dict.fromkeys(TASKS, 1.0)
OF_WORDS = ("item_to_text", "history_to_next_title", "own_text")  # tasks whose answers are words
OWN_TEXTS = [list(range(100 * text, 100 * text + TOKENS)) for text in range(3)]


def make_renderer(n_items: int = N_ITEMS, max_items: int = 20, openings: dict | None = None) -> ExampleRenderer:
    sids = make_sids(n_items, [4, 4, 5])
    first = START + len(CONTROL_TOKENS)
    vocabulary = SidVocabulary(START, (first, first + 4, first + 8), (4, 4, 5))
    openings = openings or {}
    renderer = Renderer.build(sids, vocabulary, max_items, opening=openings.get("next_item", ()))
    tokenizer, titles = byte_tokenizer(), [f"Title {item}!" for item in range(n_items)]
    texts = [f"{title} and what there is to say of it" for title in titles]
    questions = Questions(titles, [frozenset({f"kind {item % 3}"}) for item in range(n_items)], tokenizer)
    words = token_ids(texts, tokenizer, 30), token_ids(titles, tokenizer, 30)
    return ExampleRenderer(renderer, *words, 1, openings, questions, own_texts=OWN_TEXTS)


def sid_of(render: ExampleRenderer, item: int) -> list[int]:
    return render.renderer.tokens_of(torch.tensor([item]))[0].tolist()


@given(length=st.integers(1, 200), max_items=st.integers(2, 50), overlap=st.floats(0, 0.99))
def test_every_item_has_its_loss_exactly_once_and_context_where_there_is_any(length, max_items, overlap):
    spans = windows(length, max_items, overlap)
    with_loss = [i for start, stop, context in spans for i in range(start + context, stop)]
    assert with_loss == list(range(length))
    for start, stop, context in spans:
        assert 0 < stop - start <= max_items
        assert context == 0 if start == 0 else context >= max(1, round(max_items * overlap) - 1)
        assert stop - start == max_items or start == 0
    assert spans[-1][1] == length
    assert len(spans) == 1 or length > max_items


def test_less_overlap_costs_fewer_tokens():
    half, tenth = (
        next_item_rows([np.arange(1000)], max_items=200, n_levels=2, overlap=overlap)["length"]
        for overlap in (0.5, 0.1)
    )
    assert (len(half), len(tenth)) == (9, 6)
    assert sum(tenth) == 6 + 2 * (1000 + 5 * 20)


def test_collated_batch_holds_tokens_items_and_labels_in_step():
    render = make_renderer(20, max_items=4)
    rows = next_item_rows([np.array([3, 1, 7, 9, 2]), np.array([5])], max_items=4, n_levels=3)
    assert rows["length"] == [10, 13, 4]
    assert rows["context"] == [0, 2, 0]
    batch = ExampleCollator(render, pad_token=PAD)(list(rows))
    assert batch["input_ids"].shape == batch["items"].shape == batch["labels"].shape == (3, 13)
    assert batch["items"][:, 1::3].tolist() == [[3, 1, 7, NO_ITEM], [NO_ITEM, NO_ITEM, 9, 2], [5] + [NO_ITEM] * 3]
    assert (batch["items"] != NO_ITEM).sum() == 6
    for row in range(3):
        for j, item in enumerate(batch["items"][row, 1::3].tolist()):
            labels = batch["labels"][row, 1 + 3 * j : 4 + 3 * j]
            if item == NO_ITEM:
                assert (labels == NO_LABEL).all()
            else:
                assert labels.tolist() == sid_of(render, item)
                assert torch.equal(labels, batch["input_ids"][row, 1 + 3 * j : 4 + 3 * j])
    assert (batch["input_ids"][2, 4:] == PAD).all()


def row(task: str, items: list[int], context: int = 0) -> dict:
    return {"task": task, "items": items, "context": context}


def test_what_each_task_writes():
    render = make_renderer()
    history, following, item, text = (START + i for i in range(4))

    def words(line: str) -> list[int]:
        return token_ids([line], byte_tokenizer(), 30)[0]

    a, b, c = (sid_of(render, i) for i in (8, 2, 5))
    expected = {
        "next_item": (row("next_item", [8, 2, 5], 1), [history, *a], [*b, *c]),
        "next_item_windows": (row("next_item_windows", [8, 2, 5], 2), [history, *a, *b], c),
        "text_to_item": (row("text_to_item", [8]), [text, *words("Title 8! and what there is to say of it"), item], a),
        "item_to_text": (
            row("item_to_text", [8]),
            [item, *a, text],
            [*words("Title 8! and what there is to say of it"), 1],
        ),
        "titles_to_next_item": (
            row("titles_to_next_item", [8, 2, 5], 2),
            [text, *words("Title 8!"), text, *words("Title 2!"), following],
            c,
        ),
        "history_to_next_title": (
            row("history_to_next_title", [8, 2, 5], 2),
            [history, *a, *b, text],
            [*words("Title 5!"), 1],
        ),
        "question_to_item": (
            row("question_to_item", [8, 5], 1),
            token_ids([render.questions.text(8, 5)], byte_tokenizer(), 100)[0],
            c,
        ),
        "own_text": (row("own_text", [2]), [200], list(range(201, 200 + TOKENS))),
    }
    assert set(expected) == set(TASKS)
    for task, (given_row, prompt, answer) in expected.items():
        example = render(given_row)
        assert example.tokens.tolist() == prompt + answer, task
        assert example.labels.tolist() == [NO_LABEL] * len(prompt) + answer, task
        answers = {"next_item": [2, 5], "text_to_item": [8]} | {task: [] for task in OF_WORDS}
        assert example.items[example.items != NO_ITEM].tolist() == answers.get(task, [5]), task
        for at in (example.items != NO_ITEM).nonzero().flatten().tolist():
            assert example.tokens[at : at + 3].tolist() == sid_of(render, int(example.items[at])), task
    assert len(words("x" * 50)) == 30, "texts are cut to the longest allowed"


def prompt_and_answer(example: Example) -> tuple[list[int], list[int]]:
    """What is given before the last answer, and that answer."""
    first = int((example.labels != NO_LABEL).int().argmax())
    if (example.items != NO_ITEM).any():  # in next_item one answer stands behind the other
        first = len(example.tokens) - 3
    return example.tokens[:first].tolist(), example.tokens[first:].tolist()


def words_of(has_text: list[bool]) -> ItemWords:
    return ItemWords(np.array(has_text) * 7, np.array(has_text) * 3)


def holds(longer: list[int], shorter: list[int]) -> bool:
    return any(longer[i : i + len(shorter)] == shorter for i in range(len(longer) - len(shorter) + 1))


def test_no_prompt_holds_its_answer_and_no_example_an_interaction_that_is_not_for_training():
    """All examples of all tasks. A next item that the user had taken before is the one answer that its own history may hold."""
    dataset, render = small_dataset(), make_renderer()
    rest, tasks = render.questions.longest_rest, TaskConfig(**ALL)
    counts = {"question_tokens": rest, "own_texts": len(OWN_TEXTS)}
    rows = task_rows(dataset.train_sequences, render.words, 3, 20, tasks, seed=0, **counts)
    histories = {tuple(sequence.tolist()) for sequence in dataset.train_sequences}
    repeats = 0
    for given_row in rows:
        task, items = given_row["task"], given_row["items"]
        if task not in ("text_to_item", "item_to_text", "own_text"):
            assert any(holds(list(history), items) for history in histories), "a stretch of one training history"
        spare = given_row["length"] - len(render(given_row).tokens)
        assert 0 <= spare <= (rest if task == "question_to_item" else 0), f"{task}: memory is estimated by it"
        prompt, answer = prompt_and_answer(render(given_row))
        if holds(prompt, answer):
            assert task in ("next_item", "next_item_windows")
            assert items[-1] in items[:-1]
            repeats += 1
    assert 0 < repeats < len(rows) / 5
    counts = {task: rows["task"].count(task) for task in TASKS}
    steps = sum(len(sequence) - 1 for sequence in dataset.train_sequences)
    assert counts["text_to_item"] == counts["item_to_text"] == N_ITEMS
    assert counts["next_item"] == counts["own_text"] == len(dataset.train_sequences)
    assert counts["next_item_windows"] == steps
    assert counts["titles_to_next_item"] == counts["history_to_next_title"] < steps
    assert counts["question_to_item"] == sum((row[1:] != row[:-1]).sum() for row in dataset.train_sequences)


def test_weights_are_shares_of_the_examples():
    assert picked(10, 1, seed=0).tolist() == list(range(10))
    assert picked(4, 2, seed=0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    half = picked(1000, 0.5, seed=0).tolist()
    assert len(set(half)) == 500
    assert half == picked(1000, 0.5, seed=0).tolist() != picked(1000, 0.5, seed=1).tolist()
    assert np.bincount(picked(10, 2.3, seed=0)).tolist().count(3) == 3
    sequences = [np.array([1, 2, 3]), np.array([4, 5])]
    rows = task_rows(
        sequences, words_of([True] * 6), 3, 20, TaskConfig(next_item=0, text_to_item=0.5, item_to_text=2), seed=0
    )
    assert (rows["task"].count("text_to_item"), rows["task"].count("item_to_text")) == (3, 12)


def test_items_without_a_text_are_in_no_example_with_texts():
    has_text = [item != 2 for item in range(6)]
    rows = task_rows([np.array([1, 2, 3, 4])], words_of(has_text), 3, 20, TaskConfig(**ALL | {"own_text": 0}), seed=0)
    for given_row in rows:
        assert 2 not in given_row["items"] or given_row["task"].startswith("next_item")
    assert [r["items"] for r in rows if r["task"] == "titles_to_next_item"] == [[1, 3], [1, 3, 4]]


def test_impossible_tasks_are_refused_in_a_sentence():
    with pytest.raises(InputError, match="all tasks have weight 0"):
        TaskConfig(next_item=0)
    with pytest.raises(InputError, match="text_to_item=-1 is no share"):
        TaskConfig(text_to_item=-1)
    with pytest.raises(InputError, match="window_items=0 must be at least 1"):
        TaskConfig(window_items=0)
    with pytest.raises(InputError, match="text_to_item=1 has no examples"):
        task_rows([np.array([1, 2])], words_of([False] * 3), 3, 20, TaskConfig(text_to_item=1), seed=0)


def test_a_chat_holds_the_question_and_the_example_is_the_beginning_of_the_answer():
    tokenizer = byte_tokenizer()
    with pytest.raises(InputError, match="no chat template"):
        chat_openings(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    openings = chat_openings(tokenizer)
    for task in set(TASKS) - {"question_to_item", "own_text"}:  # whose questions are their own, or none
        opening = openings[task if task != "next_item_windows" else "next_item"]
        question = QUESTIONS[task if task != "next_item_windows" else "next_item"]
        assert tokenizer.decode(opening) == f"[user] {question}[assistant] "
        example = make_renderer(openings=openings)(row(task, [8, 2, 5], 2))
        plain = make_renderer()(row(task, [8, 2, 5], 2))
        assert example.tokens.tolist() == [*opening, *plain.tokens.tolist()]
        assert example.labels.tolist() == [NO_LABEL] * len(opening) + plain.labels.tolist()
        assert example.items.tolist() == [NO_ITEM] * len(opening) + plain.items.tolist()
    prompt = make_renderer(openings=openings).renderer
    assert prompt.prompt_length(2) == len(prompt.tokens(np.array([8, 2])))
