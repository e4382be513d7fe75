"""How fast RQ-Kmeans+ learns from each start of its codebooks, with and without the encoder's skip and its start at zero.

python -m benchmarks.tokenizer_starts --embeddings industrial_minilm.npy --picture starts.svg

The codebooks start from a file with those of residual k-means of the item vectors (warm), from residual k-means of the latents (kmeans) or
at random; the encoder is X + MLP(X) with a last layer of zeros, X + MLP(X) with a random one, or MLP(X). With the first of these the
latents are the item vectors, so that warm and kmeans are one start. The decoder is always zq + MLP(zq), which starts as the identity.

Of every setting the whole loss and the distortion, both by epoch (a pass over the items), measured on all items with hard codes: means over
items of sums over an item's numbers, so that a distortion, ||x - x̂||^2, of 1 is nothing explained of unit vectors. The last column is the
first measured epoch with less distortion than the residual k-means itself. The last line is one JSON object.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.finished_rows import Row, markdown
from benchmarks.harness import announce, check_at_least, plain_console, print_figures
from benchmarks.quantizers import read_items
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.kmeans import residual_kmeans
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers.rqkmeans_plus import RqkmeansPlus
from sidrec.tokenizer.report.plots import COLOURS, coinciding

STARTS = ("warm", "kmeans", "random")
ENCODERS: dict[str, dict[str, Any]] = {
    "skip, zero": {},
    "skip": {"zero_start": False},
    "no skip": {"encoder": "mlp"},
}
LINES = dict(zip(ENCODERS, ("-", "--", ":"), strict=True))
CURVES = ("loss", "distortion")


@dataclass
class StartsConfig:
    """Train RQ-Kmeans+ from every start on one file of vectors."""

    embeddings: Path = field(metadata={"help": "File of numpy.save, one row of numbers per item."})
    picture: Path = field(
        default=Path("tokenizer_starts.svg"), metadata={"help": "Where the curves are drawn: .svg or .png."}
    )
    level_sizes: list[int] = field(default_factory=lambda: [256, 256, 256], metadata={"help": "Codes per level."})
    epochs: int = field(default=40, metadata={"help": "Passes over the items."})
    measurements: int = field(default=8, metadata={"help": "Points of each curve after the first."})
    batch_size: int = field(default=512, metadata={"help": "Items per step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Highest learning rate of AdamW."})
    seed: int = field(default=0, metadata={"help": "Seed of k-means and of every training."})

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs, measurements=self.measurements)
        if self.picture.suffix not in (".svg", ".png"):
            raise InputError(f"--picture {self.picture} must end in .svg or .png.")


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(StartsConfig, arguments), plain_console()
    announce(console, "tokenizer_starts", arguments)
    console.print(f"{torch.get_num_threads()} threads")
    vectors = ItemVectors([read_items(config.embeddings, config.level_sizes)], [1.0])
    books = residual_kmeans.fit(vectors, config.level_sizes, config.seed)
    of_kmeans = Quantizer(books).mean_squared_errors(vectors, books.encode(vectors))[-1]
    console.print(f"residual k-means: distortion {of_kmeans:.4f}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        warm = Path(folder) / "warm.npz"
        np.savez(warm, **{f"codebook_{level}": book for level, book in enumerate(books.books)})  # type: ignore[arg-type]
        for number, (encoder, start) in enumerate(itertools.product(ENCODERS, STARTS)):
            kind = settings_of(config, len(vectors), encoder, str(warm) if start == "warm" else start)
            row = curves(kind, vectors, config, Path(folder) / str(number))
            epochs = first_below(row["epochs"], row["distortion"], of_kmeans)
            rows.append({"start": start, "encoder": encoder, "epochs_to_kmeans": epochs} | row)
            console.print(f"{encoder}; {start}: distortion {row['distortion'][-1]:.4f}")
    show(console, rows)
    with atomic_path(config.picture) as temporary:
        drawn(rows, of_kmeans).savefig(temporary, format=config.picture.suffix[1:], bbox_inches="tight")
    console.print(f"\nthe curves are drawn in {config.picture}")
    print_figures({"items": len(vectors), "distortion_of_kmeans": of_kmeans, "rows": rows})


def settings_of(config: StartsConfig, n_items: int, encoder: str, codebook_init: str) -> RqkmeansPlus:
    """The kind with one encoder and one start; about `epochs` passes, and as many points on the curve as asked for."""
    steps = max(math.ceil(config.epochs * n_items / min(config.batch_size, n_items)), config.measurements)
    every = -(-steps // config.measurements)
    return RqkmeansPlus(
        codebook_init=codebook_init,
        training_steps=steps,
        warmup_steps=min(50, steps // 10),
        evaluate_every=every,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        **ENCODERS[encoder],
    )


def curves(kind: RqkmeansPlus, vectors: ItemVectors, config: StartsConfig, folder: Path) -> Row:
    """`epochs`, and by epoch `loss` and `distortion`, of one training. folder: for its files."""
    kind.fit(vectors, config.level_sizes, config.seed, folder)
    curve = read_json(folder / "training.json")
    unit = vectors.shape[1] / curve["scale"] ** 2  # of a mean over the numbers of scaled vectors
    items_a_step = min(kind.batch_size, len(vectors))
    return {
        "epochs": [row["step"] * items_a_step / len(vectors) for row in curve["rows"]],
        "loss": [row["loss"] * unit for row in curve["rows"]],
        "distortion": [row["reconstruction"] * unit for row in curve["rows"]],
    }


def first_below(epochs: list[float], values: list[float], bar: float) -> float | None:
    """The first of the epochs with a value below the bar; None where there is none."""
    return next((epoch for epoch, value in zip(epochs, values, strict=True) if value < bar), None)


def show(console: Console, rows: list[Row]) -> None:
    """Print a table of each quantity, a row a setting."""
    epochs = [f"{epoch:.1f}" for epoch in rows[0]["epochs"]]
    for name in CURVES:
        cells = [
            [
                f"{row['encoder']}; {row['start']}",
                *(f"{value:.4f}" for value in row[name]),
                "–" if row["epochs_to_kmeans"] is None else f"{row['epochs_to_kmeans']:.1f}",
            ]
            for row in rows
        ]
        console.print(f"\n## {name}, by epoch\n")
        console.print(markdown(["encoder; start", *epochs, "below k-means at"], cells))


def drawn(rows: list[Row], of_kmeans: float) -> Figure:
    """Loss and distortion by epoch, a line a setting: its colour is the start, its dashes are the encoder."""
    figure = Figure(figsize=(9.0, 3.8))
    by_name = {f"{row['encoder']}; {row['start']}": row for row in rows}
    labels = coinciding({name: row["loss"] for name, row in by_name.items()})
    for axes, quantity in zip(figure.subplots(1, 2), CURVES, strict=True):
        for name, label in labels.items():
            row = by_name[name]
            colour = COLOURS[STARTS.index(row["start"])]
            axes.plot(row["epochs"], row[quantity], color=colour, linestyle=LINES[row["encoder"]], label=label)
        axes.set(title=quantity, xlabel="epoch", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    axes.axhline(of_kmeans, color="#999999", linewidth=0.8, label="residual k-means")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, fontsize=8, ncols=2)
    return figure


if __name__ == "__main__":
    run_as_command(main)
