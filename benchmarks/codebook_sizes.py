"""What a codebook's size does: FSQ against VQ with moving averages, reset and rotation; and one flat codebook against residual levels.

python -m benchmarks.codebook_sizes --embeddings industrial_minilm.npy --out sizes.json

First one code an item, of each of --sizes: FSQ with the levels of its paper's table (so about that many codes), and VQ from random
codebooks with one cure after another. Then equal bits: one codebook of 2^b codes against L levels of 2^(b/L), each with a codebook of its
own or all with one, and --shared_size codes that all of L levels share (512 in RQ-VAE's example, arXiv 2203.01941, against a flat codebook
of 16,384); all by moving averages with reset. What has more codes on a level than there are items is left out.

Usage is the share of a level's codes that some item has; entropy is that of the items' whole IDs, in bits; error is the mean over items of
||x - x̂||^2, so that 1 is nothing explained of unit vectors. All of learning and coding the whole catalogue. Finished rows are kept in --out
and not computed again. The last line is one JSON object.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.finished_rows import FinishedRows, Row, markdown
from benchmarks.harness import announce, check_at_least, plain_console, print_figures, timed
from benchmarks.quantizers import read_items
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.tokenizer.autoencoders.grid_settings import SIZES
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.quantizers import QUANTIZERS, Kind
from sidrec.tokenizer.quantizers.fsq import Fsq
from sidrec.tokenizer.report.sid_metrics import entropy, prefix_ids, usage

HEADER = "codebook|codes|bits|usage|entropy|error|CPU s"
EMA: dict[str, Any] = {"codebook_update": "ema"}
RESET: dict[str, Any] = {"reset_every": 20}
VQ_ROWS: dict[str, dict[str, Any]] = {
    "VQ": {},
    "VQ, EMA": EMA,
    "VQ, EMA, reset": EMA | RESET,
    "VQ, EMA, reset, rotation": EMA | RESET | {"rotation_trick": True},
}


@dataclass
class SizesConfig:
    """Learn FSQ, VQ and residual codebooks of several sizes on one file of vectors."""

    embeddings: Path = field(metadata={"help": "File of numpy.save, one row of numbers per item."})
    out: Path = field(default=Path("codebook_sizes.json"), metadata={"help": "Where finished rows are kept."})
    sizes: list[int] = field(
        default_factory=lambda: [16, 64, 256, 512, 1024, 2048],
        metadata={"help": f"Codes of FSQ and VQ: any of {' '.join(map(str, SIZES))}."},
    )
    bits: list[int] = field(
        default_factory=lambda: [9, 14], metadata={"help": "Bits of an item's ID for flat against residual codebooks."}
    )
    depths: list[int] = field(
        default_factory=lambda: [1, 2, 3], metadata={"help": "Levels; at equal bits those that divide the bits."}
    )
    shared_size: int = field(default=512, metadata={"help": "Codes of the codebook that all levels share."})
    e_dim: int = field(default=32, metadata={"help": "Numbers per latent vector of VQ and residual codebooks."})
    training_steps: int = field(default=1000, metadata={"help": "Optimizer steps of every row, of 512 items each."})
    seed: int = field(default=0, metadata={"help": "Seed of every training."})
    overwrite: bool = field(default=False, metadata={"help": "Compute these rows again, even if they are finished."})

    def __post_init__(self) -> None:
        if unknown := [size for size in self.sizes if size not in SIZES]:
            raise InputError(f"--sizes has {unknown}; give any of {' '.join(map(str, SIZES))}.")
        if min([*self.bits, *self.depths], default=1) < 1 or max(self.bits, default=1) > 16:
            raise InputError("--bits must lie between 1 and 16, --depths must be at least 1.")
        check_at_least(2, shared_size=self.shared_size)
        check_at_least(1, e_dim=self.e_dim, training_steps=self.training_steps)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(SizesConfig, arguments), plain_console()
    announce(console, "codebook_sizes", arguments)
    console.print(f"{torch.get_num_threads()} threads")
    vectors = ItemVectors([read_items(config.embeddings)], [1.0])
    finished, figures = FinishedRows(config.out), {}
    for title, settings in (("sizes", of_sizes(config)), ("equal bits", of_bits(config))):
        rows = {}
        for name, (kind, level_sizes) in settings.items():
            if max(level_sizes) > len(vectors):
                console.print(f"{name} is left out: {max(level_sizes):,} codes, but {len(vectors):,} items")
                continue
            rows[name] = measure_or_find(name, kind, level_sizes, vectors, finished, config, console)
        console.print(f"\n## {title}: {len(vectors):,} items\n")
        console.print(markdown(HEADER.split("|"), [in_words(name, row) for name, row in rows.items()]))
        figures[title] = {name: without_origin(row) for name, row in rows.items()}
    print_figures({"items": len(vectors)} | figures)


def of_sizes(config: SizesConfig) -> dict[str, tuple[Kind, list[int]]]:
    """Rows of one code an item: the kind and its level sizes, by name."""
    rows: dict[str, tuple[Kind, list[int]]] = {}
    for size in config.sizes:
        fsq = Fsq(fsq_size=size, fsq_tokens=1, **training(config))
        rows[f"FSQ, {size:,}"] = (fsq, [fsq.n_codes])
        for name, cures in VQ_ROWS.items():
            rows[f"{name}, {size:,}"] = (learnt("vq", config, **cures), [size])
    return rows


def of_bits(config: SizesConfig) -> dict[str, tuple[Kind, list[int]]]:
    """Rows of flat and residual codebooks at equal bits, then those of a codebook of `shared_size` codes on several levels."""
    rows = {}
    for bits in config.bits:
        for depth in config.depths:
            if bits % depth == 0:
                sizes = [2 ** (bits // depth)] * depth
                name = f"{bits} bits: {depth} x {sizes[0]:,}"
                rows[name] = (learnt("rqvae", config, **EMA, **RESET), sizes)
                if depth > 1:
                    rows[f"{name}, shared"] = (learnt("rqvae", config, shared_codebook=True, **EMA, **RESET), sizes)
    for depth in config.depths:
        name = f"{config.shared_size:,} codes, shared by {depth}" if depth > 1 else f"{config.shared_size:,} codes"
        rows[name] = (
            learnt("rqvae", config, shared_codebook=depth > 1, **EMA, **RESET),
            [config.shared_size] * depth,
        )
    return rows


def training(config: SizesConfig) -> dict[str, Any]:
    """The settings of every row's training, measured before the first and after the last step."""
    steps = config.training_steps
    return {"training_steps": steps, "evaluate_every": steps, "warmup_steps": min(50, steps)}


