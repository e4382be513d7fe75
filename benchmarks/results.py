"""The table: rivals and ours, trained on one split, with seeds, intervals and paired tests.

python -m benchmarks.results --dataset ml-100k --raw_dir ml-100k --work_dir outputs/results_ml-100k --json
python -m benchmarks.results --dataset ml-1m --raw_dir ml-1m --work_dir outputs/results_ml-1m --pieces both --seeds 1

A piece is a baseline, or one of our tokenizers with all that is trained on its semantic IDs. Every piece is prepared, trained and measured
by the project's own stages in run directories under --work_dir/runs, each with a log.txt. A killed run goes on where it was; finished
pieces are kept and not run again; a later run with more seeds trains only the further ones; other pieces can run at the same time. The
table holds what is finished. Everything is chosen on valid: our best row and the best baseline by Recall@10, the settings of baselines by
a grid of the same size for all. With --json the last line is one JSON object.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl
from rich.console import Console

from benchmarks.finished_rows import FinishedRows, Row, markdown
from benchmarks.harness import (
    EVALUATE,
    PREPARE,
    Cost,
    announce,
    check_at_least,
    cost_of_stage,
    plain_console,
    prepare_flags,
    print_figures,
    run_stage,
)
from benchmarks.our_models import OURS, PLANS, training_commands
from sidrec.baselines.blend import ENSEMBLES, RIVAL_BLENDS
from sidrec.baselines.neural import NEURAL
from sidrec.evaluation import table
from sidrec.evaluation.statistics import p_in_words
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256, write_json
from sidrec.pipeline.provenance import code_version
from sidrec.pipeline.stage import require_finished

BASELINES = (
    "popularity",
    "recent_popularity",
    "item_knn",
    "markov",
    "markov_decay",
    "slit",
    "sasrec_bce",
    "sasrec",
    "sasrec_sampled",
    "esasrec",
    "bsarec",
)
HEADER = (
    "row|seeds|valid R@10|R@10|R@10 (95 %)|N@10|N@10 (95 %)|R@10, seen not masked|N@10, seen not masked|"
    "R@10 less the best baseline's (95 %)|p|CPU s|peak GiB|hours"
)
SIGNIFICANT = 0.05
PIECES = (*BASELINES[:6], *reversed(OURS), *BASELINES[6:])  # quick ones first
NOTED = '"training_cpu_seconds"'  # in log.txt, where a training has ended
OUR_ROWS = {  # of the JSON object: models of `both`
    "alone": "sft",
    "blend": "sft_blend",
    "ensemble": "sft_ensemble",
    "rl": "rl",
    "rl_blend": "rl_blend",
    "rl_ensemble": "rl_ensemble",
}
BLEND_WITH = ("item_knn", "slit")  # what our rows, and rivals', may be blended with, chosen on valid
RIVAL_ROWS = {baseline: blend for blend, baseline in RIVAL_BLENDS.items()}  # by piece, its second row


@dataclass
class ResultsConfig:
    """Train baselines and ours on one split of a data set and print the table of all."""

    dataset: Literal["ml-100k", "amazon-beauty", "ml-1m"] = field(metadata={"help": "The data set, and its plan."})
    raw_dir: Path | None = field(
        default=None,
        metadata={
            "help": "The publisher's unpacked files, or a folder with interactions.parquet and items.csv, taken as they are. Left out: "
            "what --work_dir was begun with, or a download."
        },
    )
    work_dir: Path | None = field(
        default=None,
        metadata={"help": "Where runs and finished pieces are kept; default: outputs/results-DATASET."},
    )
    pieces: list[str] = field(
        default_factory=lambda: list(PIECES), metadata={"help": f"What to run now: any of {' '.join(PIECES)}."}
    )
    seeds: int = field(default=3, metadata={"help": "Trainings of every row that is trained: seeds 0, 1, …."})
    baseline_seeds: int = field(
        default=0,
        metadata={"help": "Trainings of each neural baseline; 0: as many as of our rows. The table shows the number."},
    )
    tune_baselines: bool = field(
        default=True,
        metadata={"help": "Choose each neural baseline's settings from a grid of 4 on valid; false: the grid's first."},
    )
    rl: bool = field(default=True, metadata={"help": "Train and measure our rows with RL as well."})
    threads: int = field(default=1, metadata={"help": "Threads of each stage, so that two pieces can run at once."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object as the last line."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.pieces if name not in PIECES]
        if unknown:
            raise InputError(f"--pieces has {unknown[0]!r}; give any of {' '.join(PIECES)}.")
        check_at_least(1, seeds=self.seeds, threads=self.threads)
        check_at_least(0, baseline_seeds=self.baseline_seeds)
        self.pieces = [name for name in PIECES if name in self.pieces]

    @property
    def folder(self) -> Path:
        return self.work_dir or Path("outputs") / f"results-{self.dataset}"


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(ResultsConfig, arguments), plain_console()
    command = announce(console, "results", arguments)
    data = prepare(config)
    for done, piece in enumerate(config.pieces, start=1):
        run_or_find(piece, config, data, console, f"[{done}/{len(config.pieces)}]")
    rows = finished_pieces(config, data)
    comparison = Comparison.of(joined(config.folder, rows))
    hours = round(sum(row["seconds"] for row in rows.values()) / 3600, 2)
    figures = figures_of(comparison) | {"seeds": config.seeds, "hours": hours}
    figures |= {name: rows.get("both", {}).get(name) for name in ("cpu_seconds", "validation_cpu_seconds", "peak_gib")}
    console.print(f"\n## {config.dataset}\n")
    console.print(markdown(HEADER.split("|"), table_lines(comparison, rows, figures["best_baseline"])))
    notes = [*notes_on(figures, rows, data, command), *rival_notes(comparison), *training_notes(config, rows)]
    console.print("\n" + "\n".join(f"* {note}" for note in notes))
    if config.json:
        print_figures(figures)


def prepare(config: ResultsConfig) -> str:
    """Prepare the data set once; the sha256 of its interactions."""
    base = config.folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    if config.raw_dir is not None or not (base / "data" / "manifest.json").exists():
        run_stage([*PREPARE, *prepare_flags(config.dataset, config.raw_dir)], base, config.threads)
    require_finished(base, "data", f"python -m benchmarks.results --dataset {config.dataset} --raw_dir DIR")
    return sha256(base / "data" / "interactions.parquet")


def made_from(piece: str, config: ResultsConfig, data: str) -> Row:
    """All that decides a piece's figures."""
    plan = PLANS[config.dataset]
    if piece not in OURS:
        baseline: Row = {"valid_cases": plan.valid_cases, "data": data}
        if piece in NEURAL:
            baseline |= {"minutes": plan.minutes, "tune_baselines": config.tune_baselines}
            baseline |= {"seeds": config.baseline_seeds or config.seeds}
        if piece in RIVAL_ROWS:
            baseline |= {"blend_with": BLEND_WITH}
        return baseline
    ours = {"plan": asdict(plan), "tokenizer": OURS[piece].tokenizer, "models": models_of(piece, config)}
    return ours | {"blend_with": BLEND_WITH, "data": data, "seeds": config.seeds}


