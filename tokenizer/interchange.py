"""Semantic IDs and codebooks in the files of other programs, of MiniOneRec, FlashRec and NVIDIA's recsys-examples among them.

    X.index.json   {"0": ["<a_12>", "<b_7>", "<c_200>"], …}: one key an item, one token a level, letters a, b, c, …; items that share
                   these tokens with others may have one token more, which counts them (from 1)
    codes.npy      integers [N, L]
    sid2vid.json   {"12,7,200": 0, …}: FlashRec's catalogue (--sid-vocab-file), whose keys are codes; the values, which FlashRec does not
                   look at, are the items
    mapping.pt     NVIDIA's item_id_to_sid_mapping_tensor: a torch tensor of integers [L, N]; its reader adds the levels' offsets
    codebooks.npz  codebook_0 … codebook_{L-1}, numbers [K_l, D]

The number in a token is the code plus an offset: 0 here and in most files, 1 in those of some of MiniOneRec's quantizers, and always 0 in
the last two.
From one file of codes to another: `python -m sidrec.tokenizer.interchange --read_file X.index.json --write_file codes.npy`.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from sidrec.pipeline.arrays import read_npy, read_npz
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, write_json
from sidrec.tokenizer.semantic_ids import LEVEL_LETTERS, sid_token, tokens_by_item

FLASHREC, ENDINGS = "sid2vid.json", (".json", ".npy", ".pt")
MOST_CODES = 1 << 24  # of a level
TOKEN = re.compile(r"<([a-z])_(\d{1,9})>")
CATALOGUE_KEY = re.compile(r"\d{1,9}(,\d{1,9})*")


def read_codes(path: Path, offset: int = 0) -> tuple[np.ndarray, bool]:
    """The codes of a file of any of the kinds above: int32 [N, L], counted from 0, and whether the last level is an extra token.

    The extra token is one that only some items have; there 0 stands for none, and the numbers follow from 1 on. Raises InputError
    naming the item and the token when the file is not of this kind.
    """
    has_extra = False
    if path.name.endswith(FLASHREC):
        codes = _read_catalogue(path)
    elif path.suffix == ".json":
        codes, has_extra = _read_index(path)
    else:
        codes = _whole_numbers(path, _read_mapping(path) if path.suffix == ".pt" else read_npy(path))
    n_levels = codes.shape[1] - has_extra
    if codes[:, :n_levels].min() < offset:
        item, level = np.argwhere(codes[:, :n_levels] < offset)[0].tolist()
        raise InputError(
            f"{path} gives item {item} the number {codes[item, level]} on level {level + 1}, which is under the offset {offset}; correct "
            "the file or the offset."
        )
    if codes.max() > MOST_CODES:
        item, level = np.argwhere(codes > MOST_CODES)[0].tolist()
        raise InputError(
            f"{path} gives item {item} the number {codes[item, level]} on level {level + 1}; levels have at most {MOST_CODES:,} codes, so "
            "correct the file."
        )
    codes[:, :n_levels] -= offset
    return codes.astype(np.int32), has_extra


def write_codes(path: Path, codes: np.ndarray, offset: int = 0) -> None:
    """Write codes [N, L], counted from 0, as the name of `path` says; every item gets a token a level.

    Raises InputError when two items would have one key of FlashRec's catalogue.
    """
    assert codes.ndim == 2, f"codes must be [N, L], got {codes.shape}"
    shifted = codes.astype(np.int32) + offset
    if path.name.endswith(FLASHREC):
        keys = {",".join(map(str, row)): item for item, row in enumerate(shifted.tolist())}
        if len(keys) < len(codes):
            raise InputError(
                f"{len(codes)} items have {len(keys)} different codes, and {path} holds one item a key; make them unique first."
            )
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(keys), encoding="ascii")
    elif path.suffix == ".json":
        write_json(path, tokens_by_item(shifted))
    else:
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            if path.suffix == ".pt":
                torch.save(torch.from_numpy(shifted.T.astype(np.int64)).contiguous(), handle)
            else:
                np.save(handle, shifted)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not JSON"
        raise InputError(f"{path} cannot be read as semantic IDs ({reason}); give an .index.json.") from error


def _read_catalogue(path: Path) -> np.ndarray:
    """The codes of a catalogue of FlashRec's whose values are the items, int64 [N, L]."""
    rows = _read_json(path)
    if not isinstance(rows, dict) or not rows or sorted(map(str, rows.values())) != sorted(map(str, range(len(rows)))):
        raise InputError(
            f"{path} must be a JSON object whose values are all the items, from 0 on; FlashRec itself needs no such numbers."
        )
    keys = sorted(rows, key=lambda key: int(rows[key]))
    for key in keys:
        if not CATALOGUE_KEY.fullmatch(key) or key.count(",") != keys[0].count(","):
            raise InputError(f'{path}: the key {key!r} must be like "12,7,200", with as many codes as the others.')
    return np.array([[int(code) for code in key.split(",")] for key in keys], dtype=np.int64)


def _read_mapping(path: Path) -> np.ndarray:
    """The codes of a mapping tensor, [N, L]."""
    try:
        mapping = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(
            f"{path} cannot be read as a tensor ({reason}); give the file of a torch tensor [levels, items]."
        ) from error
    if not isinstance(mapping, torch.Tensor) or mapping.ndim != 2 or mapping.is_floating_point():
        raise InputError(f"{path} must hold a torch tensor of whole numbers [levels, items].")
    return mapping.numpy().T


