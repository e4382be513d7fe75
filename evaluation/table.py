"""From per-case ranks to the metrics, the comparison table and its plot.

Ranks are one long table, a row a case: model, split ("valid" | "test"), masked (seen items left out), user_id, target, rank
(0-based), repeat (0, 1, …: which training of the model, each with its own seed; without the column there is one).

A model's metric of a case is its mean over repeats; every mean, interval and test is of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.baselines.blend import RIVAL_BLENDS
from sidrec.data.metrics import CUTOFFS, ndcg_at, recall_at
from sidrec.evaluation.statistics import bootstrap_interval, holm, p_in_words, paired_test
from sidrec.pipeline.files import atomic_path
from sidrec.tokenizer.report.plots import coinciding

GENERATIVE = ("sft", "rl", "sft_blend", "rl_blend", "sft_ensemble", "rl_ensemble")
OWN_PAIRS = (
    ("rl", "sft"),
    ("sft_blend", "sft"),
    ("rl_blend", "rl"),
    ("sft_ensemble", "sft_blend"),
    ("rl_ensemble", "rl_blend"),
    ("sft_blend", "sasrec_blend"),
    ("sft_blend", "bsarec_blend"),
)  # compared too
MASK_NAMES = {True: "masked", False: "unmasked"}
TITLES = {True: "seen items masked", False: "seen items not masked"}
METRIC_NAMES = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}
LISTS_HEADER = ["model", "coverage", "Gini", "entropy, nats", "novelty, bits", "diversity"]
METRICS = {"recall": recall_at, "ndcg": ndcg_at}
VALUE_NAMES = {
    "liked_recall@10": "liked R@10",
    "value@10": "value@10",
}  # where a column of the log is looked at, seen items masked
VALUE_FORMS = {"liked_recall@10": ".4f", "value@10": ".3f"}
Metrics = dict[str, dict[str, dict[str, dict[str, Any]]]]


def rows_of(ranks: pl.DataFrame, model: str, split: str, masked: bool) -> pl.DataFrame:
    """One model's rows, repeat after repeat, each in the order of the data set's cases."""
    return ranks.filter((pl.col("model") == model) & (pl.col("split") == split) & (pl.col("masked") == pl.lit(masked)))


def ranks_by_repeat(ranks: pl.DataFrame, model: str, split: str, masked: bool) -> np.ndarray:
    """One model's ranks, int64 [repeats, cases]."""
    rows = rows_of(ranks, model, split, masked)
    repeats = rows["repeat"].n_unique() if "repeat" in rows.columns else 1
    return rows["rank"].to_numpy().reshape(repeats, -1)


def ranks_of(ranks: pl.DataFrame, model: str, split: str, masked: bool) -> np.ndarray:
    """The ranks of a model's first repeat, int64 [cases]."""
    return ranks_by_repeat(ranks, model, split, masked)[0]


def users_of(ranks: pl.DataFrame, model: str, split: str, masked: bool) -> np.ndarray:
    """A number for the user of each case, [cases]."""
    rows = rows_of(ranks, model, split, masked)
    cases = ranks_by_repeat(ranks, model, split, masked).shape[1]
    return rows["user_id"][:cases].rank("dense").to_numpy()


def summarise(ranks: pl.DataFrame, seed: int) -> Metrics:
    """model -> split -> "masked" | "unmasked" -> {"recall@1": …, "ndcg@50": …}.

    On test, each metric has an "…_interval" beside it: [low, high], 95 % bootstrap over users.
    """
    metrics: Metrics = {}
    for model, split, masked in ranks.select("model", "split", "masked").unique(maintain_order=True).iter_rows():
        ranks_of_model, users = ranks_by_repeat(ranks, model, split, masked), users_of(ranks, model, split, masked)
        entry: dict[str, Any] = {}
        for name, metric in METRICS.items():
            for k in CUTOFFS:
                values = metric(ranks_of_model, k).mean(axis=0)
                entry[f"{name}@{k}"] = float(values.mean())
                if split == "test":
                    entry[f"{name}@{k}_interval"] = list(bootstrap_interval(values, seed, users=users))
        metrics.setdefault(model, {}).setdefault(split, {})[MASK_NAMES[masked]] = entry
    return metrics


def best_baseline(ranks: pl.DataFrame) -> str | None:
    """The baseline with the highest valid Recall@10, seen items masked; of equal ones the first. None where there is none."""
    return max(
        baselines(ranks),
        key=lambda name: recall_at(ranks_by_repeat(ranks, name, "valid", True), 10).mean(),
        default=None,
    )


def baselines(ranks: pl.DataFrame) -> list[str]:
    others = (*GENERATIVE, *RIVAL_BLENDS)
    return [name for name in ranks["model"].unique(maintain_order=True) if name not in others]


