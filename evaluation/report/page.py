"""report.html: one page for people on how well the models recommend. The same bytes for the same figures."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.metrics import CUTOFFS
from sidrec.evaluation.report import plots as report_plots
from sidrec.evaluation.statistics import p_in_words
from sidrec.evaluation.table import (
    MASK_NAMES,
    TITLES,
    VALUE_FORMS,
    VALUE_NAMES,
    Metrics,
    decoding_notes,
    measured_values,
    notes,
)
from sidrec.pipeline.html import page, plot, table

POSITION_AXES = {
    "history length": "items in the history",
    "item popularity": "times the next item was taken in training",
}
RARE_AXES = {
    "cold items": "times the next item was taken in training",
    "long tail": "the same: the long tail, and the rest",
}
SLICE_NAMES = {
    "history length": "history, items",
    "item popularity": "next item, times taken",
    "cold items": "cold or not, times taken",
    "long tail": "long tail or not, times taken",
}


def render(
    figures: dict[str, Any],
    slices: pl.DataFrame,
    counts: dict[str, np.ndarray],
    titles: list[str],
    metrics: Metrics,
    comparison: dict[str, Any],
) -> str:
    """A self-contained page. figures: as report.json; slices: `slice_table`; counts: name -> how often each item is listed, [N].

    titles: N titles; metrics, comparison: what the JSON files of these names hold.
    """
    models, generative = comparison["models"], figures["generative"]
    first_only = FIRST_TRAINING_TEXT if comparison.get("repeats") else ""
    parts = [
        _introduction(figures, metrics, comparison),
        "<h2>The table</h2>"
        + TABLE_TEXT
        + (VALUE_TEXT if "value" in comparison else "")
        + _tables(metrics, comparison),
        "<h2>Longer lists</h2>" + _recall_curves(figures),
        "<h2>Where the gain is</h2>" + _gains(slices, models, generative, comparison["best_baseline"]),
        "<h2>How much of the catalogue is shown</h2>" + _spread(figures, counts, models) + first_only,
        "<h2>Are the probabilities true?</h2>" + _calibration(figures, models) if figures["calibration"] else "",
        "<h2>Code by code</h2>" + _levels(figures, models) if figures["levels"] else "",
        "<h2>Ten examples</h2>" + _examples(figures, titles),
        "<h2>Where these figures come from</h2>" + _origin(figures, comparison),
        "<h2>Fine print</h2>" + _fine_print(metrics, comparison),
    ]
    return page(f"Evaluation: {figures['data']['name']}", "\n".join(part for part in parts if part))


def _introduction(figures: dict[str, Any], metrics: Metrics, comparison: dict[str, Any]) -> str:
    data = figures["data"]
    name = html.escape(str(data["name"]))
    text = INTRODUCTION.format(name=name, test=comparison["cases"]["test"], items=data["items"])
    return text + (SEMANTIC_IDS if figures["generative"] else "") + _headline(figures, metrics, comparison)


def _headline(figures: dict[str, Any], metrics: Metrics, comparison: dict[str, Any]) -> str:
    """The result in a paragraph: the best generative model, the best baseline, their difference, and what is possible at all."""
    best, baseline = figures["best_generative"], comparison["best_baseline"]
    recalls = {name: metrics[name]["test"]["masked"]["recall@10"] for name in (best, baseline) if name}
    hits = [
        f"in <b>{recall:.1%}</b> of the cases for {WHICH[name == baseline]} ({html.escape(name)})"
        for name, recall in recalls.items()
    ]
    sentences = [f"The item that came next is among the first ten recommended {' and '.join(hits)}."] if hits else []
    row = _paired(comparison, best, "masked")
    if row is not None:
        low, high = row["interval"]
        chance = "may well be chance" if low <= 0 <= high else "is more than chance explains"
        sentences.append(
            f"The difference, {100 * row['difference']:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}), {chance}."
        )
    if comparison["oracle"]:
        expected = comparison["oracle"]["test"]["expected"]["10"]
        sentences.append(
            f"The users of this data set are simulated; the best possible model would expect {expected:.1%}."
        )
    return f"<p>{' '.join(sentences)}</p>"


def _paired(comparison: dict[str, Any], model: str | None, seen: str) -> dict[str, Any] | None:
    """The paired test of a model's Recall@10 against the best baseline, if there is one."""
    wanted = {"model": model, "against": comparison["best_baseline"], "seen": seen, "metric": "recall@10"}
    rows = [row for row in comparison["paired_tests"] if wanted.items() <= row.items()]
    return rows[0] if rows else None


