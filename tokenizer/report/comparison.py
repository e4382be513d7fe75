"""Several sets of semantic IDs of the same items: their figures as a table, and a page with the plots laid over each other."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.html import page, plot, table
from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.codebooks import fitted_codebooks
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, Rows
from sidrec.tokenizer.embeddings.sources import read_source
from sidrec.tokenizer.interchange import read_codes
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.report.categories import categories_of
from sidrec.tokenizer.report.figures import measure
from sidrec.tokenizer.report.plots import COLOURS, GREY, bare_axes, coinciding, counts_on_log_scale, legend_below
from sidrec.tokenizer.report.vector_metrics import NEIGHBOURS, margins
from sidrec.tokenizer.semantic_ids import SemanticIds

Measured = dict[str, dict[str, Any]]  # a set's name: its figures
LINES = ("-", "--", ":", "-.")

TABLE_WIDTH = 200  # where the output is no terminal: no column is cut


@dataclass(frozen=True)
class SidSet:
    """One set: codes int [N, L] as they are used; raw int [N, L or L-1] as the quantizer gave them; level_sizes: K_l, for L levels.

    Where raw has a level less, the last code only tells items apart.
    """

    name: str
    codes: np.ndarray
    raw: np.ndarray
    level_sizes: list[int]
    quantizer: Quantizer | None

    @classmethod
    def of(cls, name: str, sids: SemanticIds) -> SidSet:
        """A set that this project made."""
        coded = len(sids.quantizer.codebooks.sizes) if sids.quantizer else sids.n_levels
        return cls(name, sids.codes, sids.codes_raw[:, :coded], sids.level_sizes, sids.quantizer)


def measure_set(vectors: Rows, one: SidSet, seed: int, categories: list[str] | None) -> dict[str, Any]:
    """The figures of `sidrec.tokenizer.report.figures.measure`, with vectors fitted to the set's raw codes, whatever its quantizer.

    own_mean_squared_error: what the set's own quantizer leaves of these vectors, with the codes that are used; own_margins: the median
    margin of each level among that quantizer's codes, of its latents; both None where there is no quantizer, or one for vectors of
    another width. vectors: [N, D].
    """
    coded = one.raw.shape[1]
    fitted = Quantizer(fitted_codebooks(vectors, one.raw, one.level_sizes[:coded]))
    raw = np.concatenate([one.raw, np.zeros_like(one.codes[:, coded:])], axis=1)
    books = [np.zeros((size, 1), dtype=np.float32) for size in one.level_sizes]
    figures = measure(vectors, SemanticIds(one.codes, raw, books, fitted), seed, categories)
    quantizers_error, quantizers_margins = None, None
    if one.quantizer is not None and _width(one.quantizer) == vectors.shape[1]:
        quantizers_error = round(one.quantizer.mean_squared_errors(vectors, one.codes[:, :coded])[-1], 6)
        quantizers_margins = [
            round(float(m), 6) for m in np.median(margins(vectors, one.raw, one.quantizer, seed), axis=0)
        ]
    return figures | {
        "reconstruction": "fitted to the codes",
        "own_mean_squared_error": quantizers_error,
        "own_margins": quantizers_margins,
    }


def _width(quantizer: Quantizer) -> int:
    """D of the vectors that a quantizer codes."""
    if quantizer.encoder is None:
        return quantizer.codebooks.width
    return sum(width for width, _ in quantizer.encoder.blocks)


def rows(measured: Measured) -> list[tuple[str, ...]]:
    """The table: what is measured, then a cell a set."""
    described = {
        "tokens an item": lambda f: f"{f['tokens']['tokens_per_item']}",
        "codes by level": lambda f: _by_level(f, "codes", "{:,}"),
        "codes used": lambda f: _by_level(f, "codes_used", "{:,}"),
        "perplexity": lambda f: _by_level(f, "perplexity", "{:.0f}"),
        "Gini": lambda f: _by_level(f, "gini", "{:.2f}"),
        "largest cluster": lambda f: _by_level(f, "largest_cluster", "{:,}"),
        "variance explained": lambda f: _by_level(f, "variance_explained", "{:.1%}"),
        "MSE, codes as used": lambda f: f"{f['mean_squared_error_unique']:.4f}",
        "MSE, codes as quantized": lambda f: f"{f['mean_squared_error_raw']:.4f}",
        "MSE by its own quantizer": lambda f: _optional(f["own_mean_squared_error"], "{:.4f}"),
        "1 - distinct / items, as quantized": lambda f: f"{f['collisions_raw']['rate']:.2%}",
        "1 - distinct / items, as used": lambda f: f"{f['collisions']['rate']:.2%}",
        "items that share their ID, as quantized": lambda f: f"{f['collisions_raw']['share_of_items']:.2%}",
        "items that share their ID, as used": lambda f: f"{f['collisions']['share_of_items']:.2%}",
        "largest such group, as quantized": lambda f: f"{f['collisions_raw']['largest_group']:,}",
        "distinct prefixes": lambda f: " / ".join(f"{depth['prefixes']:,}" for depth in f["prefix_tree"]),
        "entropy by level, nats": lambda f: " / ".join(f"{told:.2f}" for told in f["entropy"]["conditional"]),
        f"nearest {NEIGHBOURS} items kept": lambda f: f"{f['neighbours']['preserved']:.1%}",
        "nearest items with the first code": lambda f: f"{f['neighbours']['prefix_agreement'][0]:.1%}",
        "random pairs with the first code": lambda f: f"{f['neighbours']['random_pairs'][0]:.1%}",
        "cosine within first codes": lambda f: _optional(f["within_prefixes"]["cosine"][0], "{:.3f}"),
        "margin, median": lambda f: " / ".join(
            f"{level['margin']['median']:.2f}" for level in f["levels"] if "margin" in level
        ),
        "margin of its own quantizer, median": lambda f: (
            "–" if f["own_margins"] is None else " / ".join(f"{median:.2f}" for median in f["own_margins"])
        ),
    }
    if all(figures["categories"] for figures in measured.values()):
        described["purity of first codes (by chance)"] = lambda f: (
            f"{f['categories']['purity']:.3f} ({f['categories']['by_chance']['purity']:.3f})"
        )
        described["NMI of first codes (by chance)"] = lambda f: (
            f"{f['categories']['nmi']:.3f} ({f['categories']['by_chance']['nmi']:.3f})"
        )
    return [(name, *(cell(figures) for figures in measured.values())) for name, cell in described.items()]


def _by_level(figures: dict[str, Any], name: str, form: str) -> str:
    return " / ".join(form.format(level[name]) for level in figures["levels"])


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def console_table(measured: Measured) -> Table:
    """The table for a terminal."""
    out = Table(box=box.SIMPLE_HEAD)
    out.add_column("")
    for name in measured:
        out.add_column(name, justify="right")
    for row in rows(measured):
        out.add_row(*row)
    return out


def variance_plot(measured: Measured) -> Figure:
    """The rate-distortion curve: variance explained after each level, a line a set."""
    figure, axes = bare_axes(5.2, 3.6)
    curves = {
        name: [level["variance_explained"] for level in figures["levels"] if "margin" in level]
        for name, figures in measured.items()
    }
    deepest, labels = max(1, *map(len, curves.values())), coinciding(curves)
    for place, (name, explained) in enumerate(curves.items()):
        if name in labels:
            axes.plot(range(1, len(explained) + 1), explained, marker="o", label=labels[name], **_look(place))
    axes.set_xticks(range(1, deepest + 1))
    axes.set(title="Variance explained", xlabel="codes kept")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter("{x:.0%}")
    legend_below(figure, axes)
    return figure


def usage_plot(sets: list[SidSet], level: int) -> Figure:
    """Items per code of one level, codes sorted by size, a line a set that has the level."""
    figure, axes = bare_axes(4.6, 3.2)
    curves = {
        one.name: np.sort(np.bincount(one.raw[:, level], minlength=one.level_sizes[level]))[::-1]
        for one in sets
        if level < one.raw.shape[1]
    }
    places, labels = {one.name: place for place, one in enumerate(sets)}, coinciding(curves)
    for name, label in labels.items():
        counts = curves[name]
        axes.step(np.arange(1, len(counts) + 1), counts, where="mid", label=label, **_look(places[name]))
        axes.axhline(counts.sum() / len(counts), color=GREY, linewidth=0.8, linestyle="--")
    counts_on_log_scale(axes)
    axes.set(title=f"Items per code, level {level + 1}", xlabel="codes, most used first", ylabel="items")
    legend_below(figure, axes)
    return figure


def pareto_plot(measured: Measured) -> Figure:
    """Error against collisions: a hollow point for the codes as quantized, a full one as used, a line between."""
    figure, axes = bare_axes(5.2, 3.6)
    points = {
        name: [
            [figures[key]["share_of_items"] for key in ("collisions_raw", "collisions")],
            [figures["mean_squared_error_raw"], figures["mean_squared_error_unique"]],
        ]
        for name, figures in measured.items()
    }
    labels = coinciding(points)
    for place, (name, (shares, errors)) in enumerate(points.items()):
        if name not in labels:
            continue
        colour = _look(place)["color"]
        axes.plot(shares, errors, color=colour, linewidth=1)
        axes.plot(shares[0], errors[0], "o", markerfacecolor="white", color=colour, markersize=7)
        axes.plot(shares[1], errors[1], "o", color=colour, markersize=7, label=labels[name])
    axes.set(title="Error against collisions", xlabel="items that share their ID", ylabel="mean squared error")
    axes.set_xlim(left=-0.01)
    axes.xaxis.set_major_formatter("{x:.0%}")
    legend_below(figure, axes)
    return figure


def _look(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": LINES[place // len(COLOURS) % len(LINES)],
        "linewidth": 1.5,
    }


def render(measured: Measured, sets: list[SidSet]) -> str:
    """compare.html: a self-contained page, the same bytes for the same figures."""
    levels = max(one.raw.shape[1] for one in sets)
    first = next(iter(measured.values()))
    names = ", ".join(html.escape(name) for name in measured)
    parts = [
        INTRODUCTION.format(items=first["items"], names=names),
        table(("", *measured), rows(measured)),
        NOTES.format(sampled=first["neighbours"]["sampled"]),
        '<div class="plots">',
        plot(variance_plot(measured), VARIANCE_CAPTION),
        plot(pareto_plot(measured), PARETO_CAPTION),
        *(plot(usage_plot(sets, level), USAGE_CAPTION) for level in range(levels)),
        "</div>",
    ]
    return page("Semantic IDs: comparison", "\n".join(parts))


INTRODUCTION = """<h1>Semantic IDs side by side</h1>
<p>A <b>semantic ID</b> is a short name for an item, made of codes: the first names a broad group of similar items, each further one
narrows it down. Here are the sets {names}, of the same {items:,} items, measured against the same item vectors.</p>"""

NOTES = """<p>“As quantized” are the codes that the quantizer gave, “as used” those after IDs were made unique; a set that came as a
file has only the latter. Several numbers in a cell are levels, the first level first. So that sets of any origin compare, a code's
vector is fitted to its items in the same way for all: the mean of what the codes before it leave over. Mean squared error (MSE) is a
sum over dimensions, of rows of length 1. <b>Perplexity</b> is the number of codes in effect in use, <b>Gini</b> 0 for even use; a
<b>margin</b> is how much farther the second nearest code is than the nearest. Neighbours are of {sampled:,} sampled items, the same
for all sets.</p>"""

VARIANCE_CAPTION = (
    "How much of the differences between item vectors survives in the codes: higher with fewer codes is better."
)
PARETO_CAPTION = (
    "Down and left is better. A hollow point is the set as quantized, the full one as used: "
    "uniqueness costs what the line rises."
)
USAGE_CAPTION = "A line near the dashed one is even use. A cliff at the right: codes that nothing uses."


def show(measured: dict[str, dict[str, Any]], folder: Path) -> None:
    """Print the table, as wide as it is, and where the page is."""
    Console(width=None if Console().is_terminal else TABLE_WIDTH).print(console_table(measured))
    Screen("compare").say(f"Look at {folder / 'compare.html'}")


def read_sets(paths: list[str], names: list[str], codes_per_level: int | None) -> list[SidSet]:
    """The sets of semantic IDs, all of the same items. Raises InputError naming the one that is not."""
    sets = [read_set(name, Path(path), codes_per_level) for name, path in zip(names, paths, strict=True)]
    n_items = len(sets[0].codes)
    for other, path in zip(sets, paths, strict=True):
        if len(other.codes) != n_items:
            raise InputError(
                f"{path} has {len(other.codes)} items, but {paths[0]} has {n_items}; compare sets of the same items."
            )
    return sets


def read_items(
    vectors: list[str], weights: list[float], items: str | None, n_items: int
) -> tuple[ItemVectors, list[str] | None]:
    """The item vectors [N, D], and the items' categories where a catalogue is named."""
    for path in vectors:
        if not Path(path).is_file():
            raise InputError(f"{path} does not exist; correct --vectors.")
    rows = ItemVectors([read_source(Path(path), n_items) for path in vectors], weights)
    return rows, read_categories(Path(items), n_items) if items else None


