"""One trial of every kind of fault, on a run directory of a small catalogue: what is done, and what must hold after it."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.child import HUNG, Ended, run_child
from benchmarks.damages import damage_file
from benchmarks.foreign_files import READERS, write_foreign
from benchmarks.odd_settings import odd_flags, odd_yaml, settings_of_stages
from benchmarks.small_run import Kind, kinds, output_hashes
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, sha256, write_json
from sidrec.sft.checkpoints import SEAL

MOST_SECONDS = 60.0
PROCESS_STARTS = 5.0  # seconds until a process of its own is at work
PASSING = {"log.txt", "README.md", "checkpoints", ".hashes.json", ".locks"}  # of files and folders that are no result
STAGES = (*kinds(Path()), "bundle")  # each needs those before it
BEGUN = {"sft": 8, "rl": 4}  # trainings that are killed, and the step of the checkpoint then


@dataclass(frozen=True)
class SmallRun:
    """folder: raw/, files of others; run/, all stages and a bundle; again/, the same; other/, of another seed; begun-…/, half trained."""

    folder: Path

    @cached_property
    def commands(self) -> dict[str, Kind]:
        """What is run on damaged files: the stages, and what reads them. {} stands for the run directory."""
        sids = ("data", "embeddings", "sid")
        return kinds(self.folder / "raw") | {
            "bundle": Kind(["-m", "sidrec", "bundle", "--model", "sft"], (*sids, "sft"), ()),
            "recommend": Kind(["-m", "sidrec", "recommend", "--user", "u3", "--model", "sft"], (*sids, "sft"), ()),
            "compare": Kind(["-m", "sidrec", "compare", "--ranks", "{}:sft", "{}:item_knn"], ("evaluation",), ()),
            "recommend by bundle": Kind(
                ["-m", "sidrec", "recommend", "--bundle", "{}/bundle", "--history", "tea number 3"], ("bundle",), ()
            ),
        }

    def on(self, name: str, run_dir: Path) -> list[str]:
        """The command line of one of `commands`, but for `python`."""
        words = [word.replace("{}", str(run_dir)) for word in self.commands[name].command]
        return words if "{}" in " ".join(self.commands[name].command) else [*words, "--run_dir", str(run_dir)]

    @cached_property
    def printed(self) -> dict[str, str]:
        """What the commands that only print say of whole files."""
        return {
            name: run_child(self.on(name, self.folder / "run"), MOST_SECONDS).printed
            for name in ("recommend", "compare", "recommend by bundle")
        }

    @cached_property
    def seconds(self) -> dict[str, float]:
        return read_json(self.folder / "seconds.json")

    def make(self) -> None:
        """Write what is not there."""
        if (self.folder / "seconds.json").exists():
            return
        for name in ("raw", "run", "again", "other", "begun-sft", "begun-rl"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "raw").mkdir(parents=True)
        writing = multiprocessing.get_context("fork").Process(target=write_foreign, args=(self.folder / "raw",))
        writing.start()  # Polars' threads do not outlive a fork, so this process must not use them
        writing.join()
        seconds = {}
        for name in ("run", "again", "other"):
            (self.folder / name).mkdir()
            for stage in STAGES:
                start, seed = time.monotonic(), ["--seed", "5"] if name == "other" and stage != "bundle" else []
                self._run([*self.on(stage, self.folder / name), *seed])
                seconds[stage] = time.monotonic() - start
        for stage, step in BEGUN.items():
            self._begin(stage, f"checkpoint-{step}")
        write_json(self.folder / "seconds.json", seconds)

    def _run(self, command: list[str]) -> None:
        ended = run_child(command, 10 * MOST_SECONDS)
        if ended.code:
            raise InputError(f"{' '.join(command)} ended with code {ended.code}: {ended.printed[-500:]}")

    def _begin(self, stage: str, checkpoint: str) -> None:
        """A training that is killed when `checkpoint` has been sealed."""
        run_dir = self.folder / f"begun-{stage}"
        for name in self.commands[stage].reads:
            shutil.copytree(self.folder / "run" / name, run_dir / name)
        last = run_dir / stage / "checkpoints" / checkpoint / SEAL
        if run_child(self.on(stage, run_dir), 10 * MOST_SECONDS, until=last.exists).code != HUNG:
            raise InputError(f"{run_dir / stage} was finished before it could be killed.")


# ---- trials


@dataclass(frozen=True)
class Outcome:
    """about: what was done. ended: the last command. faults: tracebacks, silent, lost."""

    about: str
    ended: Ended
    faults: list[str]

    @classmethod
    def of(cls, about: str, ended: Ended, silent: bool, lost: list[str]) -> Outcome:
        faults = {"tracebacks": ended.is_traceback, "silent": ended.code == 0 and silent, "lost": bool(lost)}
        return cls(" ".join([about, *lost]), ended, [name for name, is_so in faults.items() if is_so])


def artefact(rng: np.random.Generator, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """A file of the project's own is damaged, and a stage runs that reads or wrote it; or a half-done training goes on."""
    run_dir = folder / "run"
    name = str(rng.choice([*small.commands, *BEGUN]))
    begun = name in BEGUN and rng.random() < 0.6
    shutil.copytree(small.folder / (f"begun-{name}" if begun else "run"), run_dir)
    folders = [run_dir / part for part in (*small.commands[name].reads, name)]
    if begun:
        folders = [run_dir / name]
    files = sorted(file for part in folders if part.exists() for file in part.rglob("*") if file.is_file())
    file = files[rng.integers(len(files))]
    place = file.relative_to(run_dir)
    others = [
        *(small.folder / run / place for run in ("run", "other", "begun-sft")),
        *(f for f in files if f.suffix == file.suffix and f != file),
    ]
    damage = damage_file(rng, file, [other for other in others if other.is_file()])
    before = state_of(run_dir)
    ended = run_child(small.on(name, run_dir), MOST_SECONDS, as_process)
    own_folder = name if ended.code != 2 else None
    about = f"{name}{' goes on' if begun else ''}: {place} {damage};"
    return Outcome.of(
        about, ended, differs(small, name, run_dir, ended), changed(before, state_of(run_dir), own_folder)
    )