def _read_index(path: Path) -> tuple[np.ndarray, bool]:
    """The numbers in the tokens of an .index.json, int64 [N, L], and whether the last of L is an extra token."""
    rows = _read_json(path)
    if not isinstance(rows, dict) or not rows or set(rows) != {str(item) for item in range(len(rows))}:
        raise InputError(f'{path} must be a JSON object whose keys are all the items, from "0" on; make it again.')
    numbers = [_numbers(path, item, rows[str(item)]) for item in range(len(rows))]
    least, most = min(map(len, numbers)), max(map(len, numbers))
    if least == 0 or most > least + 1:
        raise InputError(
            f"{path} has items of {least} and of {most} tokens; all must have as many, or one more than others."
        )
    if most == least:
        return np.array(numbers, dtype=np.int64), False
    first = min(row[-1] for row in numbers if len(row) == most)
    padded = [[*row[:least], row[-1] - first + 1 if len(row) == most else 0] for row in numbers]
    return np.array(padded, dtype=np.int64), True


def _numbers(path: Path, item: int, tokens: object) -> list[int]:
    """The numbers in an item's tokens: `<a_12>` first, then `<b_…>`, …"""
    if not isinstance(tokens, list) or len(tokens) > len(LEVEL_LETTERS):
        raise InputError(
            f"{path}: item {item} must have a list of at most {len(LEVEL_LETTERS)} tokens, not {tokens!r}."
        )
    numbers = []
    for level, token in enumerate(tokens):
        match = TOKEN.fullmatch(token) if isinstance(token, str) else None
        if match is None or match[1] != LEVEL_LETTERS[level]:
            raise InputError(
                f"{path}: token {level + 1} of item {item} is {token!r}; it must be like `{sid_token(level, 12)}`."
            )
        numbers.append(int(match[2]))
    return numbers


def _whole_numbers(path: Path, codes: np.ndarray) -> np.ndarray:
    """The numbers of an array's file, int64 [N, L]."""
    fits = codes.ndim == 2 and codes.size and codes.dtype.kind in "iu"
    if not fits or codes.shape[1] > len(LEVEL_LETTERS):
        raise InputError(
            f"{path} holds {codes.dtype} of shape {list(codes.shape)}; codes are whole numbers [items, 1 to {len(LEVEL_LETTERS)} levels]."
        )
    return codes.astype(np.int64)


def read_codebooks(path: Path, level_sizes: list[int] | None = None, width: int | None = None) -> list[np.ndarray]:
    """The codebooks of an .npz file, float32 [K_l, D] each, of at least one level.

    level_sizes, width: the K_l and the D that are wanted; default: whatever the file holds. Raises InputError naming the key when
    one is missing, too many, or of another shape, and when its numbers are not finite.
    """
    arrays = read_npz(path)
    n_levels = len(level_sizes) if level_sizes else max(len(arrays), 1)
    wanted = [f"codebook_{level}" for level in range(n_levels)]
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise InputError(
            f"{path} has no {missing[0]}; it must hold {wanted[0]} to {wanted[-1]}, and holds {', '.join(arrays) or 'nothing'}."
        )
    extra = sorted(set(arrays) - set(wanted))
    if extra:
        raise InputError(f"{path} holds {extra[0]} beside the {n_levels} codebooks that are wanted; take it out.")
    width = width or (arrays[wanted[0]].shape[-1] if arrays[wanted[0]].ndim else None)
    for level, key in enumerate(wanted):
        book = arrays[key]
        size = level_sizes[level] if level_sizes else (book.shape[0] if book.ndim else None)
        if book.shape != (size, width) or book.dtype.kind not in "fiu":
            rows = size if level_sizes else "K"
            raise InputError(
                f"{path}: {key} is {book.dtype} of shape {list(book.shape)}; it must hold numbers of shape [{rows}, {width}]."
            )
        if not np.isfinite(book).all():
            raise InputError(f"{path}: {key} holds NaN or infinity; make the file again.")
    return [arrays[key].astype(np.float32) for key in wanted]


@dataclass
class InterchangeConfig:
    """From one file of codes to another."""

    read_file: str = field(
        metadata={"help": "The file with the codes: .index.json, .npy, sid2vid.json (FlashRec's) or .pt (NVIDIA's)."}
    )
    write_file: str = field(metadata={"help": "The file to write, of one of these kinds; an existing one is replaced."})
    read_offset: int = field(default=0, metadata={"help": "The number that stands for code 0 in --read_file: 0 or 1."})
    write_offset: int = field(default=0, metadata={"help": "The number that stands for code 0 in --write_file."})

    def __post_init__(self) -> None:
        for name in ("read_file", "write_file"):
            if not getattr(self, name).endswith(ENDINGS):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must end in .json, .npy or .pt.")
        for name in ("read", "write"):
            offset, file = getattr(self, f"{name}_offset"), getattr(self, f"{name}_file")
            if offset < 0:
                raise InputError(f"{name}_offset is {offset}; it must be at least 0.")
            if offset and file.endswith((FLASHREC, ".pt")):
                raise InputError(f"{name}_offset is {offset}, and {file} counts codes from 0; leave it out.")


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(InterchangeConfig, arguments)
    codes, has_extra = read_codes(Path(config.read_file), config.read_offset)
    write_codes(Path(config.write_file), codes, config.write_offset)
    extra = ", the last one an extra token that only some items had" if has_extra else ""
    used = " ".join(str(len(np.unique(level))) for level in codes.T)
    Console().print(
        f"{config.write_file}: {len(codes):,} items, {len(np.unique(codes, axis=0)):,} different, {codes.shape[1]} levels{extra}; codes "
        f"used per level: {used}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_as_command(main)