def _tables(metrics: Metrics, comparison: dict[str, Any]) -> str:
    against = comparison["best_baseline"] or "the best baseline"
    recalls = [f"Recall@{k}" for k in CUTOFFS]
    parts = []
    for masked, seen in MASK_NAMES.items():
        rows, of_values = [], measured_values(metrics, masked)
        names = [VALUE_NAMES[name] for name in of_values]
        head = ("", *recalls, "Recall@10, 95 %", "NDCG@10", *names, f"−\u00a0{against}, Recall@10", "p, Holm-corrected")
        for model in comparison["models"]:
            figures, paired = metrics[model]["test"][seen], _paired(comparison, model, seen)
            low, high = figures["recall@10_interval"]
            difference, p = (
                (f"{paired['difference']:+.4f}", _p(paired["p_holm"], paired["p"])) if paired else ("–", "–")
            )
            cells = [f"{figures[f'recall@{k}']:.4f}" for k in CUTOFFS]
            values = [format(figures[name], VALUE_FORMS[name]) for name in of_values]
            rows.append((model, *cells, f"{low:.4f}–{high:.4f}", f"{figures['ndcg@10']:.4f}", *values, difference, p))
        parts.append(f"<p><b>{TITLES[masked].capitalize()}</b></p>" + table(head, rows))
    return "\n".join(parts)


def _p(value: float, raw: float) -> str:
    if value < 0.001:
        return "< .001"
    words = p_in_words(value, raw)
    return words if words.startswith("≤") else f"{value:.3f}"


def _recall_curves(figures: dict[str, Any]) -> str:
    curves = figures["recall_curves"]
    largest = max(curve[-1] for by_model in curves.values() for curve in by_model.values())
    drawn = [
        plot(
            report_plots.recall_plot(curves[seen], figures["generative"], TITLES[masked].capitalize(), largest),
            RECALL_CAPTIONS[seen],
        )
        for masked, seen in MASK_NAMES.items()
    ]
    return RECALL_TEXT + '<div class="plots">' + "".join(drawn) + "</div>"


def _gains(slices: pl.DataFrame, models: list[str], generative: list[str], baseline: str | None) -> str:
    """Gains over the baseline, drawn for the generative models (or the other baselines), and a table of all."""
    shown = generative or [model for model in models if model != baseline]
    gains = slices.filter(pl.col("model").is_in(shown))
    parts = [SLICES_TEXT]
    if baseline is not None and shown:
        parts.append(f"<p>Gains are over the best baseline, {html.escape(baseline)}.</p>")
        for kinds, caption in ((POSITION_AXES, POSITION_CAPTION), (RARE_AXES, RARE_CAPTION)):
            parts.append(plot(report_plots.gain_plot(gains, kinds, models, generative), caption))
    gained = [model for model in shown if baseline is not None]
    head = ("slice", "", "cases", *models, *(f"{model}: gain, 95 %" for model in gained))
    return "\n".join(
        [
            *parts,
            "<p>Recall@10 in every slice, seen items masked:</p>",
            table(head, _slice_rows(slices, models, gained)),
        ]
    )


