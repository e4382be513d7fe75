import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from sidrec.data.codes import codes, ranks, run_ends

ids = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=3), max_size=30)


@given(ids, st.booleans())
def test_ranks_are_places_in_the_sorted_list(names: list[str], categorical: bool) -> None:
    series = pl.Series("user_id", names, dtype=pl.String)
    order = sorted(set(names), key=lambda name: name.encode())
    places = ranks(series.cast(pl.Categorical) if categorical else series)
    assert places.tolist() == [order.index(name) for name in names]


@given(ids, ids)
def test_codes_mean_the_same_in_two_columns_that_live(first: list[str], second: list[str]) -> None:
    one, other = (pl.Series(names, dtype=pl.String).cast(pl.Categorical) for names in (first, second))
    code_of = dict(zip(first, codes(one).tolist(), strict=True)) | dict(zip(second, codes(other).tolist(), strict=True))
    assert [code_of[name] for name in first] == codes(one).tolist()
    assert len(set(code_of.values())) == len(code_of)


@given(st.lists(st.integers(0, 3), max_size=20))
def test_run_ends_equal_brute_force(values: list[int]) -> None:
    wanted = [place for place in range(len(values)) if values[place + 1 : place + 2] != values[place : place + 1]]
    assert run_ends(np.array(values, dtype=np.uint32)).tolist() == wanted
