"""The quantizers that the tokenizer's benchmarks compare, each by the flags that choose it, and the vectors that they code."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import numpy as np

from benchmarks.harness import ROOT
from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.autoencoders.grid_settings import SIZES
from sidrec.tokenizer.config import parse_arguments
from sidrec.tokenizer.embeddings.sources import read_source
from sidrec.tokenizer.quantizers import Kind
from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes

# the name of a file in configs/tokenizer, or of a quantizer that needs none, then flags
QUANTIZERS = {
    "random": "random",
    "rqkmeans_plain": "rqkmeans --clusters plain --lloyd_iterations 60",  # until it hardly moves
    "rqkmeans": "rqkmeans",
    "rqkmeans_balanced": "rqkmeans --clusters balanced",
    "rqkmeans_exact": "rqkmeans --clusters exact",
    "rqkmeans_plus": "rqkmeans_plus",
    "rqkmeans_plus_published": "rqkmeans_plus --decoder mlp --commitment_levels first --commitment_weight 0.25 --learning_rate 1e-4",
    "rqvae": "rqvae --codebook_init random",
    "rqvae_kmeans": "rqvae --codebook_init kmeans",
    "rqvae_sinkhorn": "rqvae --codebook_init kmeans --sinkhorn_epsilon 0.01",
    "ema_reset": "ema",
    "lora": "lora",
    "lora_document": "lora_document",
    "product": "product",
    "coarse_to_fine": "coarse_to_fine",
    "fsq": "fsq",
    "fsq_residual": "fsq_residual",
    "rqkmeans_fsq": "rqkmeans_fsq",
}
# levels of an FSQ token with about so many codes: residual tokens share their dimensions, so they have more of fewer levels than SIZES
RESIDUAL_FSQ_LEVELS = {64: (4, 4, 4), 256: (3, 3, 3, 3, 3)}


def check_names(names: list[str]) -> None:
    """Raises InputError for a name that is none of QUANTIZERS."""
    unknown = [name for name in names if name not in QUANTIZERS]
    if unknown or not names:
        raise InputError(f"--quantizers has {unknown or 'nothing'}; give one or more of {' '.join(QUANTIZERS)}.")


def flags_of(name: str, level_sizes: list[int]) -> list[str]:
    """What `sidrec tokenize` is called with for this quantizer and these level sizes, or FSQ's own nearest ones."""
    first, *changes = shlex.split(QUANTIZERS[name])
    config = ROOT / "configs" / "tokenizer" / f"{first}.yaml"
    flags = ["--config", str(config)] if config.exists() else ["--quantizer", first]
    sizes = list(level_sizes)
    if "fsq" in first:
        choices = RESIDUAL_FSQ_LEVELS if first == "fsq_residual" else SIZES
        fsq_levels = choices[min(choices, key=lambda size: abs(size - sizes[-1]))]
        flags += ["--fsq_levels", *map(str, fsq_levels)]
        if first == "rqkmeans_fsq":
            sizes[-1] = math.prod(fsq_levels)
        else:
            flags += ["--fsq_tokens", str(len(sizes))]
            sizes = [math.prod(fsq_levels)] * len(sizes)
    return [*flags, *changes, "--level_sizes", *map(str, sizes)]


def read_settings(name: str, level_sizes: list[int]) -> tuple[Kind, list[int]]:
    """The quantizer with its settings, and the level sizes, that `flags_of` stand for."""
    config, kind = parse_arguments(flags_of(name, level_sizes), stage="sid")
    return kind, config.level_sizes


def read_items(path: Path, level_sizes: list[int] | None = None) -> np.ndarray:
    """[N, D]. Raises InputError when the file is not such an array, or holds fewer items than a level has codes."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with benchmarks.item_texts or sidrec.tokenizer.embed.")
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    source = read_source(path, shape[0] if shape else 0)
    if level_sizes is not None:
        check_level_sizes(level_sizes, len(source))
    return source
