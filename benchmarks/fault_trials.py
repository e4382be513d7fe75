"""One trial of every kind of fault, on a run directory of a small catalogue: what is done, and what must hold after it."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.answering_commands import ANSWERING, Served
from benchmarks.child import HUNG, Ended, Limits, run_child
from benchmarks.damages import damage_file
from benchmarks.foreign_files import READERS, write_foreign
from benchmarks.odd_settings import odd_flags, odd_yaml, settings_of_commands
from benchmarks.output_places import odd_place, odd_target
from benchmarks.small_run import Kind, kinds, output_hashes, write_language_model
from benchmarks.store_damages import ODD_STORES, damage_store
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
    """folder: raw/, files of others; run/, all stages, a bundle and a store; again/, the same; other/, of another seed; rq_run/, of an
    RQ-Transformer; asked/, of a language model; begun-…/, half trained."""

    folder: Path
    _answers: dict[str, str] = field(default_factory=dict)

    @cached_property
    def stages(self) -> dict[str, Kind]:
        """The stages, and the bundle, in their order."""
        bundle = Kind(["-m", "sidrec", "bundle", "--model", "sft"], ("data", "embeddings", "sid", "sft"), ())
        return kinds(self.folder / "raw") | {"bundle": bundle}

    def reads(self, name: str) -> tuple[str, ...]:
        """The folders of the run directory that a command reads."""
        return (self.stages[name] if name in self.stages else ANSWERING[name]).reads

    def run_of(self, name: str) -> str:
        """Of which run a command's run directory is a copy."""
        return ANSWERING[name].run if name in ANSWERING else "run"

    def on(self, name: str, run_dir: Path) -> list[str]:
        """A command line, but for `python`."""
        if name in ANSWERING:
            return ANSWERING[name].command(run_dir, self.folder / "raw")
        return [*self.stages[name].command, "--run_dir", str(run_dir)]

    def copied(self, name: str, run_dir: Path) -> None:
        """Copy what a command reads into a run directory."""
        for part in self.reads(name):
            shutil.copytree(self.folder / self.run_of(name) / part, run_dir / part)
        if "served" in (ANSWERING[name].writes if name in ANSWERING else ()):
            (run_dir / "served").mkdir()

    def whole_answer(self, name: str) -> str:
        """What a command that is no stage answers on whole files, worked out once in each process; {} stands for the run directory."""
        if name not in self._answers:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                run_dir = Path(folder) / "run"
                self.copied(name, run_dir)
                ended = tried(name, self.on(name, run_dir), False)
                if ended.code:
                    raise InputError(f"{name} refuses whole files: {ended.printed[-500:]}")
                self._answers[name] = answer_of(name, run_dir, ended)
        return self._answers[name]

    @cached_property
    def seconds(self) -> dict[str, float]:
        return read_json(self.folder / "seconds.json")

    def make(self) -> None:
        """Write what is not there."""
        if (self.folder / "seconds.json").exists():
            return
        for name in ("raw", "run", "again", "other", "rq_run", "asked", "begun-sft", "begun-rl"):
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
        for name in ("run", "other"):
            self._run(["-m", "sidrec", "remove-items", "i9", "--bundle", str(self.folder / name / "bundle")])
            (self.folder / name / "store").mkdir()
            shutil.copyfile(self.folder / "raw" / "store.db", self.folder / name / "store" / "store.db")
        write_language_model(self.folder / "raw" / "words")
        language = ["--model_name_or_path", str(self.folder / "raw" / "words"), "--question_to_item", "1"]
        for name, flags in (("rq_run", ["--architecture", "rq_transformer"]), ("asked", language)):
            self.copied("sft", self.folder / name)
            self._run([*self.on("sft", self.folder / name), *flags])
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
        self.copied(stage, run_dir)
        last = run_dir / stage / "checkpoints" / checkpoint / SEAL
        if run_child(self.on(stage, run_dir), 10 * MOST_SECONDS, until=lambda _: last.exists()).code != HUNG:
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


def tried(name: str, command: list[str], as_process: bool, limits: Limits | None = None) -> Ended:
    """How a command ends; `serve` with what it answers, after which it is killed."""
    if not name.startswith("serve"):
        return run_child(command, MOST_SECONDS, as_process, limits=limits)
    served = Served()
    ended = run_child(command, MOST_SECONDS, as_process, served, limits)
    return Ended(0, served.answer) if served.answer else ended


