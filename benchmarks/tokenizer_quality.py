"""How good every quantizer's codes are, on the vectors of real items, under the same conditions.

python -m benchmarks.tokenizer_quality --embeddings industrial_minilm.npy beauty_minilm.npy ml1m_collaborative.npy --out quality.json

`benchmarks.item_texts` and `sidrec.tokenizer.embed` make such files; rows are scaled to length 1, as the tokenizer does.
Errors are the mean
over items of ||x - x̂||^2, so that 1 is nothing explained. "Held out" is the error on items that were kept out of learning; all other
figures are of learning and coding the whole catalogue. Finished rows are kept in --out and not computed again. The last line is one JSON
object: the figures that the bars are about, for each file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks.finished_rows import FinishedRows, Row, markdown
from benchmarks.harness import announce, plain_console, print_figures, timed
from benchmarks.quantizers import QUANTIZERS, check_names, read_items, read_settings
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.kmeans.settings import KmeansSettings
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers import Kind
from sidrec.tokenizer.quantizers.rqkmeans import Rqkmeans
from sidrec.tokenizer.quantizers.rqkmeans_plus import RqkmeansPlus
from sidrec.tokenizer.report.sid_metrics import collisions, usage
from sidrec.tokenizer.report.vector_metrics import Reconstruction, neighbourhoods, variance
from sidrec.tokenizer.unique_sids import make_unique

HEADER = "quantizer|error|unique|cost|held out|explained|perplexity|use L1|collided|neighbours|CPU s"
# a figure and the least it must be, or the most (for text vectors of all-MiniLM-L6-v2, K = 256, L = 3)
AT_LEAST = {"kmeans_gain": 0.07, "min_perplexity": 240.0, "plus_gain": 0.10, "ema_usage": 1.0}
AT_MOST = {"worst_cost_of_uniqueness": 0.03, "collisions": 0.0}


@dataclass
class QualityConfig:
    """Learn every quantizer on every file of vectors, and measure its codes."""

    embeddings: list[Path] = field(
        metadata={"help": "Files of numpy.save, one row of numbers per item; a file's name names it in the table."}
    )
    out: Path = field(default=Path("tokenizer_quality.json"), metadata={"help": "Where finished rows are kept."})
    quantizers: list[str] = field(
        default_factory=lambda: list(QUANTIZERS), metadata={"help": f"Any of {' '.join(QUANTIZERS)}."}
    )
    level_sizes: list[int] = field(
        default_factory=lambda: [256, 256, 256],
        metadata={"help": "Codes per level; FSQ takes 240 where 256 are asked for."},
    )
    held_out: float = field(
        default=0.1, metadata={"help": "Share of the items kept out of learning for the held-out error."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of every quantizer and of which items are held out."})
    overwrite: bool = field(default=False, metadata={"help": "Compute these rows again, even if they are finished."})

    def __post_init__(self) -> None:
        check_names(self.quantizers)
        names = [path.stem for path in self.embeddings]
        if len(set(names)) < len(names):
            raise InputError(f"--embeddings has two files of one name ({' '.join(names)}); rename one.")
        if not 0 < self.held_out < 1:
            raise InputError(f"--held_out is {self.held_out}; it must lie between 0 and 1.")


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(QualityConfig, arguments), plain_console()
    announce(console, "tokenizer_quality", arguments)
    console.print(f"{torch.get_num_threads()} threads")
    sources = {path.stem: read_items(path, config.level_sizes) for path in config.embeddings}
    finished = FinishedRows(config.out)
    for path in config.embeddings:
        source = sources[path.stem]
        rows = {name: measure_or_find(name, path, source, finished, config, console) for name in config.quantizers}
        console.print(f"\n## {path.stem}: {len(source):,} items\n")
        console.print(markdown(HEADER.split("|"), [in_words(name, row) for name, row in rows.items()]))
    figures = {path.stem: figures_of_bars(path.stem, finished) for path in config.embeddings}
    for name, file_figures in figures.items():
        console.print(f"{name}: {'; '.join(verdicts(file_figures))}")
    print_figures(figures)


def measure_or_find(
    name: str, path: Path, source: np.ndarray, finished: FinishedRows, config: QualityConfig, console: Console
) -> Row:
    """A quantizer's row, computed unless it is finished, with a line on what came out."""
    kind, level_sizes = read_settings(name, config.level_sizes)
    made_from = kind.identity() | {"level_sizes": level_sizes, "seed": config.seed, "held_out": config.held_out}
    made_from |= {"embeddings": sha256(path)}
    row_name = f"{path.stem}/{name}"
    row = None if config.overwrite else finished.find(row_name, made_from)
    if row is None:
        start = time.perf_counter()
        row = measure(kind, source, level_sizes, config.seed, config.held_out)
        row = finished.keep(row_name, made_from, row | {"seconds": round(time.perf_counter() - start, 1)})
        error, seconds = row["error"], row["seconds"]
        console.print(f"{time.strftime('%H:%M:%S')}  {row_name}: error {error:.4f}, {seconds:.0f} s")
    return row


