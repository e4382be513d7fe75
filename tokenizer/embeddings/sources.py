"""The files that item vectors are read from, checked before anything is learnt from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sidrec.pipeline.arrays import read_npy
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import require_finished
from sidrec.tokenizer.config import COMPUTED_SOURCES, TokenizerConfig
from sidrec.tokenizer.embeddings.item_vectors import chunks


def read_sources(config: TokenizerConfig, n_items: int) -> list[np.ndarray]:
    """Every source's vectors, [N, D_s] each. Raises InputError when one is missing (naming the command) or wrong."""
    command = f"sidrec tokenize --run_dir {config.run_dir} --sources {' '.join(config.sources)}"
    if config.computed_sources:
        require_finished(config.run_dir, "embeddings", command)
    for source in config.computed_sources:
        path = config.path_of(source)
        if not path.is_file():
            raise InputError(f"{path} does not exist; run `{command} --overwrite true` first.")
    return [read_source(config.path_of(source), n_items, source in COMPUTED_SOURCES) for source in config.sources]


def check_own_files(config: TokenizerConfig, n_items: int) -> None:
    """Raises InputError when a file among the sources is missing or wrong; before vectors are made beside it."""
    for source in config.sources:
        if source not in COMPUTED_SOURCES:
            read_source(config.path_of(source), n_items)


def read_source(path: Path, n_items: int, computed: bool = False) -> np.ndarray:
    """A source's vectors, [N, D], left on disk and checked: one row per item, as `check_numbers` wants them.

    computed: made by this project, where a column may well be constant (items of one pattern have one first singular vector).
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; correct --sources first.")
    vectors = read_npy(path, on_disk=True)
    if vectors.ndim != 2 or len(vectors) != n_items or vectors.shape[1] < 1 or vectors.dtype.kind not in "fiu":
        raise InputError(
            f"{path} holds {vectors.dtype} of shape {list(vectors.shape)}; it must hold numbers, one row for each of the "
            f"{n_items} items, in the order of items.parquet."
        )
    check_numbers(path, vectors, constant_columns=computed)
    return vectors


def check_numbers(path: Path, vectors: np.ndarray, constant_columns: bool = False) -> None:
    """Raises InputError when [N, D] holds a number that is not finite in float32, a row of zeros, or a column of one number.

    constant_columns: let the last pass.
    Each says nothing about items, and most often means that the file was not made as intended. Read piece by piece.
    """
    infinite, empty = [], []
    lowest, highest = np.full(vectors.shape[1], np.inf), np.full(vectors.shape[1], -np.inf)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinity, and is named
        for rows, chunk in chunks(vectors):
            infinite += (rows.start + np.flatnonzero(~np.isfinite(chunk).all(axis=1))).tolist()
            empty += (rows.start + np.flatnonzero(~chunk.any(axis=1))).tolist()
            lowest, highest = np.minimum(lowest, chunk.min(axis=0)), np.maximum(highest, chunk.max(axis=0))
    if infinite:
        raise InputError(
            f"{path} holds NaN or infinity in row {infinite[0]}{_others(infinite, 'row')}; make the file again."
        )
    if empty:
        raise InputError(
            f"{path} holds only zeros in row {empty[0]}{_others(empty, 'row')}, so that nothing is known of those items; give them "
            "vectors, small random ones if need be."
        )
    constant = np.flatnonzero(lowest == highest).tolist()
    if constant and len(vectors) > 1 and not constant_columns:
        raise InputError(
            f"{path} holds the same number in every row of column {constant[0]}{_others(constant, 'column')}; take out what does not "
            "differ between items."
        )


def _others(places: list[int], name: str) -> str:
    """` and 3 other rows`, or nothing."""
    return f" (and {len(places) - 1} other {name}{'s' if len(places) > 2 else ''})" if len(places) > 1 else ""