def models_of(piece: str, config: ResultsConfig) -> dict[str, str]:
    """Of one of our pieces, what is trained and measured: no ensemble of a single seed, no RL without --rl."""
    left_out = set() if config.seeds > 1 else set(ENSEMBLES)
    if not config.rl:
        left_out |= {"rl", "rl_blend", "rl_ensemble"}
    return {name: row for name, row in OURS[piece].models.items() if name not in left_out}


def row_file(work_dir: Path, piece: str) -> FinishedRows:
    """A file for each piece, so that pieces that run at the same time do not overwrite each other's."""
    return FinishedRows(work_dir / "rows" / f"{piece}.json")


def run_or_find(piece: str, config: ResultsConfig, data: str, console: Console, place: str) -> Row:
    """A piece's row, run unless it is finished, with a line when it begins and when it ends."""
    finished, origin = row_file(config.folder, piece), made_from(piece, config, data)
    row = finished.find(piece, origin)
    if row is None:
        console.print(f"{time.strftime('%H:%M:%S')} {place} {piece}: log in {run_folder(config, piece, 0)}/log.txt")
        (config.folder / "rows").mkdir(exist_ok=True)
        spent = config.folder / "rows" / f"{piece}.seconds.json"  # of attempts that were stopped, too
        before = json.loads(spent.read_text(encoding="utf-8")) if spent.exists() else 0.0
        start = time.perf_counter()
        try:
            cost = run_piece(piece, config)
        finally:
            seconds = round(before + time.perf_counter() - start, 1)
            write_json(spent, seconds)
        ranks = run_folder(config, piece, 0) / "evaluation" / "ranks.parquet"
        about = {"seconds": seconds, "code": code_version(), "ranks": str(ranks.relative_to(config.folder))}
        about |= cost
        row = finished.keep(piece, origin, about)
        console.print(f"{time.strftime('%H:%M:%S')} {place} {piece}: finished, {row['seconds']:,.0f} s in all")
    return row


