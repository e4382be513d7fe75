"""Residual k-means at a million items, timed against faiss and k-means-constrained, one thread each.

python -m benchmarks.tokenizer_speed
python -m benchmarks.tokenizer_speed --rows 100000

Needs `pip install -e ".[bench]"`. Times are CPU seconds of one thread (time.process_time), so that other work on the machine hardly
counts; the rivals run in the same process, on the same rows. Prints the machine, then a table; the last line is one JSON object.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.harness import announce, plain_console, print_figures, timed
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, Rows, chunks
from sidrec.tokenizer.kmeans.balanced_kmeans import balancing_prices, codes_of_equal_size
from sidrec.tokenizer.kmeans.nearest import bf16_is_faster, distances
from sidrec.tokenizer.kmeans.residual_kmeans import balanced_iterations, fit
from sidrec.tokenizer.kmeans.settings import KmeansSettings
from sidrec.tokenizer.kmeans.training_rows import TrainingRows
from sidrec.tokenizer.unique_sids import make_unique

RIVALS = {"faiss": "faiss-cpu", "k_means_constrained": "k-means-constrained"}
GROUPS, SUBGROUPS = 512, 16  # of the synthetic rows: Gaussian clusters in Gaussian clusters
BALANCED_ITERATIONS = 5
TURNS = 3


@dataclass
class SpeedConfig:
    """Time the tokenizer's k-means against its rivals, on synthetic unit vectors."""

    rows: int = field(default=1_000_000, metadata={"help": "Synthetic items of the level and of the end-to-end run."})
    balanced_rows: int = field(
        default=16_384,
        metadata={"help": "Items of the comparison of balanced clusters, of which the rival takes 15 s."},
    )
    dim: int = field(default=384, metadata={"help": "Numbers per vector, as in all-MiniLM-L6-v2."})
    codes: int = field(default=256, metadata={"help": "Codes per level."})
    seed: int = field(default=0, metadata={"help": "Seed of the rows and of all starts."})

    def __post_init__(self) -> None:
        for name in ("rows", "balanced_rows", "dim", "codes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.codes <= self.balanced_rows <= self.rows <= self.codes**3:
            raise InputError(
                f"codes {self.codes}, balanced_rows {self.balanced_rows} and rows {self.rows} must grow in this order, up to codes^3."
            )


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(SpeedConfig, arguments), plain_console()
    require_rivals()
    one_thread()
    announce(console, "tokenizer_speed", arguments)
    products = "bfloat16" if bf16_is_faster() else "float32"
    console.print(f"{config.rows:,} x {config.dim}, K = {config.codes}, one thread, products in {products}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path, config)
        vectors = np.load(path, mmap_mode="r")
        figures = against_faiss(vectors, config) | against_constrained(vectors[: config.balanced_rows], config)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its own peak of memory
            figures |= process.submit(end_to_end, path, config).result()
    show(console, figures)
    print_figures(figures)


def require_rivals() -> None:
    """Raises InputError when a rival is not installed."""
    missing = [package for module, package in RIVALS.items() if find_spec(module) is None]
    if missing:
        raise InputError(f'{" and ".join(missing)} are not installed; run `pip install -e ".[bench]"` first.')


def one_thread() -> None:
    torch.set_num_threads(1)
    if find_spec("faiss") is not None:
        import faiss

        faiss.omp_set_num_threads(1)


def write_rows(path: Path, config: SpeedConfig) -> None:
    """Unit rows [rows, dim] of a mixture with three levels of variance, groups of Zipf sizes, and most variance in few directions."""
    rng = np.random.default_rng(config.seed)
    spectrum = np.arange(1, config.dim + 1, dtype=np.float32) ** -0.6
    groups = rng.standard_normal((GROUPS, config.dim), dtype=np.float32)
    subgroups = rng.standard_normal((GROUPS * SUBGROUPS, config.dim), dtype=np.float32)
    shares = np.arange(1, GROUPS + 1) ** -0.8
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (config.rows, config.dim))
    for start in track(range(0, config.rows, 2**16), description="synthetic rows", transient=True):
        n = min(2**16, config.rows - start)
        group = rng.choice(GROUPS, n, p=shares / shares.sum())
        subgroup = group * SUBGROUPS + rng.integers(0, SUBGROUPS, n)
        noise = rng.standard_normal((n, config.dim), dtype=np.float32)
        chunk = (groups[group] + 0.6 * subgroups[subgroup] + 0.7 * noise) * spectrum
        rows[start : start + n] = chunk / np.linalg.norm(chunk, axis=1, keepdims=True)
    rows.flush()


def in_turns(*rivals: Callable[[], Any]) -> list[tuple[Any, float]]:
    """`timed` of every one of them, by turns: what it returns, and the least of TURNS times, because a busy machine only adds to them."""
    turns = [[timed(work) for work in rivals] for _ in range(TURNS)]
    return [(runs[0][0], min(seconds for _, seconds in runs)) for runs in zip(*turns, strict=True)]


def distortion(vectors: Rows, book: np.ndarray, codes: np.ndarray) -> float:
    """Mean of ||x - c||^2, a sum over the dimensions. book: [K, D]; codes: int [N]."""
    total = 0.0
    for rows, chunk in chunks(vectors):
        difference = chunk - book[codes[rows]]
        total += float(np.einsum("nd,nd->", difference, difference, dtype=np.float64))
    return total / len(codes)


def against_faiss(vectors: np.ndarray, config: SpeedConfig) -> dict[str, float]:
    """One level: learn the codebook on 256 rows a code, as faiss does by default, and code all rows.

    A short form of the default is taken, 3 balanced iterations and 10 plain ones, half of them on a part of the sample: less work than
    faiss's 20 iterations, at about the same distortion.
    """
    import faiss

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        kmeans = faiss.Kmeans(config.dim, config.codes, seed=config.seed)
        kmeans.train(vectors)
        return kmeans.centroids, kmeans.index.search(vectors, 1)[1][:, 0]

    def ours() -> tuple[np.ndarray, np.ndarray]:
        settings = KmeansSettings(balanced_iterations=3, lloyd_iterations=10)
        learnt = fit(vectors, [config.codes], config.seed, settings)
        return learnt.books[0], learnt.encode(vectors)[:, 0]

    (theirs_result, theirs_seconds), (ours_result, ours_seconds) = in_turns(theirs, ours)
    theirs_distortion, ours_distortion = distortion(vectors, *theirs_result), distortion(vectors, *ours_result)
    return {
        "faiss_ratio": theirs_seconds / ours_seconds,
        "distortion_delta": ours_distortion / theirs_distortion - 1,
        "faiss_seconds": theirs_seconds,
        "level_seconds": ours_seconds,
        "level_distortion": ours_distortion,
    }


def against_constrained(vectors: np.ndarray, config: SpeedConfig) -> dict[str, float]:
    """Clusters of exactly N / K rows (one more where that leaves a rest), from the same start, in as many iterations.

    Each is measured by its own clusters: the mean squared distance to the mean of the cluster.
    """
    from k_means_constrained import KMeansConstrained

    n, K = len(vectors), config.codes
    picked = np.random.default_rng(config.seed).choice(n, K, replace=False)
    start = np.array(vectors[picked])

    def theirs() -> np.ndarray:
        least, most = n // K, math.ceil(n / K)
        kmeans = KMeansConstrained(
            K, size_min=least, size_max=most, init=start, n_init=1, max_iter=BALANCED_ITERATIONS, tol=0, n_jobs=1
        )
        return kmeans.fit(np.array(vectors)).labels_

    def ours() -> np.ndarray:
        settings = KmeansSettings(clusters="exact", balanced_iterations=BALANCED_ITERATIONS)
        rows = TrainingRows.read(vectors, torch.arange(n))
        centroids, prices = balanced_iterations(rows, torch.from_numpy(start), settings)
        squared = distances(rows.values, centroids)
        return codes_of_equal_size(rows, squared + balancing_prices(squared, prices)).numpy()

    (theirs_codes, theirs_seconds), (ours_codes, ours_seconds) = timed(theirs), timed(ours)
    assert np.ptp(np.bincount(ours_codes, minlength=K)) <= 1
    within = [distortion(vectors, means(vectors, codes, K), codes) for codes in (theirs_codes, ours_codes)]
    return {
        "balanced_ratio": theirs_seconds / ours_seconds,
        "balanced_distortion_delta": within[1] / within[0] - 1,
        "constrained_seconds": theirs_seconds,
        "balanced_seconds": ours_seconds,
    }


def means(vectors: np.ndarray, codes: np.ndarray, K: int) -> np.ndarray:
    """The mean row of every code, [K, D]."""
    sums = np.zeros((K, vectors.shape[1]))
    np.add.at(sums, codes, vectors)
    return (sums / np.maximum(np.bincount(codes, minlength=K), 1)[:, None]).astype(np.float32)


def end_to_end(path: Path, config: SpeedConfig) -> dict[str, float]:
    """Three levels with the default settings and a semantic ID of its own for every row: CPU seconds and the peak of memory."""
    one_thread()

    def work() -> tuple[Codebooks, ItemVectors, np.ndarray, np.ndarray, list[float]]:
        clock = [time.process_time()]
        vectors = ItemVectors([np.load(path, mmap_mode="r")], [1.0])
        learnt = fit(vectors, [config.codes] * 3, config.seed)
        clock.append(time.process_time())
        codes = learnt.encode(vectors)
        clock.append(time.process_time())
        unique = make_unique(vectors, codes, learnt)
        clock.append(time.process_time())
        return learnt, vectors, codes, unique, clock

    (learnt, vectors, codes, unique, clock), seconds = timed(work)
    peak = peak_gib()
    errors = [sum(learnt_errors(learnt, vectors, rows)) / len(rows) for rows in (codes, unique)]
    return {
        "million_seconds": seconds,
        "million_fit_seconds": clock[1] - clock[0],
        "million_encode_seconds": clock[2] - clock[1],
        "million_unique_seconds": clock[3] - clock[2],
        "million_peak_gib": peak,
        "million_unique": len(np.unique(unique, axis=0)),
        "million_unique_before": len(np.unique(codes, axis=0)),
        "million_distortion": errors[0],
        "million_distortion_unique": errors[1],
    }


def learnt_errors(learnt: Codebooks, vectors: Rows, codes: np.ndarray) -> list[float]:
    """Per chunk: the sum of ||x - x̂||^2."""
    return [
        float(((chunk - learnt.reconstruct(codes[rows])) ** 2).sum(dtype=np.float64)) for rows, chunk in chunks(vectors)
    ]


def peak_gib() -> float:
    """The most memory this process has held, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    per_gib = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_gib


def show(console: Console, figures: dict[str, float]) -> None:
    table = Table("figure", title="tokenizer speed, CPU seconds of one thread")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:+.2%}" if name.endswith("_delta") else f"{value:,.4g}")
    console.print(table)


if __name__ == "__main__":
    run_as_command(main)
