"""Batches by size: every row once a pass, the same for any number of processes, within the size that is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sidrec.sft.batches import JITTER, LengthBatches

LENGTHS = st.lists(st.integers(1, 60), min_size=4, max_size=80)


@given(LENGTHS, st.integers(1, 300), st.sampled_from([1, 2, 4]))
def test_a_pass_has_every_row_once_in_batches_of_the_size_asked_for(
    lengths: list[int], batch_items: int, n_processes: int
) -> None:
    shares = [
        list(LengthBatches.of_items(lengths, batch_items, 3, process, n_processes)) for process in range(n_processes)
    ]
    whole = list(LengthBatches.of_items(lengths, batch_items, 3))
    assert sorted(row for batch in whole for row in batch) == list(range(len(lengths)))
    assert len(whole) == len(LengthBatches.of_items(lengths, batch_items, 3))
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
    one, two = (
        LengthBatches.of_items(lengths, 300, 7),
        [LengthBatches.of_items(lengths, 300, 7, process, 2) for process in range(2)],
    )
    for epoch in (0, 1, 5):
        for batches in (one, *two):
            batches.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None)
        together = [sorted(a + b) for a, b in zip(*two, strict=True)]
        assert together == [sorted(batch) for batch in one]


def test_every_pass_mixes_other_rows_and_a_seed_gives_the_same_again() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 400).tolist()

    def batches(seed: int, epoch: float) -> list[list[int]]:
        sampler = LengthBatches.of_items(lengths, 300, seed)
        sampler.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
        return list(sampler)

    assert batches(1, 2.0) == batches(1, 2.0)
    assert {frozenset(batch) for batch in batches(1, 0.0)} != {frozenset(batch) for batch in batches(1, 1.0)}
    assert batches(1, 0.0) != batches(2, 0.0)


def test_a_steps_rows_do_not_depend_on_processes_or_accumulation() -> None:
    """16 rows of one process are 2 × 8, 4 × 4 and two batches of 8 one after the other."""
    lengths = np.random.default_rng(0).integers(2, 60, 403).tolist()

    def steps(epoch: int, n_processes: int, parts: int) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in range(25)]
        for process in range(n_processes):
            batches = LengthBatches.of_rows(lengths, 16, 7, process, n_processes, parts)
            batches.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None)
            shares = list(batches)
            assert len(shares) == len(batches) == 25 * parts
            for place, share in enumerate(shares):
                assert len(share) >= 16 // n_processes // parts
                rows[place // parts] += share
        return [sorted(of_step) for of_step in rows]

    for epoch in (0, 3):
        whole = steps(epoch, 1, 1)
        assert {len(rows) for rows in whole} == {16, 17}
        assert sorted(row for rows in whole for row in rows) == list(range(403))
        assert whole == steps(epoch, 2, 1) == steps(epoch, 1, 2) == steps(epoch, 2, 2) == steps(epoch, 4, 1)
    assert steps(0, 1, 1) != steps(1, 1, 1)


@given(LENGTHS, st.integers(1, 40), st.sampled_from([1, 2, 4]))
def test_every_process_has_rows_of_every_batch(lengths: list[int], rows: int, shares: int) -> None:
    rows = rows * shares
    batches = [list(LengthBatches.of_rows(lengths, rows, 3, process, shares)) for process in range(shares)]
    assert all(batch for share in batches for batch in share)
    assert sorted(row for share in batches for batch in share for row in batch) == list(range(len(lengths)))
