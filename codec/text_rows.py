"""The rows of tokens that the stage `text` wrote, as later stages read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidrec.codec.prepare_text import REPORT, ROW_FILES, SPLITS, STAGE
from sidrec.codec.row_file import dtype_of
from sidrec.codec.word_pieces import read_word_pieces
from sidrec.pipeline.arrays import read_npy
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json
from sidrec.pipeline.stage import require_finished

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COMMAND = "sidrec codec text"
CHECKED_AT_ONCE = 1 << 16  # rows


@dataclass(frozen=True)
class TextRows:
    """rows: by split, memory-mapped, uint16 or uint32 [rows, row_length]; the last row of a split ends in padding, unless it is full.
    counts: by split, as in the report: `documents`, `rows`, `tokens` (one EOS a document included, padding not), `bytes` (of the texts in
    UTF-8), `bytes_a_token`."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    rows: dict[str, np.ndarray]
    counts: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, run_dir: Path) -> TextRows:
        """Of a finished run directory.

        Raises InputError when the stage has not run, when its files have changed since, and for rows that are not as the report says.
        """
        folder = require_finished(run_dir, STAGE, COMMAND)
        tokenizer = read_word_pieces(folder)
        report = read_json(folder / REPORT)
        try:
            row_length = int(report["row_length"])
            counts = {split: dict(report["splits"][split]) for split in SPLITS}
            shapes = {split: (int(count["rows"]), row_length) for split, count in counts.items()}
            n_bytes = [int(count["bytes"]) for count in counts.values()]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / REPORT} is damaged ({error!r}); run `{COMMAND} --overwrite true`.") from error
        assert min(n_bytes) >= 0
        rows = {split: read_rows(folder / ROW_FILES[split], shapes[split], len(tokenizer)) for split in SPLITS}
        return cls(folder, tokenizer, rows, counts)

    @property
    def vocabulary_size(self) -> int:
        return len(self.tokenizer)

    @property
    def row_length(self) -> int:
        return self.rows[SPLITS[0]].shape[1]

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    def n_bytes(self, split: str) -> int:
        """Bytes of a split's texts in UTF-8."""
        return int(self.counts[split]["bytes"])

    def n_tokens(self, split: str) -> int:
        """Tokens of a split's rows without the padding."""
        return int(self.counts[split]["tokens"])

    def texts(self, rows: Iterable[np.ndarray]) -> list[str]:
        """What rows of tokens say, of whatever length; padding and the ends of documents say nothing."""
        return self.tokenizer.batch_decode([row.tolist() for row in rows], skip_special_tokens=True)


def read_rows(path: Path, shape: tuple[int, int], vocabulary: int) -> np.ndarray:
    """A split's rows, memory-mapped. Raises InputError unless they are of this shape, of the vocabulary's type and below its size."""
    rows, again = read_npy(path, on_disk=True), f"run `{COMMAND} --overwrite true`"
    if rows.dtype != dtype_of(vocabulary):
        raise InputError(
            f"{path} holds {rows.dtype}, not {dtype_of(vocabulary)} as for {vocabulary:,} tokens; {again}."
        )
    if rows.shape != shape:
        raise InputError(f"{path} is of shape {list(rows.shape)}, not {list(shape)} as the report says; {again}.")
    for start in range(0, len(rows), CHECKED_AT_ONCE):
        greatest = int(rows[start : start + CHECKED_AT_ONCE].max())
        if greatest >= vocabulary:
            raise InputError(f"{path} holds the token {greatest}, but the vocabulary has {vocabulary:,}; {again}.")
    return rows