def run_piece(piece: str, config: ResultsConfig) -> Row:
    """Train all that the piece needs, each stage unless it is finished, and measure it; what that cost."""
    first = make_run_dir(config, piece, 0)
    if piece in BASELINES:
        minutes = str(PLANS[config.dataset].minutes)
        tune = str(config.tune_baselines).lower()
        seeds = str(config.baseline_seeds or config.seeds)
        flags = ["--seeds", seeds, "--tune_baselines", tune, "--sasrec_minutes", minutes]
        blend = [RIVAL_ROWS[piece], "--blend_with", *BLEND_WITH] if piece in RIVAL_ROWS else []
        return evaluate(first, [piece, *blend, *flags], config)._asdict()
    models = models_of(piece, config)
    for seed in range(config.seeds):
        for command in training_commands(PLANS[config.dataset], OURS[piece], models, seed):
            run_stage(command, make_run_dir(config, piece, seed), config.threads)
    others = [str(run_folder(config, piece, seed).resolve()) for seed in range(1, config.seeds)]
    runs = ["--other_runs", *others] if others else []
    evaluate(first, [*models, "--blend_with", *BLEND_WITH, *runs], config)
    return training_cost([run_folder(config, piece, seed) / "sft" / "log.txt" for seed in range(config.seeds)])


def training_cost(logs: list[Path]) -> Row:
    """Of SFT, by what it noted in its log.txt: processor seconds of a training, of its validations, mean over seeds; the largest peak."""
    notes = [
        [json.loads(line[line.index("{") :]) for line in log.read_text(encoding="utf-8").splitlines() if NOTED in line]
        for log in logs
        if log.exists()
    ]
    if not any(notes):
        return {}
    totals = {
        name: round(sum(note[name] for of_seed in notes for note in of_seed) / len(notes), 1)
        for name in ("training_cpu_seconds", "validation_cpu_seconds")
    }
    peak = max(note["peak_gib"] for of_seed in notes for note in of_seed)
    return {
        "cpu_seconds": totals["training_cpu_seconds"],
        "validation_cpu_seconds": totals["validation_cpu_seconds"],
        "peak_gib": peak,
    }


def evaluate(run_dir: Path, flags: list[str], config: ResultsConfig) -> Cost:
    """`sidrec evaluate --models …`, anew: what it was made from, such as fewer seeds, may have changed; trained baselines are kept."""
    valid_cases = ["--valid_cases", str(PLANS[config.dataset].valid_cases)]
    command = [*EVALUATE, "--models", *flags, *valid_cases, "--overwrite", "true"]
    return cost_of_stage(command, run_dir, config.threads)


def run_folder(config: ResultsConfig, piece: str, seed: int) -> Path:
    """A baseline's seeds share a run directory; each of our seeds has its own."""
    return config.folder / "runs" / (f"{piece}-seed{seed}" if piece in OURS else piece)


def make_run_dir(config: ResultsConfig, piece: str, seed: int) -> Path:
    """The run directory with the prepared data."""
    run_dir = run_folder(config, piece, seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "data").exists():
        copying = run_dir / ".data.tmp"
        shutil.rmtree(copying, ignore_errors=True)
        shutil.copytree(config.folder / "base" / "data", copying)
        copying.rename(run_dir / "data")
    return run_dir


