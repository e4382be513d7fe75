"""What the project's HTML pages are made of: one style, tables, plots as inline SVG. Self-contained, and the same bytes every time."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterable

from matplotlib import rc_context
from matplotlib.figure import Figure

PIXELS_PER_INCH = 150  # of the parts of a plot that are images


def svg(figure: Figure) -> str:
    """The figure as an <svg> element. Letters that matplotlib's font lacks are left to the browser, so no warning about them."""
    with (
        rc_context({"svg.hashsalt": "sidrec", "svg.fonttype": "none", "font.family": "sans-serif"}),
        warnings.catch_warnings(),
        io.StringIO() as buffer,
    ):
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing from.*font")
        no_dates = {"Date": None, "Creator": None}
        # tight: a legend or a label that is longer than the room left for it makes the drawing wider instead of being cut off
        figure.savefig(
            buffer,
            format="svg",
            dpi=PIXELS_PER_INCH,
            metadata=no_dates,
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.08,
        )
        text = buffer.getvalue()
    return text[text.index("<svg") :]


def plot(figure: Figure, caption: str) -> str:
    """A plot with a sentence or two on how to read it (plain text); it scrolls sideways where the screen is too narrow for it."""
    drawing = svg(figure)
    points = float(re.search(r'width="([\d.]+)pt"', drawing)[1])  # type: ignore[index]
    least = min(int(points), 640)
    drawing = drawing.replace("<svg ", f'<svg style="min-width:{least}px" role="img" ', 1)
    return f'<figure><div class="scroll">{drawing}</div><figcaption>{html.escape(caption)}</figcaption></figure>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "numbers") -> str:
    """An HTML table; cells are plain text, and escaped. kind: "numbers" aligns all columns but the first to the right."""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    top = f"<tr>{names}</tr>\n" if names else ""
    return f'<div class="scroll"><table class="{kind}">\n{top}{lines}</table></div>'


def page(title: str, body: str) -> str:
    """A whole HTML document. title: plain text; body: HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
body { overflow-wrap: break-word; } h1 { font-size: 1.7rem; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin-top: 2.6rem; }
p, figcaption, dd, li { max-width: 44rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
.numbers { font-size: .9rem; } .numbers td { white-space: nowrap; } .numbers th { vertical-align: bottom; }
.plain td { overflow-wrap: break-word; }
.numbers td:nth-child(n+2), .numbers th:nth-child(n+2) { text-align: right; font-variant-numeric: tabular-nums; }
th { font-weight: 600; border-bottom: 1px solid #bbb; } tr.first td { border-top: 1px solid #ddd; padding-top: .5rem; }
code { font-size: .92em; } code b { color: #2a6f97; }
.plots { display: flex; flex-wrap: wrap; gap: 0 2.2rem; align-items: flex-start; }
figure { margin: 1.4rem 0; max-width: 100%; } .plots figure { flex: 1 1 26rem; max-width: 29rem; min-width: 0; }
figcaption { font-size: .9rem; color: #555; max-width: 36rem; }
svg { max-width: 100%; height: auto; display: block; } .scroll { overflow-x: auto; max-width: 100%; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin-left: 0; }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .8rem; } h1 { font-size: 1.4rem; } td, th { font-size: .9rem; } }
"""