def _slice_rows(slices: pl.DataFrame, models: list[str], gained: list[str]) -> list[list[str]]:
    rows = []
    for (kind, label, cases), part in slices.group_by(["kind", "slice", "cases"], maintain_order=True):
        row_of_model = {row["model"]: row for row in part.iter_rows(named=True)}
        recalls = [_figure(row_of_model[model]["recall@10"], ".4f") for model in models]
        gains = [
            "–"
            if row_of_model[model]["gain"] is None
            else "{gain:+.4f} [{low:+.4f}, {high:+.4f}]".format(**row_of_model[model])
            for model in gained
        ]
        rows.append([SLICE_NAMES[str(kind)], str(label), f"{cases:,}", *recalls, *gains])
    return rows


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _spread(figures: dict[str, Any], counts: dict[str, np.ndarray], models: list[str]) -> str:
    head = ("", "coverage", "Gini", "entropy, nats", "items in effect", "novelty, bits", "diversity")
    rows = [
        (
            name,
            f"{spread['coverage']:.1%}",
            f"{spread['gini']:.3f}",
            f"{spread['entropy']:.2f}",
            f"{spread['effective_items']:,.0f} of {figures['data']['items']:,}",
            f"{spread['novelty']:.2f}",
            _figure(spread["diversity"], ".3f"),
        )
        for name, spread in figures["spread"].items()
    ]
    drawn = plot(report_plots.lorenz_plot(counts, models, figures["generative"]), LORENZ_CAPTION)
    return SPREAD_TEXT.format(test=figures["data"]["test"]) + table(head, rows) + drawn


def _calibration(figures: dict[str, Any], models: list[str]) -> str:
    calibrations = figures["calibration"]
    drawn, rows = [], []
    for key, (title, name) in CALIBRATED.items():
        by_model = {model: calibration[key] for model, calibration in calibrations.items()}
        drawn.append(plot(report_plots.calibration_plot(by_model, models, title), CALIBRATION_CAPTIONS[key]))
        for model, calibration in by_model.items():
            sizes = sorted(row["cases"] for row in calibration["bins"])
            bins = f"{len(sizes)} of {sizes[0]:,}–{sizes[-1]:,} cases"
            rows.append(
                (
                    f"{model}: {name}",
                    f"{calibration['predicted']:.2%}",
                    f"{calibration['happened']:.2%}",
                    f"{calibration['ece']:.4f}",
                    bins,
                )
            )
    bin_rows = [
        (f"{model}: {name}", str(place), f"{row['cases']:,}", f"{row['predicted']:.2%}", f"{row['happened']:.2%}")
        for key, (_, name) in CALIBRATED.items()
        for model, calibration in calibrations.items()
        for place, row in enumerate(calibration[key]["bins"], start=1)
    ]
    return (
        CALIBRATION_TEXT
        + table(("", "predicted, mean", "happened", "ECE", "bins"), rows)
        + f'<div class="plots">{"".join(drawn)}</div>'
        + "<details><summary>Every bin</summary>"
        + table(("", "bin", "cases", "predicted, mean", "happened"), bin_rows)
        + "</details>"
    )


def _levels(figures: dict[str, Any], models: list[str]) -> str:
    hits, chance = figures["levels"]["models"], figures["levels"]["by_chance"]
    first = {model: shares["top1"] for model, shares in hits.items()}
    ten = {model: shares["recall@10"] for model, shares in hits.items()}
    n_levels = len(chance)
    head = ("", *(f"first {depth} of {n_levels}" for depth in range(1, n_levels + 1)))
    rows = [(f"{model}: first item", *(f"{share:.1%}" for share in shares)) for model, shares in first.items()]
    rows += [("by chance: first item", *(f"{share:.1%}" for share in chance))]
    rows += [(f"{model}: one of ten", *(f"{share:.1%}" for share in shares)) for model, shares in ten.items()]
    plots = [
        (report_plots.levels_plot(first, chance, models, figures["generative"], "First item"), FIRST_CAPTION),
        (report_plots.levels_plot(ten, None, models, figures["generative"], "One of the first ten"), TEN_CAPTION),
    ]
    drawn = "".join(plot(figure, caption) for figure, caption in plots)
    return LEVELS_TEXT + f'<div class="plots">{drawn}</div>' + table(head, rows)


