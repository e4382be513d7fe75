"""Semantic IDs and codebooks in the files of other programs: MiniOneRec's `.index.json`, codes in `.npy`, codebooks in `.npz`.

    X.index.json   {"0": ["<a_12>", "<b_7>", "<c_200>"], …}: one key an item, one token a level, letters a, b, c, …
    codes.npy      integers [N, L]
    codebooks.npz  codebook_0 … codebook_{L-1}, numbers [K_l, D]

From one file of codes to the other: `python -m tokenizer.interchange --read_file X.index.json --write_file codes.npy`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from data.stage import InputError


def read_codebooks(path: Path, level_sizes: list[int] | None = None, width: int | None = None) -> list[np.ndarray]:
    """The codebooks of an .npz file, float32 [K_l, D] each, of at least one level.

    level_sizes, width: the K_l and the D that are wanted; default: whatever the file holds. Raises InputError naming the key when
    one is missing, too many, or of another shape, and when its numbers are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in file.files}
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not an .npz file"
        raise InputError(f"{path} cannot be read as codebooks ({reason}); save them with numpy.savez.") from error
    n_levels = len(level_sizes) if level_sizes else max(len(found), 1)
    wanted = [f"codebook_{level}" for level in range(n_levels)]
    missing = [key for key in wanted if key not in found]
    if missing:
        raise InputError(
            f"{path} has no {missing[0]}; it must hold {wanted[0]} to {wanted[-1]}, and holds {', '.join(found) or 'nothing'}."
        )
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise InputError(f"{path} holds {extra[0]} beside the {n_levels} codebooks that are wanted; take it out.")
    width = width or (found[wanted[0]].shape[-1] if found[wanted[0]].ndim else None)
    for level, key in enumerate(wanted):
        book = found[key]
        size = level_sizes[level] if level_sizes else (book.shape[0] if book.ndim else None)
        if book.shape != (size, width) or book.dtype.kind not in "fiu":
            rows = size if level_sizes else "K"
            raise InputError(
                f"{path}: {key} is {book.dtype} of shape {list(book.shape)}; it must hold numbers of shape [{rows}, {width}]."
            )
        if not np.isfinite(book).all():
            raise InputError(f"{path}: {key} holds NaN or infinity; make the file again.")
    return [found[key].astype(np.float32) for key in wanted]
