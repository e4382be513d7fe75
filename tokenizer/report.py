"""How good a set of semantic IDs is: the figures of report.json, and one page for people, report.html.

Neither holds a clock time, so that two runs of one seed write the same bytes.
"""

from __future__ import annotations

import html
import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich import get_console
from rich.progress import track

from tokenizer.item_vectors import Rows
from tokenizer.semantic_ids import SemanticIds, sid_token

NEIGHBOURS = 10
SAMPLED_ITEMS = 2_000
EXAMPLE_GROUPS, EXAMPLES_PER_GROUP = 4, 3
COLOURS = ("#2a6f97", "#e07a5f", "#588157", "#8d5a97", "#b08900", "#4d4d4d", "#c1666b", "#5c7aea")
DIGITS = 6


def measure(vectors: Rows, sids: SemanticIds, seed: int) -> dict[str, Any]:
    """Every figure of report.json. vectors: float32 [N, D], what the codes were made from; `seed` draws the sampled items."""
    raw, codes, quantizer = sids.codes_raw, sids.codes, sids.quantizer
    assert quantizer is not None
    assert len(vectors) == sids.n_items
    vectors = vectors[:]
    errors_raw, errors = quantizer.mean_squared_errors(vectors, raw), quantizer.mean_squared_errors(vectors, codes)
    variance = float(vectors.var(axis=0, dtype=np.float64).sum())
    explained_raw = [1.0 - error / variance if variance > 1e-12 else 0.0 for error in errors_raw]
    levels = [
        usage(raw[:, level], size)
        | {"variance_explained": round(explained, DIGITS), "mean_squared_error": round(error, DIGITS)}
        for level, (size, explained, error) in enumerate(zip(sids.level_sizes, explained_raw, errors_raw, strict=True))
    ]
    cost = errors[-1] / errors_raw[-1] - 1 if errors_raw[-1] > 1e-12 else 0.0
    return {
        "items": sids.n_items,
        "dimensions": int(vectors.shape[1]),
        "levels": levels,
        "collisions_raw": collisions(raw),
        "items_changed": int((raw != codes).any(axis=1).sum()),
        "mean_squared_error_raw": round(errors_raw[-1], DIGITS),
        "mean_squared_error_unique": round(errors[-1], DIGITS),
        "cost_of_uniqueness": round(cost, DIGITS),
        "distinct_prefixes": [len(np.unique(codes[:, : depth + 1], axis=0)) for depth in range(sids.n_levels)],
        f"neighbour_preservation@{NEIGHBOURS}": neighbour_preservation(vectors, quantizer.reconstruct(codes), seed),
        "exact_duplicate_vectors": sids.n_items - len(np.unique(vectors, axis=0)),
    }


def usage(codes: np.ndarray, size: int) -> dict[str, Any]:
    """How evenly one level's codes are used; perplexity is e^entropy, the number of codes "in effect". codes: int [N]."""
    counts = np.bincount(codes, minlength=size)
    shares = counts[counts > 0] / len(codes)
    return {
        "codes": size,
        "codes_used": int((counts > 0).sum()),
        "usage": round(float((counts > 0).mean()), DIGITS),
        "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), DIGITS),
        "largest_cluster": int(counts.max()),
    }


def collisions(codes: np.ndarray) -> dict[str, Any]:
    """How many items share all their codes with another. codes: int [N, L]. `rate` is 1 - distinct rows / N."""
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return {
        "rate": round(1 - len(counts) / len(codes), DIGITS),
        "share_of_items": round(float(counts[counts > 1].sum()) / len(codes), DIGITS),
        "largest_group": int(counts.max()),
    }


