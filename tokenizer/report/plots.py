"""A set of semantic IDs, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import StrMethodFormatter
from scipy.linalg import eigh

from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.report.sid_metrics import prefix_ids
from sidrec.tokenizer.report.vector_metrics import sample
from sidrec.tokenizer.semantic_ids import SemanticIds, sid_token

COLOURS = ("#2a6f97", "#e07a5f", "#588157", "#8d5a97", "#b08900", "#4d4d4d", "#c1666b", "#5c7aea")
GREY = "#999999"
MAPPED_ITEMS = 3_000
TREE_FIRST_CODES, TREE_CHILDREN, TREE_LETTERS = 5, 4, 52
STRIPE_PIXELS = 1_500
LARGEST_HEAT_MAP = 512  # codes a side
LEGEND_COLUMNS = 3


def coinciding(curves: Mapping[str, Any]) -> dict[str, str]:
    """The labels of the curves to draw, by name: of curves with the same values only the first is drawn, as "a = b".

    curves: by name, arrays or lists of numbers, each of any length.
    """
    names_of: dict[str, list[str]] = {}
    for name, curve in curves.items():
        same = (first for first in names_of if np.array_equal(np.asarray(curves[first]), np.asarray(curve)))
        names_of.setdefault(next(same, name), []).append(name)
    return {first: " = ".join(names) for first, names in names_of.items()}


def variance_plot(figures: dict[str, Any]) -> Figure:
    """Share of the variance explained after each level."""
    figure, axes = bare_axes(3.9, 3.2)
    explained = [max(level["variance_explained"], 0) for level in figures["levels"]]
    bars = axes.bar(range(1, len(explained) + 1), explained, width=0.6, color=COLOURS[: len(explained)])
    axes.bar_label(bars, [f"{value:.0%}" for value in explained], padding=3)
    axes.set_xticks(range(1, len(explained) + 1))
    axes.set(title="Variance explained", xlabel="codes kept", ylim=(0, 1))
    axes.yaxis.set_major_formatter("{x:.0%}")
    return figure


def usage_plot(sids: SemanticIds) -> Figure:
    """Items per code, codes sorted by size, one line per level, and where they would all lie if used evenly."""
    figure, axes = bare_axes(5.2, 3.2)
    curves = {
        f"level {level + 1}": np.sort(np.bincount(sids.codes_raw[:, level], minlength=size))[::-1]
        for level, size in enumerate(sids.level_sizes)
    }
    labels = coinciding(curves)
    for (name, counts), colour in zip(curves.items(), COLOURS, strict=False):
        if name in labels:
            axes.step(np.arange(1, len(counts) + 1), counts, where="mid", color=colour, label=labels[name])
    even = sids.n_items / max(sids.level_sizes)
    axes.axhline(even, color=GREY, linewidth=1, linestyle="--", label="all codes equal")
    counts_on_log_scale(axes)
    axes.set(title="Items per code", xlabel="codes, most used first", ylabel="items")
    axes.legend(frameon=False)
    return figure


def counts_on_log_scale(axes: Axes) -> None:
    """A log scale that has a place for 0."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def usage_heat_map(sids: SemanticIds) -> Figure:
    """One row a level, one cell a code: its items beside an equal share, blank where it has none."""
    widest = max(sids.level_sizes)
    shares = np.full((sids.n_levels, widest), np.nan)
    for level, size in enumerate(sids.level_sizes):
        counts = np.bincount(sids.codes_raw[:, level], minlength=size)
        shares[level, :size] = np.where(counts > 0, counts * size / sids.n_items, np.nan)
    figure, axes = bare_axes(8.6, 0.9 + 0.42 * sids.n_levels, right=1.1)
    limit = max(2.0, float(np.nanmax(np.abs(np.log2(shares)))))
    image = axes.imshow(
        np.log2(shares), aspect="auto", interpolation="none", cmap="RdYlBu_r", vmin=-limit, vmax=limit, rasterized=True
    )
    axes.set_yticks(range(sids.n_levels), [f"level {level + 1}" for level in range(sids.n_levels)])
    axes.set(title="Use of every code", xlabel="code")
    bar = _colour_bar(figure, axes, image, "x equal share")
    step = max(1, int(limit) // 2)
    ticks = np.arange(-(int(limit) // step) * step, limit + 1e-9, step)
    bar.set_ticks(ticks.tolist(), labels=[f"{2.0**tick:.3g}" for tick in ticks])
    return figure


def fan_out_heat_map(sids: SemanticIds) -> Figure:
    """How many items have each pair of first and second code; rows and columns from the most to the least used."""
    ranks = [_ranks(sids.codes_raw[:, level], size) for level, size in enumerate(sids.level_sizes[:2])]
    shape = [min(size, LARGEST_HEAT_MAP) for size in sids.level_sizes[:2]]
    within = (ranks[0] < shape[0]) & (ranks[1] < shape[1])
    counts = np.bincount(ranks[0][within] * shape[1] + ranks[1][within], minlength=shape[0] * shape[1]).reshape(shape)
    figure, axes = bare_axes(4.9, 3.8, right=0.9)
    shown = np.log10(np.where(counts > 0, counts, np.nan))
    image = axes.imshow(shown, aspect="auto", interpolation="none", cmap="viridis", vmin=0, rasterized=True)
    axes.set(
        title="First and second code together",
        xlabel="second codes, most used first",
        ylabel="first codes, most used first",
    )
    bar = _colour_bar(figure, axes, image, "items")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 1_000, 10_000) if tick <= counts.max()]
    bar.set_ticks(np.log10(ticks).tolist(), labels=[f"{tick:,}" for tick in ticks])
    return figure


def collision_plot(figures: dict[str, Any]) -> Figure:
    """How many groups of how many items share all their codes, before and after IDs were made unique."""
    figure, axes = bare_axes(4.4, 3.2)
    for name, label, colour, marker in (
        ("collisions_raw", "before", COLOURS[0], "o"),
        ("collisions", "after", COLOURS[1], "x"),
    ):
        sizes, groups = np.array(figures[name]["group_sizes"]).T
        axes.plot(sizes, groups, marker, color=colour, label=f"{label} uniqueness", markersize=6)
    axes.set(
        xscale="log", yscale="log", title="Items with one and the same ID", xlabel="items in the group", ylabel="groups"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter("")
    axes.legend(frameon=False)
    return figure


def margin_plot(figures: dict[str, Any]) -> Figure:
    """How clear the choice of code was: share of the sampled items by margin, a line a level."""
    figure, axes = bare_axes(4.4, 3.2)
    histogram = figures["margins"]
    edges = np.array(histogram["edges"])
    curves = {f"level {level}": shares for level, shares in enumerate(histogram["shares"], start=1)}
    labels = coinciding(curves)
    for (name, shares), colour in zip(curves.items(), COLOURS, strict=False):
        if name in labels:
            axes.stairs(shares, edges, color=colour, label=labels[name], linewidth=1.5)
    axes.set(
        title="Nearest against second nearest code",
        xlabel="margin (d2 - d1) / d1; the last bar holds all above",
        ylabel="items",
    )
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False)
    return figure


def item_map(vectors: Rows, sids: SemanticIds, seed: int) -> Figure:
    """A sample of the items on the two principal axes of their vectors; the eight most used first codes in colour."""
    items = sample(sids.n_items, MAPPED_ITEMS, seed)
    rows = np.array(vectors[items], dtype=np.float64)
    rows -= rows.mean(axis=0)
    D = rows.shape[1]
    axes_of = eigh(rows.T @ rows, subset_by_index=[max(D - 2, 0), D - 1])[1].T[::-1]  # [2, D], the longest axis first
    axes_of *= np.sign(axes_of[np.arange(len(axes_of)), np.abs(axes_of).argmax(axis=1)])[
        :, None
    ]  # one sign, not LAPACK's
    places = np.zeros((len(items), 2))
    places[:, : len(axes_of)] = rows @ axes_of.T
    first = sids.codes_raw[items, 0]
    counts = np.bincount(first, minlength=sids.level_sizes[0])
    figure, axes = bare_axes(4.7, 4.2, left=0.35)
    top = [code for code in np.argsort(-counts, kind="stable")[: len(COLOURS)] if counts[code]]
    others = places[~np.isin(first, top)]
    axes.scatter(others[:, 0], others[:, 1], s=7, color="#cccccc", label="all others", linewidths=0, rasterized=True)
    for code, colour in zip(top, COLOURS, strict=False):
        points, name = places[first == code], f"{sid_token(0, int(code))}: {counts[code]}"
        axes.scatter(points[:, 0], points[:, 1], s=16, color=colour, label=name, linewidths=0, rasterized=True)
    axes.set(
        title="Items by first code", xlabel="first principal axis", ylabel="second principal axis", xticks=[], yticks=[]
    )
    legend_below(figure, axes, title="first code: items drawn")
    return figure


def tree_stripes(sids: SemanticIds) -> Figure:
    """The whole prefix tree as an icicle: all items side by side, fullest prefixes first, a stripe a depth, dark where many share it."""
    ids = prefix_ids(sids.codes)
    sizes = np.stack([np.bincount(column)[column] for column in ids.T])  # [L, N]: items that share the prefix
    keys = [key for level in reversed(range(sids.n_levels)) for key in (ids[:, level], -sizes[level])]
    order = np.lexsort(keys)  # by size of the first prefix, the prefix, size of the second, …
    order = order[np.linspace(0, len(order) - 1, min(len(order), STRIPE_PIXELS)).round().astype(np.int64)]
    figure, axes = bare_axes(8.6, 0.9 + 0.45 * sids.n_levels, right=0.9)
    shades = LogNorm(1, max(2, int(sizes.max())))
    extent = (0, sids.n_items, sids.n_levels, 0)
    image = axes.imshow(
        sizes[:, order], aspect="auto", interpolation="none", cmap="Blues", norm=shades, extent=extent, rasterized=True
    )
    _colour_bar(figure, axes, image, "items that share it").formatter = StrMethodFormatter("{x:,.0f}")
    axes.set_yticks(
        np.arange(sids.n_levels) + 0.5, [f"{depth + 1} code{'s' * (depth > 0)}" for depth in range(sids.n_levels)]
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(title="The prefix tree: all items, those of the fullest codes first", xlabel="items")
    return figure


def tree_plot(sids: SemanticIds, titles: list[str], categories: list[str] | None) -> Figure:
    """The five fullest first codes, the four fullest branches of each, and an item of every branch."""
    codes = sids.codes
    depth = min(2, sids.n_levels)
    ids = prefix_ids(codes)
    rows: list[tuple[int, int, np.ndarray]] = []  # place of the first code, its prefix, the items of a branch
    firsts = np.argsort(-np.bincount(ids[:, 0]), kind="stable")[:TREE_FIRST_CODES]
    for place, first in enumerate(firsts):
        items = np.flatnonzero(ids[:, 0] == first)
        branches, counts = np.unique(ids[items, depth - 1], return_counts=True)
        for branch in branches[np.argsort(-counts, kind="stable")][:TREE_CHILDREN]:
            rows.append((place, int(first), items[ids[items, depth - 1] == branch]))
    figure = Figure(figsize=(8.6, 0.6 + 0.34 * len(rows)))
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.9))
    axes.set(
        xlim=(0, 10), ylim=(len(rows), 0), title=f"The {len(firsts)} fullest first codes and their fullest branches"
    )
    axes.axis("off")
    for place in range(len(firsts)):
        rows_of_first = [row for row, (of, _, _) in enumerate(rows) if of == place]
        items = np.flatnonzero(ids[:, 0] == rows[rows_of_first[0]][1])
        colour = COLOURS[place]
        label = f"{sid_token(0, int(codes[items[0], 0]))}: {len(items):,} items"
        if categories is not None:
            label += f"\n{_main_category(items, categories)}"
        _block(axes, (0, rows_of_first[0], 2.2, len(rows_of_first)), label, colour, 0.35)
        for row in rows_of_first:
            branch = rows[row][2]
            text = "".join(sid_token(level, int(code)) for level, code in enumerate(codes[branch[0], :depth]))
            _block(axes, (2.25, row, 2.1, 1), f"{text[:24]}: {len(branch):,}", colour, 0.2)
            _block(axes, (4.4, row, 5.6, 1), _printable(titles[branch[0]]), colour, 0.08, align="left")
    return figure


