"""The README's picture of the three stages: `python docs/draw_stages.py` writes docs/stages.svg (or the file named after it)."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, QUIET, LINE = "#1d2733", "#56657a", "#b9c4d2"
CARD, PANEL = "#eef2f7", "#ffffff"  # an opaque card: the same picture on light and dark pages
STAGE_COLOURS = ("#2f6fb0", "#2b8a63", "#a8487c")
LEVEL_COLOURS = {"a": "#2f6fb0", "b": "#c8641b", "h": "#56657a"}
WIDTH, HEIGHT = 120.0, 66.0  # the units of everything below


def box(axes: Axes, x: float, y: float, width: float, height: float, face: str, edge: str, line: float = 1.2) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=1.1", facecolor=face, edgecolor=edge, linewidth=line
    )
    axes.add_patch(shape)


def write(axes: Axes, x: float, y: float, text: str, size: float = 9.5, colour: str = INK, **kind: str) -> None:
    axes.text(x, y, text, fontsize=size, color=colour, va="center", **({"ha": "center"} | kind))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>,head_width=3.2,head_length=5",
            connectionstyle=f"arc3,rad={bend}",
            color=colour,
            linewidth=1.7,
            shrinkA=0,
            shrinkB=0,
        )
    )


def token(axes: Axes, x: float, y: float, text: str, faint: bool = False) -> None:
    """One token, 5.6 wide or more, its left edge at x and its middle at y; `a_12` is written ⟨a_12⟩ in the colour of its level."""
    colour, width = LEVEL_COLOURS[text[0]], max(5.6, 1.3 * len(text))
    box(axes, x, y - 1.35, width, 2.7, "#ffffff" if faint else colour, colour, 1.0)
    write(axes, x + width / 2, y - 0.05, f"<{text}>", 7.4, colour if faint else "#ffffff", family="monospace")


def sid(axes: Axes, x: float, y: float, codes: str, faint: bool = False) -> None:
    """A semantic ID of two tokens, 11.8 wide."""
    for place, code in enumerate(codes.split()):
        token(axes, x + 6.2 * place, y, code, faint)


def panel(axes: Axes, x: float, number: int, name: str, what: str) -> None:
    colour = STAGE_COLOURS[number - 1]
    box(axes, x, 17, 36, 46, PANEL, LINE)
    box(axes, x, 56.5, 36, 6.5, colour, colour)
    write(axes, x + 2.2, 59.7, f"{number}  {name}", 13, "#ffffff", ha="left", weight="bold")
    write(axes, x + 33.8, 59.7, what, 9, "#ffffff", ha="right")


def draw_tokenizer(axes: Axes, x: float) -> None:
    box(axes, x + 2, 46.3, 15.2, 7.6, "#f6f8fb", LINE)
    write(axes, x + 9.6, 51.8, "The Last Captain", 8.6, weight="bold")
    write(axes, x + 9.6, 48.6, "title, text", 8, QUIET)
    box(axes, x + 18.8, 46.3, 15.2, 7.6, "#f6f8fb", LINE)
    write(axes, x + 26.4, 51.8, "its neighbours", 8.6, weight="bold")
    write(axes, x + 26.4, 48.6, "in users' histories", 8, QUIET)
    arrow(axes, (x + 9.6, 46.1), (x + 14.5, 42.9), QUIET)
    arrow(axes, (x + 26.4, 46.1), (x + 21.5, 42.9), QUIET)
    shades = (0.75, 0.3, 0.55, 0.9, 0.2, 0.45, 0.65, 0.35, 0.8, 0.25, 0.6, 0.5)
    for place, shade in enumerate(shades):
        axes.add_patch(
            FancyBboxPatch((x + 9 + 1.5 * place, 40), 1.2, 2.4, boxstyle="square,pad=0", fc=INK, lw=0, alpha=shade)
        )
    write(axes, x + 18, 37.9, "one vector per item", 8, QUIET)
    arrow(axes, (x + 18, 36.6), (x + 18, 33.6), QUIET)
    write(axes, x + 2.2, 31.5, "the nearest of the first codebook:", 8.2, ha="left")
    token(axes, x + 28.2, 31.5, "a_12")
    write(axes, x + 2.2, 27.9, "of what is left, the nearest of the second:", 8.2, ha="left")
    token(axes, x + 28.2, 27.9, "b_20")
    write(axes, x + 18, 23.4, "similar items begin alike; no two are the same", 8.2, QUIET, style="italic")
    sid(axes, x + 2.2, 20.2, "a_12 b_20")
    sid(axes, x + 22.0, 20.2, "a_12 b_7")
    write(axes, x + 18, 20.2, "and", 8, QUIET)


def draw_sft(axes: Axes, x: float, colour: str) -> None:
    write(axes, x + 2.2, 52.8, "a user's history, in semantic IDs", 8.6, ha="left")
    sid(axes, x + 2.2, 49.6, "a_3 b_28")
    sid(axes, x + 2.2, 46.3, "a_12 b_20")
    sid(axes, x + 2.2, 43.0, "a_3 b_5")
    write(axes, x + 15.6, 49.6, "The Glass Comet", 8.2, QUIET, ha="left")
    write(axes, x + 15.6, 46.3, "The Last Captain", 8.2, QUIET, ha="left")
    write(axes, x + 15.6, 43.0, "The Hidden Orbit", 8.2, QUIET, ha="left")
    arrow(axes, (x + 18, 41.2), (x + 18, 38.3), QUIET)
    box(axes, x + 6, 30.8, 24, 7.2, "#e4f2ec", colour, 1.6)
    write(axes, x + 18, 35.5, "language model", 10.5, weight="bold")
    write(axes, x + 18, 32.6, "SID tokens in its vocabulary", 7.8, QUIET)
    arrow(axes, (x + 18, 30.6), (x + 18, 27.6), QUIET)
    write(axes, x + 2.2, 25.9, "learns to write the next item", 8.6, ha="left")
    sid(axes, x + 2.2, 22.7, "a_12 b_7", faint=True)
    write(axes, x + 15.6, 22.7, "The Crimson Captain", 8.2, QUIET, ha="left")
    write(axes, x + 18, 19.7, "choosing only among codes that exist", 8.2, QUIET, style="italic")


def draw_rl(axes: Axes, x: float, colour: str) -> None:
    write(axes, x + 2.2, 52.8, "draws G different items", 8.6, ha="left")
    write(axes, x + 33.8, 52.8, "reward", 8.6, ha="right")
    rollouts = (
        ("a_12 b_9", "0.1", False),
        ("a_12 b_7", "1.2", True),
        ("a_3 b_14", "0", False),
        ("a_7 b_2", "0", False),
    )
    for row, (codes, reward, hit) in enumerate(rollouts):
        y = 49.4 - 3.5 * row
        if hit:
            box(axes, x + 1.2, y - 1.75, 33.6, 3.5, "#f8e9f1", "#f8e9f1")
        sid(axes, x + 2.2, y, codes)
        note = {"0.1": "right first code", "1.2": "what was taken", "0": ""}[reward]
        write(axes, x + 15.6, y, note, 8.2, QUIET, ha="left")
        write(axes, x + 33.8, y, reward, 9.5, ha="right", weight="bold")
    arrow(axes, (x + 18, 36.6), (x + 18, 33.4), QUIET)
    write(axes, x + 18, 31.6, "better than the group's mean: more likely", 8.2)
    write(axes, x + 18, 28.9, "worse: less likely", 8.2)
    arrow(axes, (x + 18, 27.2), (x + 18, 24.9), QUIET)
    box(axes, x + 6, 19.4, 24, 5.4, "#f8e9f1", colour, 1.6)
    write(axes, x + 18, 22.0, "the model, tuned on hits", 10, weight="bold")


def draw_result(axes: Axes) -> None:
    box(axes, 3, 3, 114, 9.5, INK, INK)
    write(axes, 5.2, 9.4, "recommend", 13, "#ffffff", ha="left", weight="bold")
    write(
        axes,
        5.2,
        5.8,
        "beam search over the catalogue's codes: k different items, always real ones",
        8.6,
        "#cdd7e3",
        ha="left",
    )
    write(axes, 114.8, 9.4, "evaluate", 13, "#ffffff", ha="right", weight="bold")
    write(axes, 114.8, 5.8, "Recall@K over the whole catalogue, beside baselines", 8.6, "#cdd7e3", ha="right")


def draw() -> Figure:
    figure = Figure(figsize=(12, 6.6))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()
    box(axes, 0.3, 0.3, WIDTH - 0.6, HEIGHT - 0.6, CARD, CARD)
    panel(axes, 3, 1, "tokenizer", "items → semantic IDs")
    panel(axes, 42, 2, "sft", "histories → model")
    panel(axes, 81, 3, "rl", "GRPO on hits")
    draw_tokenizer(axes, 3)
    draw_sft(axes, 42, STAGE_COLOURS[1])
    draw_rl(axes, 81, STAGE_COLOURS[2])
    for x in (39.2, 78.2):
        arrow(axes, (x, 40), (x + 2.6, 40), INK)
    arrow(axes, (99, 16.8), (99, 12.9), INK)
    draw_result(axes)
    return figure


def save(figure: Figure, name: str, title: str) -> None:
    """Write a picture beside this file, or as the file that the command line names (.svg or .png)."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name(name)
    mpl.rcParams["svg.hashsalt"] = "sidrec"  # the same bytes each time
    if path.suffix == ".svg":
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None, "Title": title})
    else:
        FigureCanvasAgg(figure).print_png(path)


if __name__ == "__main__":
    save(draw(), "stages.svg", "The three stages of sidrec")