def _examples(figures: dict[str, Any], titles: list[str]) -> str:
    names = list(figures["examples"][0]["lists"])
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("history, newest last", "came next", *names))
    rows = []
    for example in figures["examples"]:
        earlier = [f"<i>{example['earlier']:,} earlier</i>"] if example["earlier"] else []
        history = "<br>".join([*earlier, *(_title(titles, item) for item in example["history"])])
        target = example["target"]
        lists = [
            "<br>".join(
                f"{place}. <b>{_title(titles, item)}</b>" if item == target else f"{place}. {_title(titles, item)}"
                for place, item in enumerate(items, start=1)
            )
            for items in example["lists"].values()
        ]
        cells = "".join(f"<td>{cell}</td>" for cell in (history, f"<b>{_title(titles, target)}</b>", *lists))
        rows.append(f'<tr class="first">{cells}</tr>')
    body = "\n".join(rows)
    return EXAMPLES_TEXT + f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _title(titles: list[str], item: int) -> str:
    return html.escape(str(titles[item]))


def _origin(figures: dict[str, Any], comparison: dict[str, Any]) -> str:
    data, origin = figures["data"], figures["origin"]
    splits = f"{data['train']:,} train, {data['valid']:,} valid, {data['test']:,} test interactions"
    protocol = PROTOCOLS.get(data["protocol"], data["protocol"])
    rows = [
        ("Data set", f"{data['name']}: {data['users']:,} users, {data['items']:,} items; {splits}"),
        ("Protocol", f"{protocol} Every item of the catalogue is ranked, and credit is by item."),
        ("Seed", str(comparison["seed"])),
        ("Code", origin["code"]),
        ("Software", origin["software"]),
        ("Machine", origin["machine"]),
        *((f"sha256 of {path}", digest) for path, digest in origin["sha256"].items()),
    ]
    files = "<p>The figures of this page, and the ranks and lists they are made from, are in the files beside it.</p>"
    return table((), rows, "plain") + files


def _fine_print(metrics: Metrics, comparison: dict[str, Any]) -> str:
    lines = [*notes(comparison), *decoding_notes(metrics)]
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


WHICH = {False: "the best generative model", True: "the best baseline"}
PROTOCOLS = {
    "leave_one_out": "Leave one out: each user's last interaction is test, the one before it valid, the rest train.",
    "leave_one_out_ties_shuffled": "Leave one out: each user's last interaction is test, the one before it valid, the rest train; those at "
    "one time in an order drawn at random.",
    "published": "The split that the data set was published with.",
    "joined": "Joined: all that the run before held is train; of the new events in time order the last tenth is test, the tenth before it "
    "valid, the rest train.",
    "global_time": "Global time: the last tenth of all interactions is test, the tenth before it valid, the rest train.",
}

INTRODUCTION = """<h1>How well do the models recommend?</h1>
<p>A recommender is shown what a user took so far and names the items that may come next, best first. Here each model was asked
{test:,} times about the data set <b>{name}</b>, whose catalogue has {items:,} items, and each time the true next item was known and kept
from it. This page says how often the models were right, where they were not, and what their lists are like.</p>"""

SEMANTIC_IDS = """
<p>The models <b>sft</b> and <b>rl</b> are generative: they write the next item's <b>semantic ID</b>, a short name of a few codes in which
similar items begin alike, as a language model writes a word; <b>rl</b> is <b>sft</b> after further training with rewards for hits; a
<b>blend</b> ranks by the model's probability and by a baseline's list together. All others are baselines: well-known methods to compare
with, trained on the same data.</p>"""

TABLE_TEXT = """
<p><b>Recall@10</b> is the share of cases in which the item that came next is among the first ten recommended; <b>NDCG@10</b>
also counts how far up it stands. Higher is better. <b>Masked</b> means that items the user already took are not recommended
again. The 95 % interval says how far a figure may be off because of the users who happen to be in the test. The last columns
compare with the best baseline on the same cases: the difference, and p, the probability of one as large if the two models were
equally good, corrected for the number of comparisons.</p>"""