def training_plot(history: list[dict[str, Any]]) -> Figure | None:
    """What training measured as it went, a panel a quantity. history: rows with `step`; None when no quantity has two finite values."""
    names = [name for name in dict.fromkeys(name for row in history for name in row) if name != "step"]
    panels = []
    for name in names:
        lines = _lines(history, name)
        if any(len(steps) > 1 for _, steps, _ in lines):
            panels.append((name, lines))
    if not panels:
        return None
    columns = min(3, len(panels))
    n_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.4 * n_rows))
    grid = figure.subplots(n_rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(
        left=0.2 / columns, right=0.99, bottom=0.25 / n_rows, top=1 - 0.14 / n_rows, wspace=0.35, hspace=0.6
    )
    for axes, (name, lines) in zip(grid, panels, strict=False):
        for place, (label, steps, values) in enumerate(lines):
            axes.plot(steps, values, color=COLOURS[place % len(COLOURS)], linewidth=1.4, label=label)
        axes.set(title=name.replace("_", " "), xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    return figure


def _lines(history: list[dict[str, Any]], name: str) -> list[tuple[str, list[float], list[float]]]:
    """(label, steps, values) of a quantity; one line a level where its values are lists. Only finite numbers."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for place, row in enumerate(history):
        value = row.get(name)
        parts = list(enumerate(value, start=1)) if isinstance(value, list) else [(0, value)]
        for level, number in parts:
            if isinstance(number, int | float) and not isinstance(number, bool) and np.isfinite(number):
                steps, values = points.setdefault(f"level {level}" if level else name, ([], []))
                steps.append(float(row.get("step", place)))
                values.append(float(number))
    return [(label, steps, values) for label, (steps, values) in points.items()]


def _ranks(codes: np.ndarray, size: int) -> np.ndarray:
    """For every item the place of its code among the level's codes, the most used one first: int64 [N]."""
    order = np.argsort(-np.bincount(codes, minlength=size), kind="stable")
    ranks = np.empty(size, dtype=np.int64)
    ranks[order] = np.arange(size)
    return ranks[codes]


def bare_axes(width: float, height: float, left: float = 0.75, right: float = 0.15) -> tuple[Figure, Axes]:
    """Axes in a new figure, sizes in inches; `right` leaves room for a colour bar or a legend. Margins are fixed: a layout engine would
    take most of the time that a page takes."""
    figure = Figure(figsize=(width, height))
    low, high = 0.55, 0.35  # the x axis, the title
    box = (left / width, low / height, (width - left - right) / width, (height - low - high) / height)
    axes = figure.add_axes(box)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend_below(figure: Figure, axes: Axes, title: str = "") -> None:
    """The legend of the axes below everything, where it covers no line and makes no plot too wide for a phone."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=LEGEND_COLUMNS,
        title=title or None,
        frameon=False,
        fontsize=8,
    )


def _colour_bar(figure: Figure, axes: Axes, image: AxesImage, label: str) -> Colorbar:
    """A colour bar in the room at the right of the axes."""
    box, width = axes.get_position(), figure.get_figwidth()
    return figure.colorbar(
        image, cax=figure.add_axes((box.x1 + 0.1 / width, box.y0, 0.14 / width, box.height)), label=label
    )


def _block(
    axes: Axes, box: tuple[float, float, float, float], text: str, colour: str, strength: float, align: str = "center"
) -> None:
    """A filled box (left, top, width, height) with text in it. Titles may hold any signs: they are no formulas."""
    left, top, width, height = box
    pale = tuple(1 - strength * (1 - int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
    axes.bar(left, height - 0.06, width - 0.04, top + 0.03, align="edge", color=pale)
    x = left + 0.12 if align == "left" else left + width / 2
    axes.text(x, top + height / 2, text, ha=align, va="center", fontsize=9, parse_math=False)


def _main_category(items: np.ndarray, categories: list[str]) -> str:
    names, counts = np.unique([categories[item] for item in items], return_counts=True)
    most = int(counts.argmax())
    return f"{counts[most] / len(items):.0%} {_printable(str(names[most]) or 'no category')[:20]}"


def _printable(title: str) -> str:
    """A title on one line of limited length; signs that a drawing cannot hold become spaces."""
    text = "".join(sign if sign.isprintable() else " " for sign in str(title))
    return text if len(text) <= TREE_LETTERS else text[: TREE_LETTERS - 1] + "…"
