"""From raw data to a trained recommender, its Recall@K and recommendations: every stage, one after the other (run_quickstart.sh).

A flag goes to every stage that has it; `--sft.learning_rate 0.001` goes to one stage only.
"""

from __future__ import annotations

import difflib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sidrec.data.settings import PrepareConfig
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import PACKAGED, peek, settings_of
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import recorded_settings
from sidrec.rl import settings as rl
from sidrec.sft import settings as sft
from sidrec.tokenizer.config import DEFAULT_QUANTIZER, TokenizerConfig
from sidrec.tokenizer.quantizers import QUANTIZERS


class QuickStage(NamedTuple):
    """modules: run one after the other. title: what is said before they run."""

    modules: tuple[str, ...]
    title: str


STAGES = {
    "data": QuickStage(("sidrec.data.prepare",), "read, filter, split"),
    "tokenizer": QuickStage(
        ("sidrec.tokenizer.embed", "sidrec.tokenizer.quantize"), "item vectors, then a semantic ID for every item"
    ),
    "sft": QuickStage(("sidrec.sft.train",), "a language model learns to write the next item's semantic ID"),
    "rl": QuickStage(("sidrec.rl.grpo",), "GRPO with recall rewards"),
    "evaluation": QuickStage(("sidrec.evaluation.evaluate",), "Recall@K beside baselines"),
}
DEFAULT_CONFIG = "default"  # of a stage that has no settings for each data set


@dataclass
class Request:
    """What the command line asks for. flags: those of each stage, as words."""

    dataset: str = "demo"
    run_dir: Path | None = None
    flags: dict[str, list[str]] = field(default_factory=lambda: {stage: [] for stage in STAGES})


def main(arguments: Sequence[str] | None = None) -> None:
    request = read_request(list(sys.argv[1:] if arguments is None else arguments))
    run_dir = str(request.run_dir or Path("outputs") / request.dataset)
    for number, (name, stage) in enumerate(STAGES.items(), 1):
        say(f"── {number}/{len(STAGES) + 1} {name}: {stage.title}")
        for module in stage.modules:
            run(module, *settings_flags(name, request, Path(run_dir)), "--run_dir", run_dir, *request.flags[name])
    user = first_user(Path(run_dir))
    say(f"── {len(STAGES) + 1}/{len(STAGES) + 1} recommend: what would user {user} take next?")
    run("sidrec.serving.recommend", "--run_dir", run_dir, "--user", user)
    evaluation = Path(run_dir) / "evaluation"
    say(f"── done: the table, slices and examples, to open in a browser: {evaluation / 'report.html'}")
    said = next_command(evaluation)
    if said is not None:
        say(f"── {': '.join(said)}")


def read_request(words: list[str]) -> Request:
    """The data set, the run directory and every stage's flags. Raises InputError for a flag that no stage has."""
    request = Request()
    if words and not words[0].startswith("-"):
        request.dataset = words.pop(0)
    unknown = [stage for stage in ("data", "tokenizer", "sft", "rl") if not config_of(stage, request.dataset).is_file()]
    if unknown:
        known = sorted(path.stem for path in (PACKAGED / "rl").glob("*.yaml"))
        raise InputError(
            f"unknown data set {request.dataset} (no configs/{unknown[0]}/{request.dataset}.yaml); known are {', '.join(known)}."
        )
    known_flags: dict[str, set[str]] = {}
    for flag, values in groups(words):
        if flag == "run_dir":
            request.run_dir = Path(*values)
            continue
        stage, _, name = flag.rpartition(".")
        known_flags = known_flags or {each: setting_names(each, words, request.dataset) for each in STAGES}
        takers = [each for each, names in known_flags.items() if name in names and stage in ("", each)]
        if not takers:
            every_name = sorted(set().union(*known_flags.values()))
            near = difflib.get_close_matches(name, every_name, n=1)
            hint = f"; the nearest one is --{near[0]}" if near else ""
            raise InputError(f"unknown argument --{flag}: no stage has it{hint}; see bash run_quickstart.sh --help.")
        for taker in takers:
            request.flags[taker] += [f"--{name}", *values]
    return request


def groups(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Flags, each with the words behind it. Raises InputError for a word that belongs to no flag, and a path that is missing."""
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.removeprefix("--").partition("=")
            flags.append((flag.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            raise InputError(f"unknown argument {word}; see bash run_quickstart.sh --help.")
    for flag, values in flags:
        if flag in ("run_dir", "raw_dir", "interactions", "items") and len(values) != 1:
            raise InputError(f"--{flag} needs a path after it.")
    return flags


def setting_names(stage: str, words: Sequence[str], dataset: str) -> set[str]:
    """The names of a stage's settings; the tokenizer's are those of the quantizer that `words` or its configuration name."""
    kinds: dict[str, tuple[type, ...]] = {
        "data": (PrepareConfig,),
        "tokenizer": (TokenizerConfig,),
        "sft": sft.CONFIGS,
        "rl": rl.CONFIGS,
        "evaluation": (EvaluateConfig,),
    }
    names = {setting.name for kind in kinds[stage] for setting in settings_of(kind)}
    if stage == "tokenizer":
        config = ["--config", str(config_of(stage, dataset))]
        quantizer = peek("quantizer", [*config, *words], run_dir=Path()) or DEFAULT_QUANTIZER
        if quantizer in QUANTIZERS:
            names |= {setting.name for setting in settings_of(QUANTIZERS[quantizer])}
    return names


def config_of(stage: str, dataset: str) -> Path:
    """The packaged settings of a stage for a data set."""
    file = PACKAGED / stage / f"{dataset}.yaml"
    return PACKAGED / stage / f"{DEFAULT_CONFIG}.yaml" if stage == "evaluation" and not file.exists() else file


def settings_flags(stage: str, request: Request, run_dir: Path) -> list[str]:
    """`--config` with the packaged settings; nothing for an evaluation that is there, so that what `sidrec evaluate` was asked for counts."""
    config = ["--config", str(config_of(stage, request.dataset))]
    if stage != "evaluation" or "--overwrite" in request.flags[stage]:
        return config
    try:
        return config if recorded_settings(run_dir, stage, overwrite=False) is None else []
    except InputError:  # damaged, and so made again
        return config


def first_user(run_dir: Path) -> str:
    import polars as pl

    return str(
        pl.scan_parquet(run_dir / "data" / "interactions.parquet", glob=False)
        .select("user_id")
        .first()
        .collect()
        .item()
    )


def next_command(evaluation: Path) -> tuple[str, str] | None:
    from sidrec.evaluation.bundle_command import bundle_command  # with torch, for which --help does not wait

    return bundle_command(evaluation)


def run(module: str, *flags: str) -> None:
    """Run a stage in a process of its own; one that fails ends the quickstart with its exit code."""
    done = subprocess.run([sys.executable, "-m", module, *flags], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_as_command(main)
