"""Rows of equal length that are cut from one stream of tokens and written to an .npy file as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

MOST_OF_16_BITS = 1 << 16


def dtype_of(vocabulary: int) -> np.dtype:
    """uint16 where it holds every id below `vocabulary`, else uint32."""
    return np.dtype(np.uint16 if vocabulary <= MOST_OF_16_BITS else np.uint32)


class RowFile:
    """An .npy file of shape [rows, row_length] that grows. At the end the last row, when incomplete, is filled with `pad_id`.

    NumPy leaves room in the header for the number of rows, so that the file is, byte by byte, what `numpy.save` would write.
    """

    def __init__(self, path: Path, row_length: int, dtype: np.dtype, pad_id: int) -> None:
        self.path, self.row_length, self.dtype, self.pad_id = path, row_length, dtype, pad_id
        self.n_rows = self.n_tokens = 0
        self.rest = np.empty(0, dtype=dtype)  # shorter than a row

    def __enter__(self) -> RowFile:
        self.file = self.path.open("wb")
        self._write_header()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.file:
            if kind is None:
                if len(self.rest):
                    self._write(np.pad(self.rest, (0, self.row_length - len(self.rest)), constant_values=self.pad_id))
                self.file.seek(0)
                self._write_header()

    def add(self, ids: Sequence[int]) -> None:
        """Go on with these tokens; whole rows are written at once."""
        self.n_tokens += len(ids)
        stream = np.concatenate([self.rest, np.asarray(ids, dtype=self.dtype)])
        n_whole = len(stream) // self.row_length * self.row_length
        self._write(stream[:n_whole])
        self.rest = stream[n_whole:]

    def _write(self, tokens: np.ndarray) -> None:
        assert len(tokens) % self.row_length == 0, len(tokens)
        self.file.write(tokens.astype(self.dtype.newbyteorder("<"), copy=False).tobytes())
        self.n_rows += len(tokens) // self.row_length

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype.newbyteorder("<")),
                "fortran_order": False,
                "shape": (self.n_rows, self.row_length),
            },
        )
