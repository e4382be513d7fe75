"""Windows over histories: every item has its loss once, and labels say which."""

from __future__ import annotations

import numpy as np
import torch
from conftest import make_sids
from hypothesis import given
from hypothesis import strategies as st

from decoding.policy import SidVocabulary
from decoding.renderer import Renderer
from sft.sequences import NO_ITEM, NO_LABEL, SequenceCollator, training_rows, windows


@given(length=st.integers(1, 200), max_items=st.integers(2, 50))
def test_every_item_has_its_loss_exactly_once_and_context_where_there_is_any(length, max_items):
    spans = windows(length, max_items)
    with_loss = [i for start, stop, context in spans for i in range(start + context, stop)]
    assert with_loss == list(range(length))
    for start, stop, context in spans:
        assert 0 < stop - start <= max_items
        assert context >= max_items // 2 - 1 or start == 0
    assert spans[-1][1] == length


def test_collated_batch_holds_tokens_items_and_labels_in_step():
    sids = make_sids(20, [4, 5])
    vocabulary = SidVocabulary(start_token=10, first_tokens=(11, 15), level_sizes=(4, 5))
    renderer = Renderer.build(sids, vocabulary, max_items=4)
    rows = training_rows([np.array([3, 1, 7, 9, 2]), np.array([5])], max_items=4)
    assert rows["length"] == [4, 4, 1]
    assert rows["context"] == [0, 3, 0]
    batch = SequenceCollator(renderer, pad_token=0)(list(rows))
    assert batch["input_ids"].shape == (3, 9)
    assert batch["items"].tolist() == [[3, 1, 7, 9], [NO_ITEM] * 3 + [2], [5] + [NO_ITEM] * 3]
    for row in range(3):
        for j, item in enumerate(batch["items"][row].tolist()):
            labels = batch["labels"][row, 1 + 2 * j : 3 + 2 * j]
            if item == NO_ITEM:
                assert (labels == NO_LABEL).all()
            else:
                assert torch.equal(labels, torch.from_numpy(sids.codes[item]).long() + torch.tensor([11, 15]))
                assert torch.equal(labels, batch["input_ids"][row, 1 + 2 * j : 3 + 2 * j])
