"""The decoding engine against `generate()`, a dictionary and padded rows; tries of ten million items; a catalogue that changes.

python -m benchmarks.constrained_decoding
python -m benchmarks.constrained_decoding --parts b d

(a) end to end against transformers' generate(num_beams, prefix_allowed_tokens_fn): batch 8, prompts of 128, 20 beams.
(b) a masking step, 640 rows of a catalogue of a million items, against a processor with a dictionary and padded compressed rows.
(c) ten million items of 4 codes: build, bytes, open, a step. (d) seen items' share of a search, insertions, requests in threads.

One process, one thread (but for the threads of requests), medians of CPU seconds; opening a file is in seconds of the clock. The last
line is one JSON object.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from benchmarks.harness import announce, plain_console, print_figures
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError


@dataclass
class ConstrainedDecodingConfig:
    """Which parts to measure, and how large."""

    parts: list[str] = field(
        default_factory=lambda: ["a", "b", "c", "d"], metadata={"help": "The parts to run, of a b c d; see above."}
    )
    items: int = field(default=1_000_000, metadata={"help": "Items of the catalogue of parts b and d."})
    large_items: int = field(default=10_000_000, metadata={"help": "Items of the catalogue of part c."})
    repeats: int = field(default=5, metadata={"help": "Timed calls of which the median is taken."})
    seconds: float = field(default=60.0, metadata={"help": "Seconds that the threads of requests of part d run."})
    seed: int = field(default=0, metadata={"help": "Seed of the random catalogues and models."})

    def __post_init__(self) -> None:
        if not set(self.parts) <= set("abcd"):
            raise InputError(f"--parts {' '.join(self.parts)}: there are the parts a, b, c and d.")
        if min(self.items, self.large_items) < 10_000:
            raise InputError("--items and --large_items are for large catalogues; give 10,000 or more.")
        if self.repeats < 1 or self.seconds <= 0:
            raise InputError("--repeats and --seconds must be above 0.")


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(ConstrainedDecodingConfig, arguments), plain_console()
    announce(console, "constrained_decoding", arguments)
    print_figures(measure(config, console))


def measure(config: ConstrainedDecodingConfig, console: Console) -> dict[str, float]:
    """The figures of the parts asked for, each part shown when it is done."""
    import torch

    from benchmarks.changing_catalogue import measure_changes
    from benchmarks.masking_step import compare_masking, measure_large_trie

    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for part in config.parts:
        if part == "a":
            from benchmarks.generate_comparison import compare_generate

            of_part = compare_generate(repeats=config.repeats, seed=config.seed)
        elif part == "b":
            of_part = compare_masking(config.items, config.repeats, config.seed)
        elif part == "c":
            of_part = measure_large_trie(config.large_items, config.repeats, config.seed)
        else:
            of_part = measure_changes(config.items, config.seconds, config.repeats, config.seed)
        figures |= of_part
        show(console, part, of_part)
    return figures


def show(console: Console, part: str, figures: dict[str, float]) -> None:
    table = Table(title=f"part {part}", title_justify="left")
    table.add_column("figure")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name, str(value))
    console.print(table)


if __name__ == "__main__":
    run_as_command(main)
