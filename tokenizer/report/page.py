"""report.html: one page for people on how good a set of semantic IDs is. The same bytes for the same seed."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sidrec.pipeline.html import page, plot, table
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.report import plots as sid_plots
from sidrec.tokenizer.report.vector_metrics import NEIGHBOURS
from sidrec.tokenizer.semantic_ids import SemanticIds, sid_token

EXAMPLE_GROUPS, EXAMPLES_PER_GROUP = 4, 3


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


def render(
    figures: dict[str, Any],
    sids: SemanticIds,
    titles: list[str],
    seed: int,
    vectors: Rows,
    categories: list[str] | None = None,
    training: dict[str, Any] | None = None,
    training_tables: Sequence[str] = (),
) -> str:
    """report.html: a self-contained page. figures: what `measure` gave of `vectors` [N, D]; titles: N titles, for examples.

    training: what training.json holds, its `rows` a measurement each; training_tables: HTML that the quantizer adds to it.
    """
    assert len(titles) == sids.n_items
    coded = sum("margin" in level for level in figures["levels"])
    quantized = replace(sids, codes_raw=np.concatenate([sids.codes_raw[:, :coded], sids.codes[:, coded:]], axis=1))
    parts = [
        _introduction(sids, titles),
        "<h2>At a glance</h2>",
        table((), _glance(figures), "plain"),
        "<h2>Similar items begin alike</h2>" + EXAMPLES_TEXT,
        f'<div class="scroll"><table>\n{_example_rows(sids, titles, seed)}\n</table></div>',
        "<h2>The tree of codes</h2>" + TREE_TEXT,
        plot(sid_plots.tree_stripes(sids), STRIPES_CAPTION),
        plot(sid_plots.tree_plot(sids, titles, categories), TREE_CAPTION),
        _tree_table(figures),
        "<h2>What the codes keep of the vectors</h2>" + KEPT_TEXT,
        '<div class="plots">' + plot(sid_plots.variance_plot(figures), VARIANCE_CAPTION),
        plot(sid_plots.margin_plot(figures), MARGIN_CAPTION.format(sampled=figures["margins"]["sampled"])) + "</div>",
        plot(sid_plots.item_map(vectors, sids, seed), MAP_CAPTION.format(shown=sid_plots.MAPPED_ITEMS)),
        "<h2>How evenly the codes are used</h2>" + USE_TEXT,
        _level_table(figures),
        '<div class="plots">' + plot(sid_plots.usage_plot(quantized), USAGE_CAPTION),
        (plot(sid_plots.fan_out_heat_map(quantized), FAN_OUT_CAPTION) if sids.n_levels > 1 else "") + "</div>",
        plot(sid_plots.usage_heat_map(quantized), HEAT_CAPTION),
        "<h2>One item, one ID</h2>" + UNIQUE_TEXT,
        table(("", "before", "after"), _collision_rows(figures)),
        plot(sid_plots.collision_plot(figures), COLLISION_CAPTION),
        "<h2>Do codes mean something?</h2>" + _meaning(figures),
        _training(training, training_tables),
        "<h2>All figures</h2><p>They are in <code>report.json</code> beside this page, these and others.</p>",
    ]
    return page("Semantic IDs: report", "\n".join(part for part in parts if part))


def _introduction(sids: SemanticIds, titles: list[str]) -> str:
    text, title = html.escape(sids.text(0)), html.escape(str(titles[0]))
    return INTRODUCTION.format(
        n_levels=sids.n_levels, codes="code" if sids.n_levels == 1 else "codes", text=text, title=title
    )


def _glance(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is named, its figure, and what that means."""
    levels, neighbours, collided = figures["levels"], figures["neighbours"], figures["collisions_raw"]
    paths = math.prod(level["codes"] for level in levels)
    used = ", ".join(f"{level['perplexity']:.0f} of {level['codes']:,}" for level in levels if "margin" in level)
    kind = "" if figures["reconstruction"] == "quantizer" else " (with vectors fitted to the codes)"
    rows = [
        ("Items", f"{figures['items']:,}", f"with {paths:,} possible IDs"),
        (
            "Items without an ID of their own",
            f"{figures['collisions']['share_of_items']:.1%}",
            "0 % is needed to recommend single items",
        ),
        ("Codes in effect in use, by level", used, "the nearer to the number of codes, the better"),
        (
            "Variance explained by all codes",
            f"{levels[-1]['variance_explained']:.1%}",
            f"of what tells vectors apart{kind}",
        ),
        (
            f"Nearest {NEIGHBOURS} items kept",
            f"{neighbours['preserved']:.1%}",
            f"of an item's {NEIGHBOURS} nearest items by vector, still nearest by codes ({neighbours['sampled']:,} items sampled)",
        ),
        (
            "Nearest items with the same first code",
            f"{neighbours['prefix_agreement'][0]:.1%}",
            f"two items drawn at random: {neighbours['random_pairs'][0]:.1%}",
        ),
        (
            "Moved so that every ID is unique",
            f"{figures['items_changed']:,} items",
            f"{collided['share_of_items']:.1%} shared all codes with another; moving added {figures['cost_of_uniqueness']:.1%} error",
        ),
        (
            "Items with exactly the vector of another",
            f"{figures['duplicate_vectors']['items']:,}",
            f"nothing in a vector can tell these apart; {neighbours['near_duplicates']:.1%} of the sampled items have another at "
            "cosine over .999",
        ),
    ]
    agreement = figures["categories"]
    if agreement:
        chance = agreement["by_chance"]["purity"]
        rows.append(("Category purity of first codes", f"{agreement['purity']:.1%}", f"by chance: {chance:.1%}"))
    return rows