def neighbour_preservation(vectors: np.ndarray, reconstruction: np.ndarray, seed: int) -> float:
    """The share of an item's 10 nearest items that are still among its 10 nearest when every item is replaced by its codes.

    vectors, reconstruction: [N, D]. Mean over at most 2,000 sampled items; neighbours are sought in the whole catalogue.
    """
    N = len(vectors)
    k = min(NEIGHBOURS, N - 1)
    if k < 1:
        return 1.0
    sampled = np.sort(np.random.default_rng(seed).permutation(N)[:SAMPLED_ITEMS])
    pieces = np.array_split(sampled, max(1, len(sampled) * N // 20_000_000))  # at most 80 MB of distances at once
    kept = 0
    for items in track(pieces, description="neighbours", transient=True, disable=not get_console().is_terminal):
        before, after = _nearest_items(vectors, items, k), _nearest_items(reconstruction, items, k)
        kept += sum(len(np.intersect1d(a, b)) for a, b in zip(before, after, strict=True))
    return round(kept / (k * len(sampled)), DIGITS)


def _nearest_items(vectors: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other items of each of `items`, [len(items), k], in no order."""
    distances = np.einsum("nd,nd->n", vectors, vectors) - 2.0 * (vectors[items] @ vectors.T)
    distances[np.arange(len(items)), items] = np.inf
    return np.argpartition(distances, k - 1, axis=1)[:, :k]


def example_groups(sids: SemanticIds, seed: int) -> list[list[int]]:
    """Items to show: up to 4 groups of 3.

    First codes drawn at random and, of each, the three neighbours in SID order that have the longest prefixes in common.
    """
    order = np.lexsort(sids.codes.T[::-1])
    firsts = sids.codes[order, 0]
    candidates = np.flatnonzero(np.bincount(firsts) >= EXAMPLES_PER_GROUP)
    chosen = np.sort(np.random.default_rng(seed).permutation(candidates)[:EXAMPLE_GROUPS])
    groups = []
    for code in chosen:
        items = order[firsts == code]
        common = (np.cumprod(sids.codes[items[1:]] == sids.codes[items[:-1]], axis=1)).sum(axis=1)  # with the next item
        start = int(np.argmax(common[:-1] + common[1:]))
        groups.append(items[start : start + EXAMPLES_PER_GROUP].tolist())
    return groups


def usage_figure(sids: SemanticIds) -> Figure:
    """Items per code, codes sorted by size, one line per level, and where they would all lie if used evenly."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for level, size in enumerate(sids.level_sizes):
        counts = np.sort(np.bincount(sids.codes_raw[:, level], minlength=size))[::-1]
        axes.step(np.arange(1, size + 1), counts, where="mid", color=COLOURS[level], label=f"level {level + 1}")
    even = sids.n_items / max(sids.level_sizes)
    axes.axhline(even, color="#999999", linewidth=1, linestyle="--", label="all codes equal")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(title="Items per code", xlabel="codes, most used first", ylabel="items")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def variance_figure(figures: dict[str, Any]) -> Figure:
    """Share of the variance explained after each level."""
    figure = Figure(figsize=(3.6, 3.2), layout="constrained")
    axes = figure.subplots()
    explained = [max(level["variance_explained"], 0) for level in figures["levels"]]
    bars = axes.bar(range(1, len(explained) + 1), explained, width=0.6, color=COLOURS[: len(explained)])
    axes.bar_label(bars, [f"{value:.0%}" for value in explained], padding=3)
    axes.set_xticks(range(1, len(explained) + 1))
    axes.set(title="Variance explained", xlabel="codes kept", ylim=(0, 1))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element, the same bytes every time."""
    with (
        rc_context({"svg.hashsalt": "sidrec", "svg.fonttype": "none", "font.family": "sans-serif"}),
        io.StringIO() as buffer,
    ):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        text = buffer.getvalue()
    return text[text.index("<svg") :]


def render(figures: dict[str, Any], sids: SemanticIds, titles: list[str], seed: int) -> str:
    """report.html: a self-contained page. figures: what `measure` gave; titles: N titles, for the examples."""
    assert len(titles) == sids.n_items
    collided, levels = figures["collisions_raw"], figures["levels"]
    rows = [
        ("items", f"{figures['items']:,}"),
        ("possible semantic IDs", f"{np.prod([float(size) for size in sids.level_sizes]):,.0f}"),
        ("variance explained by all codes", f"{levels[-1]['variance_explained']:.1%}"),
        (
            f"of an item's {NEIGHBOURS} nearest items, still nearest by codes",
            f"{figures[f'neighbour_preservation@{NEIGHBOURS}']:.1%}",
        ),
        ("items that shared all codes with another, before", f"{collided['share_of_items']:.1%}"),
        ("largest such group", f"{collided['largest_group']:,}"),
        ("items moved so that every ID is unique", f"{figures['items_changed']:,}"),
        ("error added by that", f"{figures['cost_of_uniqueness']:.1%}"),
        ("items whose vector equals another item's exactly", f"{figures['exact_duplicate_vectors']:,}"),
    ]
    table = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    level_table = "".join(
        f"<tr><td>level {depth}</td><td>{level['codes']:,}</td><td>{level['codes_used']:,}</td><td>{level['perplexity']:.1f}</td>"
        f"<td>{level['largest_cluster']:,}</td><td>{level['variance_explained']:.1%}</td><td>{prefixes:,}</td></tr>"
        for depth, (level, prefixes) in enumerate(zip(levels, figures["distinct_prefixes"], strict=True), start=1)
    )
    return PAGE.format(
        usage=_svg(usage_figure(sids)),
        variance=_svg(variance_figure(figures)),
        table=table,
        levels=level_table,
        examples=_example_rows(sids, titles, seed),
        example=html.escape(sids.text(0)),
        n_levels=sids.n_levels,
        title=html.escape(str(titles[0])),
    )


def _example_rows(sids: SemanticIds, titles: list[str], seed: int) -> str:
    """Table rows of the example items, with the codes that a group shares in colour."""
    rows = []
    for group in example_groups(sids, seed):
        shared = int(np.cumprod((sids.codes[group] == sids.codes[group[0]]).all(axis=0)).sum())
        for place, item in enumerate(group):
            tokens = [html.escape(sid_token(level, int(code))) for level, code in enumerate(sids.codes[item])]
            text = f"<b>{''.join(tokens[:shared])}</b>{''.join(tokens[shared:])}"
            start = ' class="first"' if place == 0 else ""
            rows.append(f"<tr{start}><td><code>{text}</code></td><td>{html.escape(str(titles[item]))}</td></tr>")
    return "\n".join(rows)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Semantic IDs: report</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.7rem; margin-bottom: .3rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
p {{ max-width: 44rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }}
.numbers td:nth-child(n+2), .numbers th:nth-child(n+2) {{ text-align: right; font-variant-numeric: tabular-nums; }}
th {{ font-weight: 600; border-bottom: 1px solid #bbb; }} tr.first td {{ border-top: 1px solid #ddd; padding-top: .5rem; }}
code {{ font-size: .92em; }} code b {{ color: #2a6f97; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1.5rem; }} svg {{ max-width: 100%; height: auto; }}
.scroll {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>Semantic IDs</h1>
<p>A <b>semantic ID</b> is a short name for an item that says what the item is like. Here it has {n_levels} codes, for example
<code>{example}</code> for “{title}”. The first code names a broad group of similar items; each further code narrows it down,
like the digits of a library's shelf mark. A language model then learns to write the semantic ID of the next item a user wants:
similar items begin alike, so what it learns about one helps with the others.</p>

<h2>Similar items begin alike</h2>
<p>Up to four first codes drawn at random, and three items of each that follow one another in the order of their
IDs. What they have in common is in colour. If the titles in a group have nothing to do with each other, the item vectors
are the place to look.</p>
<div class="scroll"><table>
{examples}
</table></div>

<h2>How much the codes keep</h2>
<p>Every code stands for a vector, and the sum of an item's codes approximates the item's own vector. <b>Variance explained</b> is
how much of the differences between items survives.</p>
<div class="scroll"><table class="numbers">
{table}
</table></div>

<h2>How evenly the codes are used</h2>
<p>A code that stands for a tenth of the catalogue says little. <b>Perplexity</b> is the number of codes that are in effect in use:
the nearer to the number of codes, the better. Counts are those of the quantizer, before items were moved to make IDs unique.</p>
<div class="scroll"><table class="numbers">
<tr><th></th><th>codes</th><th>used</th><th>perplexity</th>
<th>largest cluster</th><th>variance explained</th><th>distinct prefixes</th></tr>
{levels}
</table></div>
<div class="plots">{usage}{variance}</div>
</body>
</html>
"""
