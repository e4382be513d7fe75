"""NumPy's files: what is read, and one sentence for what is none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidrec.pipeline.arrays import read_npy, read_npz
from sidrec.pipeline.errors import InputError


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    rows, more = np.arange(6.0).reshape(2, 3), np.array([1, 2])
    np.save(tmp_path / "rows.npy", rows)
    np.savez(tmp_path / "all.npz", rows=rows, more=more)
    assert (read_npy(tmp_path / "rows.npy") == rows).all()
    assert isinstance(read_npy(tmp_path / "rows.npy", on_disk=True), np.memmap)
    assert {name: array.tolist() for name, array in read_npz(tmp_path / "all.npz").items()} == {
        "rows": rows.tolist(),
        "more": more.tolist(),
    }


@pytest.mark.parametrize("read", [read_npy, read_npz])
def test_the_other_kind_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    np.save(tmp_path / "file.npy", np.ones(2))
    np.savez(tmp_path / "file.npz", a=np.ones(2))
    np.save(tmp_path / "objects.npy", np.array([{}, "a"], dtype=object), allow_pickle=True)
    (tmp_path / "empty").touch()
    other = "file.npz" if read is read_npy else "file.npy"
    for name in (other, "objects.npy", "empty", "nowhere", "."):
        with pytest.raises(InputError, match=r"(cannot be read as an \.np|holds several arrays)"):
            read(tmp_path / name)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(place=42, value=91, cut=False)
@given(place=st.integers(0, 2000), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, place: int, value: int, cut: bool) -> None:
    for read, save in ((read_npy, np.save), (read_npz, np.savez_compressed)):
        file = tmp_path / ("a.npy" if read is read_npy else "a.npz")
        save(file, np.arange(200.0))
        content = bytearray(file.read_bytes())
        at = place % len(content)
        content[at] = value
        file.write_bytes(content[:at] if cut else content)
        with suppress(InputError):
            read(file)
