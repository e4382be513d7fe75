"""Items left out of histories: which, when, and the same ones after a resume."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.pipeline.errors import InputError
from sidrec.sft.item_dropout import ItemDropout
from sidrec.sft.settings import TASKS, TaskConfig

ROW = {"task": "next_item", "items": list(range(100, 140)), "context": 10, "length": 81}


def in_pass(drop: ItemDropout, epoch: float) -> ItemDropout:
    drop.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
    return drop


@given(
    items=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    context=st.integers(0, 30),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_what_stays_is_in_its_order_and_context_stays_context(items, context, share, seed):
    row = {"task": "next_item", "items": [10 * place + item for place, item in enumerate(items)], "length": 9}
    row["context"] = min(context, len(items) - 1)
    shortened = ItemDropout(share, seed)(row)
    places = [row["items"].index(item) for item in shortened["items"]]
    assert places == sorted(set(places))
    assert shortened["context"] == sum(place < row["context"] for place in places)
    assert len(places) >= min(2, len(items))
    assert {name: shortened[name] for name in ("task", "length")} == {"task": "next_item", "length": 9}


def test_a_share_of_the_items_is_left_out_others_at_every_pass():
    drop = ItemDropout(0.3, seed=1)
    passes = [set(in_pass(drop, epoch)(ROW)["items"]) for epoch in range(200)]
    assert np.mean([len(places) for places in passes]) == pytest.approx(28, abs=0.6)  # 0.2 is its standard deviation
    assert len({frozenset(places) for places in passes}) == 200
    often = np.array([[item in places for item in ROW["items"]] for places in passes]).mean(0)
    assert np.abs(often - 0.7).max() < 0.14  # 0.03 is its standard deviation
    assert set(ItemDropout(0.3, seed=2)(ROW)["items"]) != passes[0]


def test_a_pass_that_was_interrupted_leaves_out_the_same():
    drop = ItemDropout(0.3, seed=1)
    before = in_pass(drop, 3.0)(ROW)
    in_pass(drop, 4.0)(ROW)
    assert in_pass(drop, 3.25)(ROW) == before  # what Trainer says when it resumes a quarter into the pass
    assert in_pass(ItemDropout(0.3, seed=1), 2.9999999999)(ROW) == before


def test_other_tasks_and_no_share_leave_rows_as_they_are():
    for task in TASKS[1:]:
        row = {**ROW, "task": task}
        assert ItemDropout(0.9, seed=0)(row) is row
    assert ItemDropout(0.0, seed=0)(ROW) is ROW
    with pytest.raises(InputError, match=r"item_dropout=1.0 is no share of items"):
        TaskConfig(item_dropout=1.0)