def _level_table(figures: dict[str, Any]) -> str:
    head = (
        "",
        "codes",
        "used",
        "dead",
        "perplexity",
        "Gini",
        "largest",
        "× mean",
        "top 1 %",
        "variance",
        "MSE",
        "margin",
    )
    rows = [
        (
            f"level {depth}",
            f"{level['codes']:,}",
            f"{level['codes_used']:,}",
            f"{level['dead_codes']:,}",
            f"{level['perplexity']:.1f}",
            f"{level['gini']:.2f}",
            f"{level['largest_cluster']:,}",
            f"{level['largest_over_mean']:.1f}",
            f"{level['top_1_percent_share']:.1%}",
            f"{level['variance_explained']:.1%}",
            f"{level['mean_squared_error']:.4f}",
            f"{level['margin']['median']:.2f}" if "margin" in level else "–",
        )
        for depth, level in enumerate(figures["levels"], start=1)
    ]
    return table(head, rows)


def _tree_table(figures: dict[str, Any]) -> str:
    conditional = figures["entropy"]["conditional"]
    head = (
        "codes read",
        "prefixes",
        "of all paths",
        "children, mean",
        "95th pct.",
        "most",
        "one item",
        "largest",
        "nats told",
    )
    rows = [
        (
            str(depth),
            f"{row['prefixes']:,}",
            f"{row['share_of_paths']:.3g}",
            f"{row['fan_out_mean']:.1f}",
            f"{row['fan_out_p95']:.0f}",
            f"{row['fan_out_max']:,}",
            f"{row['single_items']:.1%}",
            f"{row['largest_group']:,}",
            f"{told:.2f}",
        )
        for depth, (row, told) in enumerate(zip(figures["prefix_tree"], conditional, strict=True), start=1)
    ]
    total, needed = figures["entropy"]["total"], figures["entropy"]["ln_items"]
    return table(head, rows) + TREE_NOTE.format(total=total, needed=needed)


def _collision_rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    before, after = figures["collisions_raw"], figures["collisions"]
    return [
        ("1 - distinct IDs / items", f"{before['rate']:.2%}", f"{after['rate']:.2%}"),
        ("share of items that share their ID", f"{before['share_of_items']:.2%}", f"{after['share_of_items']:.2%}"),
        ("items with one and the same ID, at most", f"{before['largest_group']:,}", f"{after['largest_group']:,}"),
        (
            "mean squared error, a sum over dimensions",
            f"{figures['mean_squared_error_raw']:.4f}",
            f"{figures['mean_squared_error_unique']:.4f}",
        ),
    ]


def _meaning(figures: dict[str, Any]) -> str:
    neighbours, within = figures["neighbours"], figures["within_prefixes"]
    head = (
        "items that share the first …",
        "nearest items that do",
        "random pairs that do",
        "mean cosine",
        "variance between",
    )
    rows = [
        (
            f"{depth + 1} code{'s' * (depth > 0)}",
            f"{near:.1%}",
            f"{chance:.2%}",
            "–" if cosine is None else f"{cosine:.3f}",
            f"{between:.1%}",
        )
        for depth, (near, chance, cosine, between) in enumerate(
            zip(
                neighbours["prefix_agreement"],
                neighbours["random_pairs"],
                within["cosine"],
                within["variance_between"],
                strict=True,
            )
        )
    ]
    random_cosine = within["cosine_of_random_pairs"]
    text = MEANING_TEXT.format(
        neighbours=NEIGHBOURS,
        sampled=neighbours["sampled"],
        cosine="–" if random_cosine is None else f"{random_cosine:.3f}",
    )
    return text + table(head, rows) + _categories(figures["categories"])


def _categories(agreement: dict[str, Any] | None) -> str:
    if not agreement:
        return "<p>The catalogue has no column of categories (genres, category, …), so codes are not compared with any.</p>"
    explained = {
        "purity": "purity: items whose category is the most frequent one of their code",
        "nmi": "NMI, which is the V-measure: 0 no relation, 1 the same groups",
        "homogeneity": "homogeneity: a code has one category",
        "completeness": "completeness: a category has one code",
    }
    rows = [(text, f"{agreement[name]:.3f}", f"{agreement['by_chance'][name]:.3f}") for name, text in explained.items()]
    text = CATEGORY_TEXT.format(items=agreement["items"], categories=agreement["categories"])
    return text + table(("", "first codes", "by chance"), rows)