def learnt(kind: str, config: SizesConfig, **changed: Any) -> Kind:
    """VQ or RQ-VAE from random codebooks."""
    settings: dict[str, Any] = {"e_dim": config.e_dim, "codebook_init": "random"}
    return QUANTIZERS[kind](**settings, **training(config), **changed)


def measure_or_find(
    name: str,
    kind: Kind,
    level_sizes: list[int],
    vectors: ItemVectors,
    finished: FinishedRows,
    config: SizesConfig,
    console: Console,
) -> Row:
    """A row, computed unless it is finished, with a line on what came out."""
    made_from = kind.identity() | {"level_sizes": level_sizes, "seed": config.seed}
    made_from |= {"embeddings": sha256(config.embeddings)}
    row = None if config.overwrite else finished.find(name, made_from)
    if row is None:
        row = finished.keep(name, made_from, measure(kind, vectors, level_sizes, config.seed))
        console.print(f"{time.strftime('%H:%M:%S')}  {name}: error {row['error']:.4f}, {row['cpu_seconds']:.0f} CPU s")
    return row


def measure(kind: Kind, vectors: ItemVectors, level_sizes: list[int], seed: int) -> Row:
    """Learn and code, timed; then every figure of the row. vectors: [N, D]."""
    kind.check(vectors, level_sizes)
    quantizer, seconds = timed(lambda: kind.fit(vectors, level_sizes, seed))
    codes = kind.encode(quantizer, vectors, seed)
    return {
        "level_sizes": level_sizes,
        "bits": math.log2(math.prod(level_sizes)),
        "usage": [usage(level, size)["usage"] for level, size in zip(codes.T, level_sizes, strict=True)],
        "entropy": entropy(np.bincount(prefix_ids(codes)[:, -1])) / math.log(2),
        "error": quantizer.mean_squared_errors(vectors, codes)[-1],
        "cpu_seconds": round(seconds, 2),
    }


def in_words(name: str, row: Row) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    return [
        name,
        " x ".join(f"{size:,}" for size in row["level_sizes"]),
        f"{row['bits']:.1f}",
        "/".join(f"{share:.2f}" for share in row["usage"]),
        f"{row['entropy']:.2f}",
        f"{row['error']:.4f}",
        f"{row['cpu_seconds']:.1f}",
    ]


def without_origin(row: Row) -> Row:
    """The figures of a row."""
    return {name: value for name, value in row.items() if name != "made_from"}


if __name__ == "__main__":
    run_as_command(main)
