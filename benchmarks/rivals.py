"""The rivals at full strength: sequence models trained until valid stops rising, beside what is published of them.

python -m benchmarks.rivals --dataset amazon-beauty --raw_dir amazon-beauty --work_dir outputs/rivals_beauty --json
python -m benchmarks.rivals --dataset ml-100k --raw_dir ml-100k --work_dir outputs/rivals_ml-100k --write docs/logs/ml-100k --json

BSARec has its paper's settings for Amazon Beauty, and so has SASRec where every prefix is a case; of SASRec on whole histories, with a
softmax over all items and over sampled ones, they are chosen on valid from a grid of four. Leave one out, the whole catalogue, seen items
left out. Every rival has a run directory of its own under --work_dir/runs, and is gone on with where it was stopped. With --write, the
ranks of every test case and the valid Recall@10 after each pass are put into a folder, so that a paired test needs no training. The last
line is one JSON object.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from benchmarks.finished_rows import markdown
from benchmarks.harness import (
    EVALUATE,
    PREPARE,
    announce,
    check_at_least,
    plain_console,
    prepare_flags,
    print_figures,
    run_stage,
)
from sidrec.baselines.neural import CURVE
from sidrec.evaluation.rank_file import ENDING, RankFile
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, write_json

TUNED = {  # whether the grid is tried, or its first point taken
    "bsarec": False,
    "sasrec_prefixes": False,
    "sasrec": True,
    "sasrec_sampled": True,
}
SASRECS = ("sasrec_prefixes", "sasrec", "sasrec_sampled")
PUBLISHED = {  # on the same split and by the same protocol, Recall@10 / NDCG@10
    (
        "amazon-beauty",
        "bsarec",
    ): "its log: valid .1202 / .0727 after 22 passes, .1238 / .0753 at best, test .1008 / .0611 after 55; "
    "reruns: test .0950 / .0575 to .0985 / .0599",
    ("amazon-beauty", "sasrec_sampled"): "blondered/transformer_benchmark: test .0921 / .0531",
    ("amazon-beauty", "sasrec_prefixes"): "reruns with a softmax over all items: test Recall@10 .0824 to .0906",
}
HEADER = "rival|passes|valid R@10|valid N@10|R@10|N@10|CPU s"


@dataclass
class RivalsConfig:
    """Train the rivals on a data set's split, and measure them."""

    dataset: Literal["ml-100k", "amazon-beauty", "ml-1m"] = field(metadata={"help": "The data set."})
    work_dir: Path = field(metadata={"help": "Where runs are kept; another one for each data set."})
    raw_dir: Path | None = field(
        default=None,
        metadata={
            "help": "The publisher's unpacked files, or a folder with interactions.parquet and items.csv, taken as they are. Left out: a "
            "download."
        },
    )
    rivals: list[str] = field(default_factory=lambda: list(TUNED), metadata={"help": f"Any of {', '.join(TUNED)}."})
    epochs: int = field(default=200, metadata={"help": "Passes of one training, at most."})
    minutes: int = field(default=240, metadata={"help": "Of one training, at most."})
    threads: int = field(default=1, metadata={"help": "Threads of each training."})
    write: Path | None = field(
        default=None, metadata={"help": "Folder for ranks and valid Recall@10 by pass, a file of each a rival."}
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON object as the last line."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.rivals if name not in TUNED]
        if unknown or not self.rivals:
            raise InputError(f"--rivals has {unknown or 'nothing'}; give any of {', '.join(TUNED)}.")
        check_at_least(1, epochs=self.epochs, minutes=self.minutes, threads=self.threads)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(RivalsConfig, arguments), plain_console()
    announce(console, "rivals", arguments)
    start = time.monotonic()
    rows = {name: measured(name, config, console) for name in config.rivals}
    console.print(f"\n## {config.dataset}\n")
    console.print(markdown(HEADER.split("|"), [in_words(name, row) for name, row in rows.items()]))
    for name in rows:
        if (config.dataset, name) in PUBLISHED:
            console.print(f"* {name}, {PUBLISHED[config.dataset, name]}")
    if config.json:
        print_figures(figures_of(rows) | {"seconds": round(time.monotonic() - start)})


def measured(name: str, config: RivalsConfig, console: Console) -> dict[str, Any]:
    """Train a rival, and say what came out: recall10 and ndcg10 of valid and test, valid_by_pass, seconds."""
    run_dir = config.work_dir / "runs" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    console.print(f"{time.strftime('%H:%M:%S')} {name}: log in {run_dir / 'log.txt'}")
    run_stage([*PREPARE, *prepare_flags(config.dataset, config.raw_dir)], run_dir, config.threads)
    flags = ["--tune_baselines", str(TUNED[name]).lower(), "--sasrec_minutes", str(config.minutes)]
    flags += ["--sasrec_epochs", str(config.epochs)]
    seconds = run_stage([*EVALUATE, "--models", name, *flags], run_dir, config.threads)
    curve = best_curve(run_dir)
    if config.write is not None:
        config.write.mkdir(parents=True, exist_ok=True)
        RankFile.read(f"{run_dir}:{name}").save(config.write / f"{name}{ENDING}")
        write_json(config.write / f"{name}-valid.json", curve)
    metrics = read_json(run_dir / "evaluation" / "metrics.json")[name]
    figures = {
        f"{split}_{short}": metrics[split]["masked"][metric]
        for split in ("valid", "test")
        for short, metric in (("recall10", "recall@10"), ("ndcg10", "ndcg@10"))
    }
    return figures | {"valid_by_pass": curve, "seconds": seconds}


def best_curve(run_dir: Path) -> list[float]:
    """Valid Recall@10 after every pass, over 2,000 cases, of the training that is the best by it."""
    curves = [
        read_json(folder / CURVE) for folder in sorted((run_dir / "baselines").iterdir()) if (folder / CURVE).exists()
    ]
    return max(curves, key=max)


def figures_of(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The JSON object but for its seconds; sasrec_…: of the SASRec that is better on valid."""
    figures: dict[str, Any] = {}
    sasrecs = [name for name in SASRECS if name in rows]
    best = max(sasrecs, key=lambda name: rows[name]["valid_recall10"], default=None)
    for key, name in (("bsarec", "bsarec"), ("sasrec", best)):
        row = rows.get(name or "", {})
        figures |= {f"{key}_recall10": row.get("test_recall10"), f"{key}_ndcg10": row.get("test_ndcg10")}
    return figures | {"sasrec_kind": best, "valid_by_pass": {name: row["valid_by_pass"] for name, row in rows.items()}}


def in_words(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    figures = [f"{row[key]:.4f}" for key in ("valid_recall10", "valid_ndcg10", "test_recall10", "test_ndcg10")]
    return [name, str(len(row["valid_by_pass"])), *figures, f"{row['seconds']:,.0f}"]


if __name__ == "__main__":
    run_as_command(main)