def _training(training: dict[str, Any] | None, tables: Sequence[str]) -> str:
    figure = sid_plots.training_plot(training["rows"]) if training else None
    parts = ([] if figure is None else [plot(figure, TRAINING_CAPTION)]) + list(tables)
    return "<h2>Training</h2>" + "\n".join(parts) if parts else ""


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


INTRODUCTION = """<h1>Semantic IDs</h1>
<p>A <b>semantic ID</b> is a short name for an item that says what the item is like. Here it has {n_levels} {codes}, for example
<code>{text}</code> for “{title}”. The first code names a broad group of similar items; each further code narrows it down,
like the digits of a library's shelf mark. A language model then learns to write the semantic ID of the next item a user wants:
similar items begin alike, so what it learns about one helps with the others. This page says how well the IDs do that.</p>"""

EXAMPLES_TEXT = """
<p>Up to four first codes drawn at random, and three items of each that follow one another in the order of their
IDs. What they have in common is in colour. If the titles in a group have nothing to do with each other, the item vectors
are the place to look.</p>"""

TREE_TEXT = """
<p>IDs form a tree: the first code is a branch, the second a branch of that branch. A model that writes an ID walks down this tree, so
it should neither be a single trunk nor fall apart into single items at the first step.</p>"""

STRIPES_CAPTION = (
    "Every item is a point from left to right, a stripe a depth; the fullest prefixes come first. Dark: many items share these codes. "
    "Where a stripe turns pale, the codes so far are the item's own, and further ones need not be learnt."
)
TREE_CAPTION = (
    "With the number of items of each branch, and the title of one of them. Branches with fewer items are not drawn."
)
TREE_NOTE = """
<p>“One item” is the share of prefixes with a single item below them: further codes tell a model nothing there. “Nats told” is how much
the next code adds to what the codes before it said (conditional entropy); together {total:.2f}, where {needed:.2f} (ln of the number of
items) says that every item has an ID of its own.</p>"""

KEPT_TEXT = """
<p>Every code stands for a vector, and an item's codes together approximate the item's own vector. <b>Variance explained</b> is
how much of the differences between items survives that.</p>"""

VARIANCE_CAPTION = "After the first code, after two, and so on. Each bar should add to the one before."
MARGIN_CAPTION = (
    "How much farther the second nearest code is than the nearest. Near 0 the choice is a toss-up: another run or a small change of the "
    "vector would give another code. Of {sampled:,} items."
)
MAP_CAPTION = (
    "The vectors of at most {shown:,} items, flattened to the two directions in which they differ most. The eight most used first codes "
    "are in colour: each should be a patch, though two directions cannot keep all patches apart."
)

USE_TEXT = """
<p>A code that stands for a tenth of the catalogue says little, and one that stands for nothing is a token wasted. <b>Perplexity</b> is
the number of codes that are in effect in use; <b>Gini</b> is 0 when all codes hold equally many items and near 1 when one holds
all; a <b>dead</b> code holds none. “Top 1 %” is the share of items that the most used hundredth of the codes holds; “MSE” the mean squared
distance that is left after the level; “margin” the median of (d2 - d1) / d1. Counts are those of the quantizer, before items were
moved to make IDs unique.</p>"""

USAGE_CAPTION = "A line near the dashed one is even use. A cliff at the right: codes that nothing uses."
FAN_OUT_CAPTION = (
    "Each cell is a pair of first and second code. An even haze means that second codes divide every group; white is a pair that no "
    "item has. At most 512 codes a side."
)
HEAT_CAPTION = (
    "A cell is a code, in the order of its number: blue holds less than an equal share of items, red more, white none."
)

UNIQUE_TEXT = """
<p>Items with one and the same ID cannot be told apart by a model that recommends IDs. “Before” is what the quantizer gave; “after” is
what is used.</p>"""
COLLISION_CAPTION = (
    "A point far to the right: a group of many items with one ID. After uniqueness only groups of 1 should be left."
)

MEANING_TEXT = """
<p>An item's {neighbours} nearest items by vector ({sampled:,} items sampled, the whole catalogue searched) should have the same first
codes far more often than two random items. The mean cosine is over all pairs of items that share the codes; over all pairs at random
it is {cosine}. “Variance between” is the share of the variance that lies between the groups.</p>"""
CATEGORY_TEXT = """
<p>The first code beside the catalogue's own categories ({items:,} items, {categories:,} categories). “By chance” is the mean over ten
random orders of the categories, and not 0: many small groups are pure by accident.</p>"""
TRAINING_CAPTION = (
    "What was measured while the quantizer was trained. Losses and collisions should fall, perplexity should rise, and all should end "
    "flat."
)