def read_set(name: str, path: Path, codes_per_level: int | None) -> SidSet:
    """A set of semantic IDs from a folder or a file. Raises InputError when it is neither, or does not hold such a set."""
    if path.is_dir():
        return SidSet.of(name, SemanticIds.read(path))
    if not path.is_file() or path.suffix not in (".json", ".npy"):
        raise InputError(
            f"{path} is no folder with codes_all.npy, no .index.json and no .npy of codes; correct --sids."
        )
    codes, has_extra = read_codes(path)  # [N, L]
    coded = codes[:, :-1] if has_extra else codes
    largest = int(coded.max()) + 1
    if codes_per_level is not None and largest > codes_per_level:
        raise InputError(
            f"{path} holds the code {largest - 1}, beyond the {codes_per_level} of --codes_per_level; raise it."
        )
    sizes = [codes_per_level or largest] * coded.shape[1]
    return SidSet(name, codes, coded, sizes + [int(codes[:, -1].max()) + 1] * has_extra, None)


def read_categories(path: Path, n_items: int) -> list[str]:
    """The items' categories. Raises InputError when the file has none, or another number of items."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; correct --items.")
    items = pl.read_parquet(path, glob=False)
    categories = categories_of(items)
    if categories is None:
        raise InputError(f"{path} has no column genres, category or categories with two values; leave --items out.")
    if len(categories) != n_items:
        raise InputError(
            f"{path} has {len(categories)} items, but the SIDs are of {n_items}; give the same catalogue's."
        )
    return categories
