"""Several processes of one tokenizer run, as `accelerate launch` or torchrun start them; on processors, whatever else there is."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import distributed

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.embeddings.item_vectors import CHUNK, Rows
from sidrec.tokenizer.quantizer import Quantizer


def join_processes(quantizer: str, shares_rows: bool) -> int:
    """This process's number among those that were started together; 0 for one alone, and for the one that writes.

    Raises InputError where there are several and the quantizer, which is named, cannot be learnt by several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    if not shares_rows:
        raise InputError(
            f"the quantizer {quantizer!r} is learnt by one process, not by {os.environ['WORLD_SIZE']}; start it without a launcher."
        )
    from accelerate import PartialState

    return PartialState(cpu=True).process_index


def leave_processes() -> None:
    """End the work in common: each process goes on, or ends, alone. Without it, one that ends first could take the others with it."""
    if rank_and_processes()[1] > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def rank_and_processes() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's `tensor`, written into it; as it is where there is one process."""
    if rank_and_processes()[1] > 1:
        distributed.all_reduce(tensor)
    return tensor


def encode_together(quantizer: Quantizer, vectors: Rows, first: np.ndarray | None = None) -> np.ndarray:
    """`quantizer.encode(vectors, first)` on every process, each coding its part of the rows: int32 [N, L]."""
    rank, processes = rank_and_processes()
    if processes == 1:
        return quantizer.encode(vectors, first)
    codes = np.zeros((len(vectors), len(quantizer.codebooks.books)), dtype=np.int32)
    for start in range(rank * CHUNK, len(vectors), processes * CHUNK):
        part = slice(start, start + CHUNK)
        codes[part] = quantizer.encode(vectors[part], None if first is None else first[part])
    return summed(torch.from_numpy(codes)).numpy()