def compare(ranks: pl.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Paired tests of the pairs of `compared_pairs`; see `compare_pairs`."""
    return compare_pairs(ranks, compared_pairs(ranks), seed)


def compared_pairs(ranks: pl.DataFrame) -> list[tuple[str, str]]:
    """Each generative model with every baseline, and OWN_PAIRS."""
    present = [name for name in GENERATIVE if name in set(ranks["model"])]
    pairs = [(name, other) for name in present for other in baselines(ranks)]
    return pairs + [pair for pair in OWN_PAIRS if set(pair) <= set(ranks["model"])]


def compare_pairs(ranks: pl.DataFrame, pairs: list[tuple[str, str]], seed: int) -> list[dict[str, Any]]:
    """Paired tests of the first model of each pair against the second, on test, for Recall@10 and NDCG@10.

    p_holm: p corrected for the number of pairs compared, separately for each metric with seen items masked or not.
    """
    rows = []
    for masked in (True, False):
        for name, metric in METRICS.items():
            values = {
                model: metric(ranks_by_repeat(ranks, model, "test", masked), 10).mean(axis=0)
                for model in ranks["model"].unique(maintain_order=True)
            }
            users = users_of(ranks, next(iter(values)), "test", masked)
            rows += paired_rows(values, users, pairs, f"{name}@10", masked, seed)
    return rows


def paired_rows(
    values: dict[str, np.ndarray], users: np.ndarray, pairs: list[tuple[str, str]], metric: str, masked: bool, seed: int
) -> list[dict[str, Any]]:
    """A row a pair of `compare_pairs`. values: by model, the metric of each case; users: a number for each case's user."""
    tests = [paired_test(values[model], values[other], seed, users=users) for model, other in pairs]
    corrected = holm([test.p for test in tests])
    return [
        {
            "model": model,
            "against": other,
            "seen": MASK_NAMES[masked],
            "metric": metric,
            "difference": test.difference,
            "interval": [test.low, test.high],
            "p": test.p,
            "p_holm": p_holm,
        }
        for (model, other), test, p_holm in zip(pairs, tests, corrected, strict=True)
    ]


def header(values: Sequence[str] = ()) -> list[str]:
    """Column names of the comparison table. values: of the metrics in VALUE_NAMES, those that are measured."""
    recalls = [f"R@{k}" for k in CUTOFFS]
    ndcgs = [f"N@{k}" for k in CUTOFFS if k > 1]
    return ["model", "valid R@10", *recalls, "R@10 95 % interval", *ndcgs, *(VALUE_NAMES[name] for name in values)]


def measured_values(metrics: Metrics, masked: bool) -> list[str]:
    """The metrics in VALUE_NAMES that every model has."""
    return [
        name for name in VALUE_NAMES if all(name in splits["test"][MASK_NAMES[masked]] for splits in metrics.values())
    ]


def body(metrics: Metrics, models: list[str], masked: bool) -> list[list[str]]:
    """A row a model, in the order of `models`; all but the second column are of test. NDCG@1 is Recall@1 and has no column."""
    rows = []
    for model in models:
        valid, test = (metrics[model][split][MASK_NAMES[masked]] for split in ("valid", "test"))
        low, high = test["recall@10_interval"]
        recalls = [f"{test[f'recall@{k}']:.4f}" for k in CUTOFFS]
        ndcgs = [f"{test[f'ndcg@{k}']:.4f}" for k in CUTOFFS if k > 1]
        values = [format(test[name], VALUE_FORMS[name]) for name in measured_values(metrics, masked)]
        rows.append([model, f"{valid['recall@10']:.4f}", *recalls, f"{low:.4f}–{high:.4f}", *ndcgs, *values])
    return rows


def notes(comparison: dict[str, Any]) -> list[str]:
    """Sentences under the table: the cases, the repeats, the tuning, the paired tests, the list checks, the best that is possible."""
    cases = comparison["cases"]
    lines = [
        f"{cases['test']} test and {cases['valid']} valid cases, {comparison['items']} items, all of them ranked; seed "
        f"{comparison['seed']}. Intervals: bootstrap over users."
    ]
    lines += training_notes(comparison)
    if comparison["best_baseline"]:
        lines.append(f"Best baseline, chosen on valid Recall@10 with seen items masked: {comparison['best_baseline']}.")
    lines += test_notes(comparison)
    for model, checks in comparison["list_checks"].items():
        lines.append(
            f"Lists of {model} ({checks['lists']}): {checks['invalid']} invalid entries, {checks['repeats']} repeats, "
            f"{checks['short']} lists too short, {checks['seen']} seen items where they are masked."
        )
    if comparison["oracle"]:
        lines.append(oracle_note(comparison["oracle"], comparison["models"]))
    if "value" in comparison:
        lines += value_notes(comparison["value"], comparison["cases"])
    return lines


def value_notes(value: dict[str, Any], cases: dict[str, int]) -> list[str]:
    """Sentences on the metrics of `--value_column`: which cases count, and how far the value model can be trusted."""
    column, fit, test, lines = value["column"], value["fit"], value["judged"]["test"], []
    if value["liked_from"] is not None:
        lines.append(
            f"liked R@K: Recall@K over the {value['liked']['test']} of {cases['test']} test cases whose event has {column} "
            f"{value['liked_from']:g} or more."
        )
    return [
        *lines,
        f"value@10: the mean {column} that matrix factorisation predicts for the first ten items, cross-fitted over {value['folds']} folds "
        f"of the users. On {fit['events']} training events out of fold its RMSE is {fit['rmse']:.4g}, that of the mean "
        f"{fit['mean_rmse']:.4g} (r {fit['r']:.2f}); on the {test['events']} test events {test['rmse']:.4g} and {test['mean_rmse']:.4g} "
        f"(r {test['r']:.2f}), whose mean is {test['mean']:.4g} and is predicted as {test['predicted']:.4g}.",
    ]


def training_notes(comparison: dict[str, Any]) -> list[str]:
    """Sentences on how the rows came about: several seeds, tuning, trainings that the time limit ended."""
    lines = []
    for model, recalls in comparison.get("repeats", {}).items():
        lines.append(
            f"{model}: mean of {len(recalls)} trainings with different seeds; test Recall@10, seen items masked, of each: "
            f"{', '.join(f'{recall:.4f}' for recall in recalls)} (standard deviation {np.std(recalls, ddof=1):.4f})."
        )
    for model, tuned in comparison.get("tuning", {}).items():
        settings = tuned["grid"][tuned["chosen"]].items()
        chosen = ", ".join(
            f"{name} {value if isinstance(value, str) else format(value, 'g')}" for name, value in settings
        )
        metric = tuned.get("metric", "recall@10")
        values = tuned[f"valid_{metric}"]
        lines.append(
            f"{model}: best of {len(values)} settings by valid {METRIC_NAMES[metric]}, seen items masked ({min(values):.4f} to "
            f"{max(values):.4f}): {chosen}."
        )
    return [*lines, *unchanged_notes(comparison), *cut_short_notes(comparison)]


def unchanged_notes(comparison: dict[str, Any]) -> list[str]:
    """A sentence where RL left the SFT model as it was."""
    if not comparison.get("rl_is_sft", False):
        return []
    return ["rl: the SFT model, unchanged, since no step of RL was better on valid; its row says nothing about RL."]


def cut_short_notes(comparison: dict[str, Any]) -> list[str]:
    """A sentence for each model with trainings that the time limit ended."""
    return [
        f"{model}: NOT FULLY TRAINED. The time limit of {ended['minutes']:g} minutes ended {ended['cut']} of its "
        f"{ended['trainings']} trainings before they converged, so its row depends on this machine's speed; raise --sasrec_minutes."
        for model, ended in comparison.get("cut_short", {}).items()
    ]


def test_notes(comparison: dict[str, Any]) -> list[str]:
    """Sentences on the paired tests: all against the best baseline and among generative models, then how many others there are."""
    best, rows = comparison["best_baseline"], comparison["paired_tests"]
    shown = [row for row in rows if row["against"] in (best, *GENERATIVE)]
    lines = []
    for row in shown:
        low, high = row["interval"]
        lines.append(
            f"{row['model']} − {row['against']}, test {row['metric']}, seen {row['seen']}: {row['difference']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], p {p_in_words(row['p_holm'], row['p'])}."
        )
    if rows:
        lines.append(
            f"p: paired sign flips over users, Holm-corrected for the {compared_count(comparison)} pairs of rows compared with this metric "
            f"and mask; every pair is in comparison.json."
        )
    return lines


def compared_count(comparison: dict[str, Any]) -> int:
    """How many pairs of rows each metric and mask is compared for, and p is corrected for."""
    return len({(row["model"], row["against"]) for row in comparison["paired_tests"]})


def oracle_note(oracle: dict[str, Any], models: list[str]) -> str:
    """The demo's best possible test Recall@10, and the share of it that each model reaches."""
    test = oracle["test"]
    shares = ", ".join(f"{model} {test['share_of_expected'][model]['10']:.0%}" for model in models)
    return (
        f"Best possible test Recall@10 of the demo's own model: {test['expected']['10']:.4f} expected, "
        f"{test['realised']['10']:.4f} on these cases; share of the expected reached, seen items masked: {shares}."
    )


def decoding_notes(metrics: Metrics) -> list[str]:
    """Sentences on each generative model's decoding; see `sidrec.decoding.diagnostics`."""
    lines = []
    for model in GENERATIVE:
        if "decoding" not in metrics.get(model, {}):
            continue
        diagnosis = metrics[model]["decoding"]
        full, level, forced = (
            ", ".join(f"{share:.2%}" for share in diagnosis[key]) for key in ("leaked_full", "leaked_level", "forced")
        )
        line = (
            f"Decoding of {model}, {diagnosis['histories']} test histories: probability on codes that do not exist, level by level, {full} "
            f"of the full softmax and {level} of the level's; forced codes {forced} of the items' codes"
        )
        if diagnosis["missed"] is not None:
            line += (
                f"; beam regret@{diagnosis['k']} ({diagnosis['regret_histories']} histories, every item scored): "
                f"{diagnosis['missed']:.2%} of the true first {diagnosis['k']} missed, {diagnosis['lost_mass']:.5f} of probability"
            )
        lines.append(f"{line}.")
    return lines


def lists_body(spreads: dict[str, dict[str, float | None]]) -> list[list[str]]:
    """What the first ten are like, under LISTS_HEADER, a row a model, and one of what users took."""
    rows = []
    for name, of_lists in spreads.items():
        figures = [of_lists[figure] for figure in ("coverage", "gini", "entropy", "novelty", "diversity")]
        forms = (".1%", ".3f", ".2f", ".2f", ".3f")
        rows.append([name, *("" if x is None else format(x, form) for x, form in zip(figures, forms, strict=True))])
    return rows


def markdown(metrics: Metrics, comparison: dict[str, Any], spreads: dict[str, dict[str, float | None]]) -> str:
    """The whole of table.md. spreads: see `sidrec.evaluation.report.figures.spreads_of`."""
    parts = []
    for masked, title in TITLES.items():
        head = header(measured_values(metrics, masked))
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body(metrics, comparison["models"], masked)]
        parts.append(f"Test, {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    lines = [LISTS_HEADER, ["---"] + ["---:"] * (len(LISTS_HEADER) - 1), *lists_body(spreads)]
    parts.append("The lists of ten\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append("\n".join(f"* {note}" for note in [*notes(comparison), *decoding_notes(metrics)]))
    return "\n\n".join(parts) + "\n"


def screen_lines(metrics: Metrics, models: list[str]) -> list[str]:
    """The compact table for the screen: test Recall@10 and NDCG@10 with their intervals, seen items masked; a line a model."""
    names = METRIC_NAMES | {name: VALUE_NAMES[name] for name in measured_values(metrics, True)}
    cells = [("", *names.values())]
    for model in models:
        figures = metrics[model]["test"][MASK_NAMES[True]]
        row = []
        for name in names:
            form, (low, high) = VALUE_FORMS.get(name, ".4f"), figures[f"{name}_interval"]
            row.append(f"{figures[name]:{form}} ({low:{form}}–{high:{form}})")
        cells.append((model, *row))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    title = f"Test, {TITLES[True]} (95 % intervals)"
    return [
        title,
        *("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells),
    ]


def screen_notes(comparison: dict[str, Any]) -> list[str]:
    """What a user must know of the compact table: the best baseline and who is ahead of it, and what is not fully trained."""
    best, lines, unchanged = comparison["best_baseline"], [], unchanged_notes(comparison)
    shown = {"against": best, "seen": MASK_NAMES[True], "metric": "recall@10"}
    for row in comparison["paired_tests"]:
        if shown.items() <= row.items() and not (unchanged and row["model"] == "rl"):
            p = p_in_words(row["p_holm"], row["p"])
            lines.append(
                f"{row['model']} − {best} (the best baseline on valid): Recall@10 {row['difference']:+.4f}, p {p} "
                f"(Holm-corrected for {compared_count(comparison)} pairs of rows)"
            )
    lines += unchanged
    if comparison["oracle"]:
        lines.append(oracle_note(comparison["oracle"], comparison["models"]))
    return [*lines, *cut_short_notes(comparison)]


def plot_recall(ranks: pl.DataFrame, path: Path) -> None:
    """Test Recall@K for K = 1…50 of every model, seen items masked and not, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    cutoffs = np.arange(1, CUTOFFS[-1] + 1)
    for column, (masked, title) in enumerate(TITLES.items(), start=1):
        axes = figure.add_subplot(1, 2, column)
        curves = {}
        for model in ranks["model"].unique(maintain_order=True):
            ranks_of_model = ranks_by_repeat(ranks, model, "test", masked)
            curves[model] = [recall_at(ranks_of_model, int(k)).mean() for k in cutoffs]
        for model, label in coinciding(curves).items():
            axes.plot(cutoffs, curves[model], label=label, linestyle="-" if model in GENERATIVE else "--")
        axes.set(title=f"Test, {title}", xlabel="K", ylabel="Recall@K", xlim=(1, cutoffs[-1]), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None})
