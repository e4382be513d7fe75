"""The benchmark of updates on a small log: slices of time, and figures of all three models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from run_dirs import flags, small_dataset, write_sid_stage

from benchmarks.continued_training import FIGURES, by_slice, first_events, recall10, slice_of
from benchmarks.harness import plain_console
from sidrec.data.dataset import Dataset
from sidrec.pipeline.stage import Stage
from sidrec.sft import train
from sidrec.sft.continued import ContinuedConfig


def test_slices_are_equal_and_in_time_order() -> None:
    log = small_dataset().interactions
    part = slice_of(log, 5)
    assert np.ptp(np.bincount(part)) <= 1
    times = log["timestamp"].to_numpy()
    assert all(times[part == number].max() <= times[part == number + 1].min() for number in range(4))


def test_the_first_event_of_a_slice_is_asked_for() -> None:
    log = pl.DataFrame(
        [("ann", 3, 1), ("ann", 5, 2), ("ann", 7, 3), ("bob", 2, 2), ("bob", 4, 3), ("eve", 1, 1)],
        schema=["user_id", "item_index", "timestamp"],
        orient="row",
    )
    cases = first_events(log, np.array([0, 1, 1, 1, 1, 0]), 1)
    assert cases.user_ids == ["ann", "bob"]
    assert [history.tolist() for history in cases.histories] == [[3], [2]]
    assert cases.targets.tolist() == [5, 4]


def test_all_three_models_are_measured_after_every_slice(tmp_path: Path) -> None:
    with Stage(tmp_path / "all", "data", {}).building() as folder:
        small_dataset().save(folder)
        (folder / "dataset.json").write_text('{"name": "rings", "protocol": "global_time", "counts": {}}')
    first, dataset = tmp_path / "first", Dataset.load(tmp_path / "all")
    sft = flags(train, first)[2:]
    figures = by_slice(dataset, first, lambda: write_sid_stage(first), sft, ContinuedConfig(), 4, plain_console())
    assert set(figures) == set(FIGURES)
    assert all(len(values) == 2 for values in figures.values())
    assert min(*figures["seconds_continued"], *figures["seconds_anew"]) > 0
    log = dataset.interactions
    cases = first_events(log, slice_of(log, 4), 3)
    assert figures["cases"][1] == len(cases)
    assert figures["recall10_anew"][1] == recall10(tmp_path / "anew-2", cases)
    assert figures["recall10_unchanged"][1] == recall10(first, cases)
    assert len(Dataset.load(tmp_path / "anew-2").interactions) == sum(slice_of(log, 4) < 3)