def finished_pieces(config: ResultsConfig, data: str) -> dict[str, Row]:
    """The rows of all finished pieces, asked for now or not, made from what they would be made from now."""
    rows = {
        piece: row_file(config.folder, piece).find(piece, made_from(piece, config, data))
        for piece in [*OURS, *BASELINES]
    }
    return {piece: row for piece, row in rows.items() if row is not None}


def joined(work_dir: Path, rows: dict[str, Row]) -> pl.DataFrame:
    """The ranks of all pieces, under the names of the table's rows."""
    frames = []
    for piece, row in rows.items():
        frame = pl.read_parquet(work_dir / row["ranks"], glob=False)
        if piece in OURS:
            frame = frame.with_columns(pl.col("model").replace_strict(OURS[piece].models))
        frames.append(frame)
    return pl.concat(frames) if frames else pl.DataFrame(schema={"model": pl.String})


@dataclass(frozen=True)
class Comparison:
    """ours, baselines: the table's rows. rivals: its rows of a baseline with a memory. metrics: see `table.summarise`. tests: of Recall@10,
    seen items masked, by pair: each of our rows against each baseline and rival, corrected for the number of these pairs. best_baseline: by
    valid Recall@10, no rival."""

    ranks: pl.DataFrame
    ours: list[str]
    baselines: list[str]
    rivals: list[str]
    metrics: table.Metrics
    tests: dict[tuple[str, str], dict[str, Any]]
    best_baseline: str | None

    @classmethod
    def of(cls, ranks: pl.DataFrame) -> Comparison:
        """ranks: as `joined` gives them."""
        names = ranks["model"].unique(maintain_order=True).to_list()
        baselines = [name for name in names if name in BASELINES]
        rivals = [name for name in names if name in RIVAL_BLENDS]
        ours = [name for name in names if name not in (*baselines, *rivals)]
        pairs = [(our_row, other) for our_row in ours for other in (*baselines, *rivals)]
        compared = table.compare_pairs(ranks, pairs, seed=0) if pairs else []
        tests = {
            (row["model"], row["against"]): row
            for row in compared
            if (row["seen"], row["metric"]) == ("masked", "recall@10")
        }
        metrics = table.summarise(ranks, seed=0) if names else {}
        of_baselines = ranks.filter(pl.col("model").is_in(baselines))
        best = table.best_baseline(of_baselines) if baselines else None
        return cls(ranks, ours, baselines, rivals, metrics, tests, best)


def figures_of(comparison: Comparison) -> dict[str, Any]:
    """The JSON object but for seeds and hours; None where ours or the baselines are missing. All of test, seen items masked.

    alone_…, blend_…, ensemble_…, rl_…: of the rows of the default semantic IDs. recall10, ndcg10: of our row `best_row`, the one of the
    best valid Recall@10. best_baseline_recall10: of `best_baseline`. paired_p: of these two rows' Recall@10. beaten: of the `baselines` in
    the table, how many the row beats with p below .05.
    """
    metrics, baseline = comparison.metrics, comparison.best_baseline
    best = max(comparison.ours, key=lambda name: metrics[name]["valid"]["masked"]["recall@10"], default=None)
    best_metrics = metrics[best]["test"]["masked"] if best else {}
    against = [comparison.tests[best, name] for name in comparison.baselines] if best else []
    ours: dict[str, Any] = {}
    for kind, model in OUR_ROWS.items():
        test = metrics.get(OURS["both"].models[model], {}).get("test", {}).get("masked", {})
        ours |= {f"{kind}_recall10": test.get("recall@10"), f"{kind}_ndcg10": test.get("ndcg@10")}
    return ours | {
        "recall10": best_metrics.get("recall@10"),
        "ndcg10": best_metrics.get("ndcg@10"),
        "best_row": best,
        "best_baseline": baseline,
        "best_baseline_recall10": metrics[baseline]["test"]["masked"]["recall@10"] if baseline else None,
        "paired_p": comparison.tests[best, baseline]["p_holm"] if best and baseline else None,
        "beaten": sum(row["difference"] > 0 and row["p_holm"] < SIGNIFICANT for row in against),
        "baselines": len(comparison.baselines),
    }


