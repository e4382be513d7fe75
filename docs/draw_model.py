"""The picture of the language model's layers: `python docs/draw_model.py` writes docs/model.svg (or the file named after it)."""

from __future__ import annotations

from draw_stages import CARD, INK, LINE, PANEL, QUIET, STAGE_COLOURS, arrow, box, save, sid, token, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, HEIGHT = 120.0, 46.0
STATE = 37.0  # where the state runs down through a layer
BLUE, GREEN, ROSE = STAGE_COLOURS
LAYER = "#e4f2ec"


def draw_prompt(axes: Axes) -> None:
    write(axes, 4, 40.8, "1  prompt", 11, weight="bold", ha="left")
    write(axes, 4, 37.6, "a history in semantic IDs", 8.6, QUIET, ha="left")
    token(axes, 4, 33.6, "history")
    for row, codes in enumerate(("a_3 b_28", "a_12 b_20", "a_3 b_5")):
        sid(axes, 4, 30.0 - 3.5 * row, codes)
    write(axes, 4, 17.6, "each token: a row of the", 8.6, ha="left")
    write(axes, 4, 15.0, "embedding; the rows of codes", 8.6, ha="left")
    write(axes, 4, 12.4, "start from the codebooks", 8.6, ha="left")


def branch(axes: Axes, y: float, name: str, what: str) -> None:
    """One branch of a layer: it leaves the state at height y and is added to it below."""
    arrow(axes, (STATE, y), (40.8, y), QUIET)
    box(axes, 41, y - 2.6, 11, 5.2, PANEL, LINE)
    write(axes, 46.5, y, "RMS norm", 8.6)
    arrow(axes, (52.2, y), (54.8, y), QUIET)
    box(axes, 55, y - 2.6, 20, 5.2, PANEL, GREEN, 1.6)
    write(axes, 65, y + 0.9, name, 9.5, weight="bold")
    write(axes, 65, y - 1.2, what, 7.4, QUIET)
    axes.plot([65, 65, STATE + 3], [y - 2.7, y - 4.2, y - 4.2], color=QUIET, linewidth=1.7)
    arrow(axes, (STATE + 3, y - 4.2), (STATE + 1.5, y - 4.2), QUIET)
    box(axes, STATE - 1.2, y - 5.4, 2.4, 2.4, GREEN, GREEN)
    write(axes, STATE, y - 4.3, "+", 11, "#ffffff", weight="bold")


def draw_layers(axes: Axes) -> None:
    write(axes, 33, 40.8, "2  decoder layers", 11, weight="bold", ha="left")
    write(axes, 33, 37.6, "the state of every position goes through all of them", 8.6, QUIET, ha="left")
    box(axes, 33, 11.6, 45, 23.6, LAYER, GREEN, 1.6)
    arrow(axes, (STATE, 35), (STATE, 11.8), INK)
    branch(axes, 31.2, "RoPE attention", "looks at earlier positions")
    branch(axes, 21.2, "SwiGLU", "gated, position by position")
    write(axes, 40, 13.8, "× num_hidden_layers", 8.6, QUIET, ha="left")


def draw_head(axes: Axes) -> None:
    write(axes, 85, 40.8, "3  policy", 11, weight="bold", ha="left")
    write(axes, 85, 37.6, "RMS norm, then the last state", 8.6, QUIET, ha="left")
    write(axes, 85, 35.2, "meets the rows of codes that exist", 8.6, QUIET, ha="left")
    for row, (code, share) in enumerate((("a_12", 0.62), ("a_3", 0.25), ("a_7", 0.13))):
        y = 30.6 - 3.4 * row
        token(axes, 85, y, code)
        box(axes, 92, y - 0.9, 20 * share, 1.8, ROSE, ROSE, 0.5)
        write(axes, 93.6 + 20 * share, y, f"{share:.2f}", 8.2, ha="left")
    write(axes, 85, 20.4, "and under a_12:", 8.6, ha="left")
    for row, (code, share) in enumerate((("b_7", 0.7), ("b_20", 0.3))):
        y = 17.0 - 3.4 * row
        token(axes, 85, y, code)
        box(axes, 92, y - 0.9, 20 * share, 1.8, ROSE, ROSE, 0.5)
        write(axes, 93.6 + 20 * share, y, f"{share:.2f}", 8.2, ha="left")


def draw() -> Figure:
    figure = Figure(figsize=(12, 4.6))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()
    box(axes, 0.3, 0.3, WIDTH - 0.6, HEIGHT - 0.6, CARD, CARD)
    draw_prompt(axes)
    draw_layers(axes)
    draw_head(axes)
    for x in (27.5, 79.5):
        arrow(axes, (x, 23.4), (x + 4, 23.4), INK)
    box(axes, 3, 3, 114, 6, INK, INK)
    write(axes, 60, 6, "π(item | history) = π(a_12) · π(b_7 after a_12) = 0.62 · 0.70 = 0.43", 10, "#ffffff")
    return figure


if __name__ == "__main__":
    save(draw(), "model.svg", "The layers of sidrec's language model")
