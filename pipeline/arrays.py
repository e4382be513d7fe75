"""NumPy's files, .npy and .npz, read with one sentence where they are something else."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sidrec.pipeline.errors import InputError

DAMAGED = (  # what NumPy raises on files of other kinds
    *(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def read_npy(path: Path, on_disk: bool = False) -> np.ndarray:
    """The array of an .npy file; on_disk: left there. Raises InputError when it is missing, or no such file."""
    try:
        array = np.load(path, mmap_mode="r" if on_disk else None, allow_pickle=False)
    except DAMAGED as error:
        raise _unreadable(path, "an .npy file", error) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{path} holds several arrays; give an .npy file, as numpy.save writes it.")
    return array


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Raises InputError when it is missing, or no such file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except DAMAGED as error:
        raise _unreadable(path, "an .npz file", error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"it is not {kind}"
    return InputError(f"{path} cannot be read as {kind} ({reason}); make it again with numpy.")