def notes_on(figures: dict[str, Any], rows: dict[str, Row], data: str, command: str) -> list[str]:
    """What a reader must know of the table."""
    missing = [piece for piece in PIECES if piece not in rows]
    code = ", ".join(sorted({row["code"] for row in rows.values()}))
    notes = [
        "Test, leave one out, the whole catalogue ranked, seen items masked where not said otherwise; means over seeds; bootstrap "
        "intervals over users.",
        f"Best of ours on valid Recall@10: {figures['best_row']}; best baseline: {figures['best_baseline']}. p: paired sign flips over "
        f"users, Holm-corrected for the pairs of our rows and baselines; the best of ours beats {figures['beaten']} of "
        f"{figures['baselines']} baselines with p < {SIGNIFICANT:g}.",
        f"Code: {code or 'none ran'}. sha256 of interactions.parquet: {data}. {figures['hours']} hours in all.",
        "CPU s and peak GiB: of ours a training without its validations, the mean over seeds; of a baseline all that it needs, tuning and "
        "measuring too.",
        f"Command: {command}",
    ]
    if missing:
        notes.append(f"NOT FINISHED: {' '.join(missing)}; run the command again to go on.")
    return notes


def rival_notes(comparison: Comparison) -> list[str]:
    """Our blend less each baseline with a memory, chosen by the same rule."""
    blend = OURS["both"].models["sft_blend"]
    notes = []
    for rival in comparison.rivals if blend in comparison.ours else []:
        minus = comparison.tests[blend, rival]
        low, high = minus["interval"]
        notes.append(
            f"{blend}, less {rival}: Recall@10 {minus['difference']:+.4f} ({low:+.4f} to {high:+.4f}), p "
            f"{p_in_words(minus['p_holm'], minus['p'])}."
        )
    return notes


def training_notes(config: ResultsConfig, rows: dict[str, Row]) -> list[str]:
    """What the evaluations say of seeds, tuning and trainings that were cut short, each after its piece's name."""
    notes = []
    for piece, row in rows.items():
        comparison = json.loads((config.folder / row["ranks"]).with_name("comparison.json").read_text(encoding="utf-8"))
        prefix = f"{piece}: " if piece in OURS else ""
        notes += [f"{prefix}{note}" for note in table.training_notes(comparison)]
    return notes


def table_lines(comparison: Comparison, rows: dict[str, Row], baseline: str | None) -> list[list[str]]:
    """The cells of the table, under HEADER: baselines, then ours. A piece's hours stand in its first row."""
    lines = []
    for piece in [name for name in [*BASELINES, *OURS] if name in rows]:
        named = OURS[piece].models.values() if piece in OURS else [piece, RIVAL_ROWS.get(piece)]
        names = [name for name in named if name in comparison.metrics]
        for name in names:
            metrics, minus = comparison.metrics[name], comparison.tests.get((name, baseline or ""))
            valid, test, unmasked = metrics["valid"]["masked"], metrics["test"]["masked"], metrics["test"]["unmasked"]
            repeats = len(table.ranks_by_repeat(comparison.ranks, name, "test", True))
            lines.append(
                [
                    name,
                    str(repeats),
                    f"{valid['recall@10']:.4f}",
                    *(cell for metric in ("recall@10", "ndcg@10") for cell in with_interval(test, metric)),
                    f"{unmasked['recall@10']:.4f}",
                    f"{unmasked['ndcg@10']:.4f}",
                    f"{minus['difference']:+.4f} ({minus['interval'][0]:+.4f} to {minus['interval'][1]:+.4f})"
                    if minus
                    else "",
                    p_in_words(minus["p_holm"], minus["p"]).removeprefix("= ") if minus else "",
                    *(str(rows[piece].get(cost, "")) * (name == names[0]) for cost in Cost._fields),
                    f"{rows[piece]['seconds'] / 3600:.2f}" if name == names[0] else "",
                ]
            )
    return lines


def with_interval(metrics: dict[str, Any], metric: str) -> tuple[str, str]:
    """A metric's value and its 95 % interval."""
    low, high = metrics[f"{metric}_interval"]
    return f"{metrics[metric]:.4f}", f"{low:.4f}–{high:.4f}"


if __name__ == "__main__":
    run_as_command(main)