def artefact(rng: np.random.Generator, name: str, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """A file of the project's own is damaged, and a command runs that reads or wrote it; or a half-done training goes on."""
    run_dir = folder / "run"
    begun = name in BEGUN and rng.random() < 0.6
    whole_run = f"begun-{name}" if begun else small.run_of(name)
    shutil.copytree(small.folder / whole_run, run_dir)
    (run_dir / "served").mkdir()
    folders = [run_dir / part for part in (*small.reads(name), name) if part != "store"]
    if begun:
        folders = [run_dir / name]
    files = sorted(file for part in folders if part.exists() for file in part.rglob("*") if file.is_file())
    file = files[rng.integers(len(files))]
    place = file.relative_to(run_dir)
    others = [
        *(small.folder / run / place for run in ("run", "other", "rq_run", "asked", "begun-sft")),
        *(f for f in files if f.suffix == file.suffix and f != file),
    ]
    damage = damage_file(rng, file, [other for other in others if other.is_file()])
    before = state_of(run_dir)
    ended = tried(name, small.on(name, run_dir), as_process)
    about = f"{name}{' goes on' if begun else ''}: {place} {damage};"
    lost = changed(before, state_of(run_dir), its_own(name, ended))
    return Outcome.of(about, ended, differs(small, name, run_dir, ended), lost)


def setting(rng: np.random.Generator, drawn: str, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """Settings have odd values, by flags or by YAML; half of the time in a run that is finished. drawn: a command, and of `sid` the
    quantizer behind it."""
    run_dir, stages = folder / "run", settings_of_commands()
    name, _, quantizer = drawn.partition(" ") if drawn.startswith("sid ") else (drawn, "", "")
    run_dir.mkdir()
    small.copied(name, run_dir)
    if name in small.stages and rng.random() < 0.5:
        shutil.copytree(small.folder / "run" / name, run_dir / name)
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
    ended = tried(name, command, as_process)
    lost = changed(before, state_of(run_dir), its_own(name, ended))
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


def byte_string(rng: np.random.Generator, name: str, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """A file of somebody else's is damaged, and read. name: of one of READERS."""
    run_dir, raw = folder / "run", folder / "raw"
    reader = next(reader for reader in READERS if reader.name == name)
    shutil.copytree(small.folder / "raw", raw)
    run_dir.mkdir()
    for part in reader.starts_from:
        shutil.copytree(small.folder / "run" / part, run_dir / part)
    file = raw / reader.files[rng.integers(len(reader.files))]
    damage = damage_file(rng, file, [raw / name for one in READERS for name in one.files])
    before = state_of(run_dir)
    ended = tried(reader.name, reader.on(raw, run_dir), as_process)
    lost = changed(before, state_of(run_dir), reader.writes if ended.code != 2 else ())
    return Outcome.of(f"{reader.name}: {file.name} {damage};", ended, False, lost)


def damaged_store(rng: np.random.Generator, name: str, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """The service's store is what something else made of it, or no store at all."""
    run_dir = folder / "run"
    run_dir.mkdir()
    small.copied(name, run_dir)
    command = small.on(name, run_dir)
    (run_dir / "store").mkdir(exist_ok=True)
    file = run_dir / "store" / "store.db"
    shutil.copyfile(small.folder / "raw" / "store.db", file)
    at = command.index("--store") + 1
    if rng.random() < 0.25:
        damage = command[at] = ODD_STORES[rng.integers(len(ODD_STORES))].replace("{}", str(run_dir))
    else:
        damage, command[at] = damage_store(rng, file), str(file)
    before = state_of(run_dir)
    ended = tried(name, command, as_process)
    writes = (*its_own(name, ended), *(["store"] if name == "serve" and ended.code != 2 else []))
    return Outcome.of(f"{name}: {damage};", ended, False, changed(before, state_of(run_dir), writes))


def output(rng: np.random.Generator, name: str, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """The answer, or a changed folder, is to go where it cannot or should not."""
    run_dir = folder / "run"
    run_dir.mkdir()
    small.copied(name, run_dir)
    command = small.on(name, run_dir)
    raw = folder / "raw"
    shutil.copytree(small.folder / "raw", raw)
    command = [word.replace(str(small.folder / "raw"), str(raw)) for word in command]
    if "--output" in command:
        reads = [Path(word) for word in command if Path(word).is_file()] or [run_dir / "data" / "items.parquet"]
        at = command.index("--output") + 1
        odd = odd_place(rng, Path(command[at]), run_dir, reads)
        command[at] = str(odd.path)
    else:
        odd = odd_target(rng, run_dir / ANSWERING[name].writes[0], run_dir)
    before, theirs = state_of(run_dir), state_of(raw)
    ended = tried(name, command, as_process, odd.limits)
    lost = changed(before, state_of(run_dir), its_own(name, ended)) + changed(theirs, state_of(raw), ())
    return Outcome.of(f"{name}: {odd.said};", ended, False, lost)


def kill(rng: np.random.Generator, name: str, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
    """A stage is killed at some moment, and run again."""
    run_dir = folder / "run"
    run_dir.mkdir()
    for part in STAGES[: STAGES.index(name)]:
        shutil.copytree(small.folder / "run" / part, run_dir / part)
    before, command = state_of(run_dir), small.on(name, run_dir)
    after = rng.random() * small.seconds[name] + (PROCESS_STARTS * as_process)
    run_child(command, after, as_process)
    ended = run_child(command, MOST_SECONDS, as_process)
    lost = changed(before, state_of(run_dir), (name,))
    return Outcome.of(f"{name} killed after {after:.2f} s;", ended, differs(small, name, run_dir, ended), lost)


def state_of(run_dir: Path) -> dict[str, str]:
    """The hash of every file that is a result, by its place in the run directory."""
    files = [
        file for file in run_dir.rglob("*") if file.is_file() and not PASSING & set(file.relative_to(run_dir).parts)
    ]
    return {str(file.relative_to(run_dir)): sha256(file) for file in files}


def its_own(name: str, ended: Ended) -> tuple[str, ...]:
    """Files and folders of the run directory that a command changes; none where it refused."""
    if ended.code == 2:
        return ()
    return (*ANSWERING[name].writes, *ANSWERING[name].answers) if name in ANSWERING else (name,)


def changed(before: dict[str, str], after: dict[str, str], writes: tuple[str, ...]) -> list[str]:
    """Files that are not as they were, but for those that the command changes, and below them."""
    return [
        name
        for name, digest in before.items()
        if after.get(name) != digest and not any(name == part or name.startswith(f"{part}/") for part in writes)
    ]


def answer_of(name: str, run_dir: Path, ended: Ended) -> str:
    """Of a command that is no stage: the hashes of its files, or what it printed; {} stands for the run directory."""
    files = [run_dir / file for file in ANSWERING[name].answers]
    if files:
        contents = [file.read_bytes() if file.is_file() else b"" for file in files]
        return " ".join(hashlib.sha256(each.replace(str(run_dir).encode(), b"{}")).hexdigest() for each in contents)
    return ended.printed.replace(str(run_dir), "{}")


def differs(small: SmallRun, name: str, run_dir: Path, ended: Ended) -> bool:
    """Whether a command's result is another one than that of whole files; of files that are alike in two runs."""
    if ended.code != 0:
        return False
    if name in ANSWERING:
        return answer_of(name, run_dir, ended) != small.whole_answer(name)
    got, whole, again = (
        output_hashes(place / name) for place in (run_dir, small.folder / "run", small.folder / "again")
    )
    return any(got.get(file) != digest for file, digest in whole.items() if again.get(file) == digest)


Trial = Callable[[np.random.Generator, str, SmallRun, Path, bool], Outcome]
TRIALS: dict[str, tuple[Trial, tuple[str, ...]]] = {  # by kind, and of what each of them is
    "artefacts": (artefact, (*STAGES, *(name for name, each in ANSWERING.items() if each.reads != ("store",)), *BEGUN)),
    "settings": (setting, tuple(settings_of_commands())),
    "byte_strings": (byte_string, tuple(reader.name for reader in READERS)),
    "stores": (damaged_store, tuple(name for name, each in ANSWERING.items() if "--store" in each.line)),
    "outputs": (output, tuple(name for name, each in ANSWERING.items() if "--output" in each.line or each.writes)),
    "kills": (kill, STAGES),
}
