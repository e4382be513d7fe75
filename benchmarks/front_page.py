"""A front as people look at it: each aim against Recall@10, a line a family, as a PNG and as a page with the figures."""

from __future__ import annotations

import html
from pathlib import Path

from matplotlib.figure import Figure

from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.html import page, plot, table

Points = dict[tuple[str, float], dict[str, float]]  # (family, weight) → figures, recall among them
CAPTION = (
    "On test. A line is a family, a point a weight of it; the star is SFT. Further up is more of the aim, further right more "
    "Recall@10."
)


def drawn(points: Points, aims: dict[str, str]) -> Figure:
    """A panel an aim that was measured."""
    shown = {aim: title for aim, title in aims.items() if any(aim in figures for figures in points.values())}
    figure = Figure(figsize=(4.2 * len(shown), 4.4))
    families = list(dict.fromkeys(family for family, _ in points))
    for axis, (aim, title) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for number, family in enumerate(families):
            of_family = [figures for (name, _), figures in points.items() if name == family]
            x, y = ([point[name] for point in of_family] for name in ("recall", aim))
            look = (
                {"marker": "*", "markersize": 14, "color": "black"}
                if len(of_family) == 1 and number == 0
                else {"marker": "o"}
            )
            axis.plot(x, y, label=family, linestyle="-" if family.startswith("RL") else ":", **look)
        axis.set_xlabel("Recall@10")
        axis.set_title(title)
    figure.axes[0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def write_page(folder: Path, name: str, points: Points, aims: dict[str, str]) -> None:
    """front.png and front.html in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = drawn(points, aims)
    with atomic_path(folder / "front.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    columns = ["recall", *(aim for aim in aims if aim in next(iter(points.values())))]
    rows = [
        [family, f"{weight:g}", *(f"{figures[name]:.4f}" for name in columns)]
        for (family, weight), figures in points.items()
    ]
    head = ["family", "weight", "Recall@10", *(aims[name] for name in columns[1:])]
    body = f"<h1>What RL buys, and what it costs: {html.escape(name)}</h1>{plot(figure, CAPTION)}{table(head, rows)}"
    with atomic_path(folder / "front.html") as temporary:
        temporary.write_text(page(f"RL's front on {name}", body), encoding="utf-8")
