"""Evaluation's figures, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sidrec.evaluation.coverage import lorenz
from sidrec.tokenizer.report.plots import COLOURS, GREY, bare_axes, coinciding, legend_below

MODEL_COLOURS = (*COLOURS, "#17a2a2", "#d4a017")
LORENZ_POINTS = 200


def style(models: list[str], model: str, generative: list[str]) -> dict[str, Any]:
    """The colour that a model has in every figure; generative ones solid, baselines dashed."""
    place = models.index(model)
    return {
        "color": MODEL_COLOURS[place % len(MODEL_COLOURS)],
        "linestyle": "-" if model in generative else "--",
        "label": model,
    }


def recall_plot(curves: dict[str, list[float]], generative: list[str], title: str, largest: float) -> Figure:
    """Recall@K over K, a line a model. largest: top of the axis, so that several plots compare."""
    figure, axes = bare_axes(4.4, 3.4)
    for model, label in coinciding(curves).items():
        look = style(list(curves), model, generative) | {"label": label}
        axes.plot(range(1, len(curves[model]) + 1), curves[model], linewidth=1.6, **look)
    axes.set(title=title, xlabel="K: length of the list", ylabel="Recall@K", xlim=(1, None), ylim=(0, 1.05 * largest))
    axes.grid(alpha=0.25)
    legend_below(figure, axes)
    return figure


def gain_plot(slices: pl.DataFrame, kinds: dict[str, str], models: list[str], generative: list[str]) -> Figure:
    """Gain of each model in each slice, with its interval; a panel a kind of slice. kinds: kind -> label of the panel's axis.

    models: all of them, in the order of their colours.
    """
    shown = slices.filter(pl.col("gain").is_not_null() & pl.col("kind").is_in(list(kinds)))
    figure = Figure(figsize=(8.6, 3.5))
    panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
    figure.subplots_adjust(left=0.09, right=0.99, bottom=0.24, top=0.9, wspace=0.06)
    drawn = [model for model in models if model in set(shown["model"])]
    for axes, (kind, label) in zip(panels, kinds.items(), strict=True):
        names = shown.filter(pl.col("kind") == kind)["slice"].unique(maintain_order=True).to_list()
        cases = dict(shown.filter(pl.col("kind") == kind).select("slice", "cases").iter_rows())
        for place, model in enumerate(drawn):
            points = shown.filter((pl.col("kind") == kind) & (pl.col("model") == model))
            x = np.array([names.index(name) for name in points["slice"]]) + (place - (len(drawn) - 1) / 2) * 0.16
            gain, low, high = (points[name].to_numpy() for name in ("gain", "low", "high"))
            colour = style(models, model, generative)["color"]
            axes.errorbar(
                x,
                gain,
                np.stack([gain - low, high - gain]),
                fmt="o",
                color=colour,
                label=model,
                capsize=3,
                markersize=5,
            )
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set_xticks(range(len(names)), [f"{name}\n{cases[name]:,} cases" for name in names], fontsize=8)
        axes.set(xlabel=label, xlim=(-0.6, len(names) - 0.4))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="gain in Recall@10")
    legend_below(figure, panels[0])
    return figure


def lorenz_plot(counts: dict[str, np.ndarray], models: list[str], generative: list[str]) -> Figure:
    """Share of all recommendations that the rarest items have together, a line a model; the targets' own in black."""
    figure, axes = bare_axes(4.4, 3.6)
    for name, label in coinciding({name: count for name, count in counts.items() if count.any()}).items():
        shares = lorenz(counts[name])
        at = np.unique(np.linspace(0, len(shares) - 1, LORENZ_POINTS).round().astype(np.int64))
        look = style(models, name, generative) if name in models else {"color": "black", "linestyle": ":"}
        axes.plot(at / (len(shares) - 1), shares[at], linewidth=1.6, **look | {"label": label})
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="all items equally often")
    axes.set(
        title="Who is shown how often",
        xlabel="items, the rarest first",
        ylabel="share of entries",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    legend_below(figure, axes)
    return figure


def calibration_plot(calibrations: dict[str, dict[str, Any]], models: list[str], title: str) -> Figure:
    """Share that happened over the predicted chance, a line a model, a point a bin with its interval. calibrations: by model."""
    figure, axes = bare_axes(4.4, 3.6)
    right = top = 1e-3
    points = {
        model: [[row["predicted"], row["happened"], *row["interval"]] for row in calibration["bins"]]
        for model, calibration in calibrations.items()
    }
    for model, label in coinciding(points).items():
        calibration = calibrations[model]
        predicted, happened = (
            np.array([row[name] for row in calibration["bins"]]) for name in ("predicted", "happened")
        )
        low, high = np.array([row["interval"] for row in calibration["bins"]]).T
        reach = np.stack([happened - low, high - happened]).clip(min=0)
        colour = MODEL_COLOURS[models.index(model) % len(MODEL_COLOURS)]
        axes.errorbar(
            predicted, happened, reach, fmt="o", color=colour, label=label, capsize=2, markersize=4, elinewidth=1
        )
        right, top = max(right, float(predicted.max())), max(top, float(high.max()))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="as predicted")
    axes.set(
        title=title,
        xlabel="predicted chance",
        ylabel="how often it happened",
        xlim=(0, 1.1 * right),
        ylim=(0, 1.05 * max(top, right)),
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    legend_below(figure, axes)
    return figure


def levels_plot(
    curves: dict[str, list[float]], chance: list[float] | None, models: list[str], generative: list[str], title: str
) -> Figure:
    """A share of cases over the number of codes that must agree, a line a model. curves: by model, [L] each; chance: [L]."""
    figure, axes = bare_axes(4.4, 3.4)
    for model, label in coinciding(curves).items():
        look = style(models, model, generative) | {"label": label}
        shares = curves[model]
        axes.plot(range(1, len(shares) + 1), shares, marker="o", markersize=4, linewidth=1.4, **look)
    if chance is not None:
        axes.plot(range(1, len(chance) + 1), chance, color=GREY, linestyle=":", label="by chance")
    n_levels = len(next(iter(curves.values())))
    axes.set_xticks(range(1, n_levels + 1))
    axes.set(title=title, xlabel="codes that must agree", ylabel="share of cases", ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    legend_below(figure, axes)
    return figure