VALUE_TEXT = """
<p><b>Liked R@10</b> is Recall@10 over the cases whose item the user liked; <b>value@10</b> is the mean value that a value model predicts
for the first ten items. The fine print says what is liked, and how far the value model can be trusted.</p>"""

RECALL_TEXT = """
<p>How much a longer list helps: the share of cases in which the next item is among the first K. Where a curve
is above another, that model is better with lists of this length.</p>"""
RECALL_CAPTIONS = {
    "masked": "Items that the user already took are left out of the lists. Solid: generative models; dashed: baselines. Curves that "
    "coincide are one line, and the legend names them together.",
    "unmasked": "Items that the user already took may be recommended again, and take up places.",
}

SLICES_TEXT = """
<p>The test cases in groups: by how much is known about the user (the length of the history), and by how often the next item was taken in
training. Quarters hold about equally many cases. <b>Cold</b> items were taken at most 5 times; the <b>long tail</b> is the rarest items
that together have at most a fifth of the training interactions.</p>"""
POSITION_CAPTION = (
    "Recall@10 less the best baseline's on the same cases; above the line is better than the baseline. A bar is the 95 % interval: where "
    "it crosses the line, the difference may be chance."
)
RARE_CAPTION = (
    "The same for items about which training says little. Models that learn what items are like should gain here."
)

SPREAD_TEXT = """
<p>A model can be right often by showing everyone the same few items. Of all top-ten lists together: <b>coverage</b> is the share of the
catalogue that is in somebody's list; <b>Gini</b> is 0 when all items are shown equally often and near 1 when one has all places; <b>items
in effect</b> (e to the <b>entropy</b>) says how many equally frequent items would be as varied; <b>novelty</b> is how seldom the shown
items are taken, -log<sub>2</sub> of their share of the training interactions; <b>diversity</b> is 1 less the mean cosine of the users of
two items of one list. The last row is the same of what the users really took next, one item a case ({test:,}) where lists have ten, so
its coverage is lower by itself.</p>"""
FIRST_TRAINING_TEXT = """
<p>Of a model that was trained several times, with other seeds, the table and the gains are means; here and below its lists are those of the
first training.</p>"""
LORENZ_CAPTION = (
    "How many of all places the rarest items have together. The farther a curve hangs below the straight line, the more the lists "
    "crowd on few items; a good model is near the dotted curve of what users took."
)

CALIBRATED = {
    "top1": ("The first item", "first item"),
    "top10": ("The first ten together", "first ten"),
}
CALIBRATION_TEXT = """
<p>A generative model gives each item a probability of being the next one. If it says 20 % in many cases, it should be right in about a
fifth of them. The cases are put in bins of about equal size by what was predicted, once for the first item of the list and once for the
first ten together; the <b>expected calibration error</b> (ECE) is the mean distance between predicted and happened, 0 at best.
Probabilities are over the whole catalogue. What a model gives to items that the user already took is missing from these lists, so
where users never take an item twice, it looks too modest.</p>"""
CALIBRATION_CAPTIONS = {
    "top1": "Each point is a bin of cases, its bar the 95 % interval. On the dashed line predictions come true as often as they say; below "
    "it the model is too sure of itself, above it too modest.",
    "top10": "The same for the chance that the next item is any of the first ten: the sum of their ten probabilities.",
}

LEVELS_TEXT = """
<p>The first code of a semantic ID names a broad group of similar items, and each further code narrows it down. So a wrong item
can still be of the right kind: here items are compared by their first codes only. Baselines know no codes; their items have
them all the same.</p>"""
FIRST_CAPTION = (
    "How often the first recommended item has the next item's first codes; at the right end all codes agree, and it is the item itself. "
    "By chance: an item drawn by how often it was taken in training."
)
TEN_CAPTION = "The same if one of the first ten items has them. At the right end this is Recall@10."

EXAMPLES_TEXT = """
<p>Ten test cases drawn at random: the end of the history, the item that came next, and the first five that the best generative model and
the best baseline recommend (both chosen on the validation cases). Bold in a list: the item that came next.</p>"""