def setting(rng: np.random.Generator, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """Settings have odd values, by flags or by YAML; half of the time in a run that is finished."""
    run_dir, stages = folder / "run", settings_of_stages()
    drawn = str(rng.choice(list(stages)))
    name, _, quantizer = drawn.partition(" ")
    run_dir.mkdir()
    for part in (*small.commands[name].reads, *([name] if rng.random() < 0.5 else [])):
        if (small.folder / "run" / part).exists():
            shutil.copytree(small.folder / "run" / part, run_dir / part)
    if rng.random() < 0.5:
        odd = odd_flags(rng, stages[drawn])
        command = [*small.on(name, run_dir), *odd]
    else:
        odd = odd_yaml(rng, stages[drawn], folder / "odd.yaml")
        named = (folder / "odd.yaml").read_text(encoding="utf-8")
        command = [*without(small.on(name, run_dir), named), *odd]
        odd = [named.replace("\n", "; ")]
    command += ["--quantizer", quantizer] if quantizer else []
    before = state_of(run_dir)
    ended = run_child(command, MOST_SECONDS, as_process)
    lost = changed(before, state_of(run_dir), name if ended.code != 2 else None)
    return Outcome.of(f"{drawn}: {' '.join(odd)}", ended, False, lost)


def without(command: list[str], named: str) -> list[str]:
    """The command without the flags that a YAML file's text names."""
    words, skipping = [], False
    for word in command:
        if word.startswith("--"):
            skipping = f"{word[2:]}:" in named
        if not skipping:
            words.append(word)
    return words


def byte_string(rng: np.random.Generator, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """A file of somebody else's is damaged, and read."""
    run_dir, raw = folder / "run", folder / "raw"
    reader = READERS[rng.integers(len(READERS))]
    shutil.copytree(small.folder / "raw", raw)
    run_dir.mkdir()
    for part in reader.starts_from:
        shutil.copytree(small.folder / "run" / part, run_dir / part)
    file = raw / reader.files[rng.integers(len(reader.files))]
    damage = damage_file(rng, file, [raw / name for one in READERS for name in one.files])
    before = state_of(run_dir)
    ended = run_child(reader.on(raw, run_dir), MOST_SECONDS, as_process)
    return Outcome.of(f"{reader.name}: {file.name} {damage};", ended, False, changed(before, state_of(run_dir), None))


def kill(rng: np.random.Generator, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """A stage is killed at some moment, and run again."""
    run_dir = folder / "run"
    name = str(rng.choice(STAGES))
    run_dir.mkdir()
    for part in STAGES[: STAGES.index(name)]:
        shutil.copytree(small.folder / "run" / part, run_dir / part)
    before, command = state_of(run_dir), small.on(name, run_dir)
    after = rng.random() * small.seconds[name] + (PROCESS_STARTS * as_process)
    run_child(command, after, as_process)
    ended = run_child(command, MOST_SECONDS, as_process)
    lost = changed(before, state_of(run_dir), name)
    return Outcome.of(f"{name} killed after {after:.2f} s;", ended, differs(small, name, run_dir, ended), lost)


def state_of(run_dir: Path) -> dict[str, str]:
    """The hash of every file that is a result, by its place in the run directory."""
    files = [
        file for file in run_dir.rglob("*") if file.is_file() and not PASSING & set(file.relative_to(run_dir).parts)
    ]
    return {str(file.relative_to(run_dir)): sha256(file) for file in files}


def changed(before: dict[str, str], after: dict[str, str], own_folder: str | None) -> list[str]:
    """Files that are not as they were, but for those of the stage that ran."""
    return [name for name, digest in before.items() if after.get(name) != digest and name.split("/")[0] != own_folder]


def differs(small: SmallRun, name: str, run_dir: Path, ended: Ended) -> bool:
    """Whether a command's result is another one than that of whole files; of files that are alike in two runs."""
    if name in small.printed:
        return ended.printed != small.printed[name].replace(str(small.folder / "run"), str(run_dir))
    if ended.code != 0:
        return False
    got, whole, again = (
        output_hashes(place / name) for place in (run_dir, small.folder / "run", small.folder / "again")
    )
    return any(got.get(file) != digest for file, digest in whole.items() if again.get(file) == digest)


TRIALS: dict[str, Callable[[np.random.Generator, SmallRun, Path, bool], Outcome]] = {
    "artefacts": artefact,
    "settings": setting,
    "byte_strings": byte_string,
    "kills": kill,
}
