"""What callers give as histories and items: read, or refused in one sentence that names it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidrec.decoding.item_indices import at_least_one, item_histories, item_indices
from sidrec.pipeline.errors import InputError


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_whole_numbers_in_any_dress(numbers: list[int]) -> None:
    for dress in (
        list,
        tuple,
        lambda values: np.array(values, np.int64),
        lambda values: torch.tensor(values, dtype=torch.long),
    ):
        indices = item_indices(dress(numbers), "items")
        assert indices.dtype == np.int64
        assert indices.tolist() == numbers


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.uint16, np.uint64])
def test_whole_numbers_of_any_width(kind: type) -> None:
    assert item_indices(np.array([1, 7], kind), "items").tolist() == [1, 7]
    assert item_histories(np.array([[1, 2], [3, 4]], kind))[1].tolist() == [3, 4]


@pytest.mark.parametrize(
    "odd",
    [
        *(
            [1.0, 2.0],
            ["a"],
            ["1"],
            [True],
            [None],
            [1, None],
            [[1], [2]],
            [[1], [2, 3]],
            {1, 2},
            5,
            None,
            "abc",
            b"abc",
        ),
        *([10**30], [2**63], np.array([np.nan]), np.array([[1, 2]]), np.array(3), {"a": 1}, object()),
    ],
)
def test_anything_else_is_named(odd: Any) -> None:
    with pytest.raises(InputError, match=r"^items is .*whole numbers"):
        item_indices(odd, "items")
    with pytest.raises(InputError, match=r"^history 1 is "):
        item_histories([[1], odd])


@pytest.mark.parametrize("odd", ["abc", 5, None, {"a": [1]}, b"a"])
def test_histories_are_a_list_of_them(odd: Any) -> None:
    with pytest.raises(InputError, match="the histories are "):
        item_histories(odd)


@pytest.mark.parametrize("odd", [0, -1, 2.5, "3", None, [1]])
def test_a_number_of_things(odd: Any) -> None:
    with pytest.raises(InputError, match=r"k is .* above 0"):
        at_least_one(odd, "k")
    assert at_least_one(np.int32(4), "k") == 4
