"""Two rows of a table, case by case: the paired difference, the second less the first, its interval and p, without any model.

sidrec compare ranks outputs/ml-100k:slit outputs/ml-100k:sft
sidrec compare --ranks docs/logs/amazon-beauty/slit.ranks outputs/amazon-beauty:sft
sidrec compare --ranks outputs/ml-100k:slit outputs/ml-100k:sft --write logs
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen


@dataclass
class CompareConfig:
    """Compare two rows of tables on the test cases that both were measured on."""

    ranks: list[str] = field(
        metadata={
            "help": "Two of: a file of ranks, or RUN:MODEL, a row of a run directory's evaluation with seen items masked."
        }
    )
    write: Path | None = field(
        default=None, metadata={"help": "Folder to write both rows' ranks to, about 20 KB a training for 20,000 cases."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap and of the sign flips."})

    def __post_init__(self) -> None:
        if len(self.ranks) != 2:
            raise InputError(f"--ranks has {len(self.ranks)} rows; give two, the second less the first is shown.")


def main(arguments: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["ranks"]:  # `compare ranks A B` is `compare --ranks A B`
        words[0] = "--ranks"
    compare_rows(parse_config(CompareConfig, words))


def compare_rows(config: CompareConfig) -> None:
    """Say how far two rows lie apart, and write their ranks where that is asked for. Raises InputError for rows that cannot be compared."""
    from sidrec.evaluation.rank_file import ENDING, RankFile  # polars, for which --help does not wait
    from sidrec.evaluation.statistics import p_in_words, paired_test
    from sidrec.evaluation.table import METRIC_NAMES, METRICS

    first, second = (RankFile.read(place) for place in config.ranks)
    if first.cases != second.cases:
        raise InputError(
            f"{config.ranks[0]} and {config.ranks[1]} are of other test cases, {first.ranks.shape[1]:,} and "
            f"{second.ranks.shape[1]:,}; only rows of the same prepared data can be compared case by case."
        )
    if first.masked != second.masked:
        raise InputError(
            "seen items are masked in one of the two rows and not in the other; compare rows of one protocol."
        )
    screen = Screen("compare")
    screen.say(
        f"{second.name} − {first.name}, {first.ranks.shape[1]:,} test cases, seen items {'' if first.masked else 'not '}masked"
    )
    for name, metric in METRICS.items():
        old, new = (metric(rows.ranks.astype(int), 10).mean(axis=0) for rows in (first, second))
        test = paired_test(new, old, config.seed, users=first.users)
        screen.say(
            f"{METRIC_NAMES[f'{name}@10']}: {new.mean():.4f} − {old.mean():.4f} = {test.difference:+.4f} (95 % interval "
            f"{test.low:+.4f} to {test.high:+.4f}), p {p_in_words(test.p, test.p)}"
        )
    screen.say("p: paired sign flips over users, of this one pair; correct it (Holm) where you compare several pairs")
    if config.write is not None:
        config.write.mkdir(parents=True, exist_ok=True)
        for rows in (first, second):
            path = config.write / f"{rows.name}{ENDING}"
            rows.save(path)
            screen.say(f"written: {path}")


if __name__ == "__main__":
    run_as_command(main)
