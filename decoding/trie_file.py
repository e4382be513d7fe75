"""A trie in one file, opened by mapping it into memory.

The file is an ordinary safetensors file: its header names the tables, their types and shapes, and carries the format's version, the
level sizes and a sha256. Opening reads the header and checks it against the file's length and against itself (the tables of a trie
determine each other's lengths), which takes milliseconds whatever the size; the tables' pages are read when a search first needs
them. The sha256 covers every byte of the tables, so checking it reads the whole file: `verify=True` does, and a program that opens a
file it has not written or has just copied should.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sidrec.decoding.trie import BLOCK, Pointers, SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path

FORMAT_VERSION = 1
SIDS_FOLDER, TRIE_FILE = "semantic_ids", "trie.safetensors"  # where it lies in a model's folder
HEADER = "sidrec_trie"  # one entry, because safetensors writes several in any order


def save_trie(trie: SidTrie, path: Path) -> None:
    """Write the trie, atomically."""
    tables = {"item_of_leaf": trie.item_of_leaf.stored}
    for depth in range(trie.n_levels):
        tables[f"code_{depth}"] = trie.code[depth].stored
        tables[f"first_child_base_{depth}"] = trie.first_child[depth].base
        tables[f"first_child_low_{depth}"] = trie.first_child[depth].low
    tables = {name: table.cpu().contiguous() for name, table in tables.items()}
    header = {"version": FORMAT_VERSION, "level_sizes": trie.level_sizes, "n_slots": trie.n_slots}
    header["sha256"] = _digest(header, tables)
    with atomic_path(path) as temporary:
        save_file(tables, temporary, metadata={HEADER: json.dumps(header)})


def open_trie(path: Path, device: str = "cpu", verify: bool = False) -> SidTrie:
    """Open what `save_trie` wrote; on the CPU, its tables are the file's pages.

    verify: also read every byte and compare the sha256.
    Raises InputError when the file is missing, cut short, of another kind or version, or (with verify) has changed since.
    """
    again = "make it again with `save_trie`"
    if not path.exists():
        raise InputError(f"{path} does not exist; {again}.")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dictionary)
    except SafetensorError as error:
        raise InputError(f"{path} is cut short or is not a trie file ({error}); {again}.") from error
    if HEADER not in metadata:
        raise InputError(f"{path} is not a trie file; {again}.")
    header = json.loads(metadata[HEADER])
    if header["version"] != FORMAT_VERSION:
        raise InputError(f"{path} has format {header['version']}, this version reads {FORMAT_VERSION}; {again}.")
    level_sizes = header["level_sizes"]
    if not _lengths_agree(len(level_sizes), tables):
        raise InputError(f"{path} has tables that do not fit together; {again}.")
    if verify and _digest(header, tables) != header["sha256"]:
        raise InputError(f"{path} has changed since it was written: its checksum is another; {again}.")
    depths = range(len(level_sizes))
    pointers = [Pointers(tables[f"first_child_base_{d}"], tables[f"first_child_low_{d}"]) for d in depths]
    codes = [tables[f"code_{d}"] for d in depths]
    return SidTrie.of_tables(level_sizes, pointers, codes, tables["item_of_leaf"], header["n_slots"])


def _digest(header: dict[str, Any], tables: dict[str, Tensor]) -> str:
    """Hex sha256 over the header (but for its own sha256) and every table's name, type and bytes."""
    fields = {name: value for name, value in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, table in sorted(tables.items()):
        digest.update(f"{name} {table.dtype} {len(table)}".encode())
        digest.update(table.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _lengths_agree(n_levels: int, tables: dict[str, Tensor]) -> bool:
    """Whether all tables are there, with one pointer per node and one more, and the last pointer being the number of children."""
    names = [f"{kind}_{d}" for d in range(n_levels) for kind in ("code", "first_child_base", "first_child_low")]
    if sorted(tables) != sorted([*names, "item_of_leaf"]):
        return False
    n_nodes = 1
    for depth in range(n_levels):
        base, low = tables[f"first_child_base_{depth}"], tables[f"first_child_low_{depth}"]
        n_children = len(tables[f"code_{depth}"])
        if len(low) != n_nodes + 1 or len(base) != -(-len(low) // BLOCK):
            return False
        if int(Pointers(base, low)[torch.tensor([n_nodes], device=low.device)]) != n_children:
            return False
        n_nodes = n_children
    return len(tables["item_of_leaf"]) == n_nodes
