"""Batches by size: every row once a pass, the same for any number of processes, within the size that is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sidrec.sft.batches import JITTER, ItemBatches

LENGTHS = st.lists(st.integers(1, 60), min_size=4, max_size=80)


@given(LENGTHS, st.integers(1, 300), st.sampled_from([1, 2, 4]))
def test_a_pass_has_every_row_once_in_batches_of_the_size_asked_for(
    lengths: list[int], batch_items: int, n_processes: int
) -> None:
    shares = [list(ItemBatches(lengths, batch_items, 3, process, n_processes)) for process in range(n_processes)]
    whole = list(ItemBatches(lengths, batch_items, 3))
    assert sorted(row for batch in whole for row in batch) == list(range(len(lengths)))
    assert len(whole) == len(ItemBatches(lengths, batch_items, 3))
    longest = (1 + JITTER) / (1 - JITTER)
    for batch in whole:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= batch_items * longest + max(
            lengths
        )
    assert len({len(share) for share in shares}) == 1, "all processes make as many steps"
    assert all(len(batch) for share in shares for batch in share), "no process is without a row"
    together = [sorted(row for batch in batches for row in batch) for batches in zip(*shares, strict=True)]
    assert sorted(row for batch in together for row in batch) == list(range(len(lengths)))


def test_a_global_batch_does_not_depend_on_the_number_of_processes() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 400).tolist()
    one, two = ItemBatches(lengths, 300, 7), [ItemBatches(lengths, 300, 7, process, 2) for process in range(2)]
    for epoch in (0, 1, 5):
        for batches in (one, *two):
            batches.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None)
        together = [sorted(a + b) for a, b in zip(*two, strict=True)]
        assert together == [sorted(batch) for batch in one]


def test_every_pass_mixes_other_rows_and_a_seed_gives_the_same_again() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 400).tolist()

    def batches(seed: int, epoch: float) -> list[list[int]]:
        sampler = ItemBatches(lengths, 300, seed)
        sampler.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
        return list(sampler)

    assert batches(1, 2.0) == batches(1, 2.0)
    assert {frozenset(batch) for batch in batches(1, 0.0)} != {frozenset(batch) for batch in batches(1, 1.0)}
    assert batches(1, 0.0) != batches(2, 0.0)