def measure(kind: Kind, source: np.ndarray, level_sizes: list[int], seed: int, held_out: float) -> Row:
    """Learn, code and make unique, timed; then every figure of the row. source: [N, D]."""
    vectors = ItemVectors([source], [1.0])
    (quantizer, raw), learning = timed(lambda: learn_codes(kind, vectors, level_sizes, seed))  # raw: [N, L]
    codes, assigning = timed(lambda: make_unique(quantizer.latents(vectors), raw, quantizer.codebooks))
    errors = quantizer.mean_squared_errors(vectors, raw)
    unique_error = quantizer.mean_squared_errors(vectors, codes)[-1]
    spread = variance(vectors)
    levels = [usage(raw[:, level], size) for level, size in enumerate(quantizer.codebooks.sizes)]
    reconstruction = Reconstruction(quantizer, codes, vectors.shape[1])
    row = {
        "items": len(source),
        "level_sizes": quantizer.codebooks.sizes,
        "error": errors[-1],
        "error_by_level": errors,
        "error_unique": unique_error,
        "cost_of_uniqueness": unique_error / errors[-1] - 1,
        "error_held_out": held_out_error(kind, source, level_sizes, seed, held_out),
        "variance_explained": 1 - errors[-1] / spread,
        "variance_explained_by_level": [1 - error / spread for error in errors],
        "perplexity": [level["perplexity"] for level in levels],
        "usage": [level["usage"] for level in levels],
        "collisions_raw": collisions(raw)["rate"],
        "collisions": collisions(codes)["rate"],
        "neighbour_preservation": neighbourhoods(vectors, reconstruction, codes, seed)["preserved"],
        "cpu_seconds": {"learn": round(learning, 2), "unique": round(assigning, 2)},
    }
    if isinstance(kind, RqkmeansPlus):
        row["error_of_start"] = error_of_start(kind, vectors, level_sizes, seed)
    return row


def learn_codes(kind: Kind, vectors: ItemVectors, level_sizes: list[int], seed: int) -> tuple[Quantizer, np.ndarray]:
    """The quantizer that `kind` fits to `vectors` [N, D], and the items' codes, int32 [N, L]."""
    kind.check(vectors, level_sizes)
    quantizer = kind.fit(vectors, level_sizes, seed)
    return quantizer, kind.encode(quantizer, vectors, seed)


def held_out_error(kind: Kind, source: np.ndarray, level_sizes: list[int], seed: int, share: float) -> float:
    """The error on items that are kept out of learning, drawn by the seed; of their own codes, before any are made unique."""
    order = np.random.default_rng(seed).permutation(len(source))
    n_held = max(1, round(share * len(source)))
    held, learnt = np.sort(order[:n_held]), np.sort(order[n_held:])
    quantizer = kind.fit(ItemVectors([source[learnt]], [1.0]), level_sizes, seed)
    vectors = ItemVectors([source[held]], [1.0])
    return quantizer.mean_squared_errors(vectors, quantizer.encode(vectors))[-1]


def error_of_start(kind: RqkmeansPlus, vectors: ItemVectors, level_sizes: list[int], seed: int) -> float:
    """The error of the residual k-means that RQ-Kmeans+ starts from."""
    kmeans = Rqkmeans(**{setting.name: getattr(kind, setting.name) for setting in fields(KmeansSettings)})
    start = kmeans.fit(vectors, level_sizes, seed)
    return start.mean_squared_errors(vectors, start.encode(vectors))[-1]


def in_words(name: str, row: Row) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    return [
        name,
        f"{row['error']:.4f}",
        f"{row['error_unique']:.4f}",
        f"{row['cost_of_uniqueness']:+.1%}",
        f"{row['error_held_out']:.4f}",
        f"{row['variance_explained']:.1%}",
        "/".join(f"{level:.0f}" for level in row["perplexity"]),
        f"{row['usage'][0]:.2f}",
        f"{row['collisions_raw']:.1%} → {row['collisions']:.0%}",
        f"{row['neighbour_preservation']:.3f}",
        f"{sum(row['cpu_seconds'].values()):.1f}",
    ]


def figures_of_bars(embeddings: str, finished: FinishedRows) -> dict[str, float | None]:
    """What the bars are about, from the finished rows of one file; None where a row that it takes is not there.

    kmeans_gain: share by which the default's error is below plain Lloyd's. min_perplexity: of the default, over levels. plus_gain: share
    by which RQ-Kmeans+ is below the k-means it starts from. ema_usage: share of the first level's codes in use, after a random start.
    worst_cost_of_uniqueness, collisions: the largest of all quantizers.
    """
    prefix = f"{embeddings}/"
    rows = {name.removeprefix(prefix): row for name, row in finished.rows.items() if name.startswith(prefix)}
    plain, default, plus, ema = (
        rows.get(name) for name in ("rqkmeans_plain", "rqkmeans", "rqkmeans_plus", "ema_reset")
    )
    return {
        "kmeans_gain": 1 - default["error"] / plain["error"] if plain and default else None,
        "min_perplexity": min(default["perplexity"]) if default else None,
        "plus_gain": 1 - plus["error"] / plus["error_of_start"] if plus else None,
        "ema_usage": ema["usage"][0] if ema else None,
        "worst_cost_of_uniqueness": max(row["cost_of_uniqueness"] for row in rows.values()),
        "collisions": max(row["collisions"] for row in rows.values()),
    }


def verdicts(figures: dict[str, float | None]) -> list[str]:
    """Each figure beside its bar, in words."""
    words = []
    for name, value in figures.items():
        bar = AT_LEAST.get(name, AT_MOST.get(name, 0.0))
        sign, met = (
            ("≥", value is not None and value >= bar) if name in AT_LEAST else ("≤", value is not None and value <= bar)
        )
        shown = "not measured" if value is None else f"{value:.4g}, {'met' if met else 'MISSED'}"
        words.append(f"{name} {sign} {bar:g}: {shown}")
    return words


if __name__ == "__main__":
    run_as_command(main)
