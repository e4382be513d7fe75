"""Places where no answer can be written, or none should be: a folder, a device, another's file, a disk that is full or not one's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.child import Limits

LONGEST = 255  # bytes of a name
OPEN_FILES = 24, 60  # Python itself and what has been imported need the first so many
LEAST_BYTES = 2000  # with which a sentence can still be printed


@dataclass(frozen=True)
class Place:
    """said: what was done. path: where the answer goes. limits: of the process."""

    said: str
    path: Path
    limits: Limits | None = None


def odd_place(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    """Of a command that would write `path`. reads: files that it reads."""
    return PLACES[rng.integers(len(PLACES))](rng, path, run_dir, reads)


def a_folder(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    path.mkdir()
    return Place("a folder is there", path)


def below_a_file(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    (path.parent / "file").write_text("theirs", encoding="utf-8")
    return Place("below a file", path.parent / "file" / path.name)


def no_folder(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    return Place("in a folder that is not there", path.parent / "nowhere" / path.name)


def too_long(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    length = int(rng.choice([LONGEST - 3, LONGEST, LONGEST + 1, 5000]))
    return Place(f"a name of {length} characters", path.with_name("x" * (length - len(path.suffix)) + path.suffix))


def a_device(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    device = str(rng.choice(["/dev/null", "/dev/full", "/dev/stdout"]))
    path.symlink_to(device)
    return Place(f"a link to {device}", path)


def a_loop(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    path.symlink_to(path.name)
    return Place("a link to itself", path)


def of_a_stage(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    """A link with the right ending to a file that a stage has written."""
    files = [file for file in run_dir.rglob("*") if file.is_file() and (file.parent / "manifest.json").is_file()]
    file = files[rng.integers(len(files))]
    fits = [file for file in files if file.suffix == path.suffix]
    if fits and rng.random() < 0.7:
        file = fits[rng.integers(len(fits))]
        return Place(f"in the place of {file.relative_to(run_dir)}", file)
    path.symlink_to(file)
    return Place(f"a link to {file.relative_to(run_dir)}", path)


def an_input(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    """Where no input has the ending, a link to one."""
    file = reads[rng.integers(len(reads))]
    if file.suffix == path.suffix:
        return Place(f"in the place of {file.name}", file)
    path.symlink_to(file)
    return Place(f"a link to {file.name}", path)


def other_ending(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    ending = str(rng.choice(["", ".xlsx", ".csv.gz", ".PARQUET", ".json", ".jsonl.tmp"]))
    return Place(f"with the ending {ending!r}", path.with_suffix(ending))


def there_already(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    path.write_text("an older answer", encoding="utf-8")
    return Place("an older answer is there", path)


def small_files(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    most = int(rng.integers(LEAST_BYTES, 4 * LEAST_BYTES))
    return Place(f"files may have {most} bytes", path, Limits(file_bytes=most))


def of_root(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    for folder in (run_dir.parent, run_dir, *(part for part in run_dir.rglob("*") if part.is_dir())):
        folder.chmod(0o755)
    return Place("of another user", path, Limits(is_stranger=True))


def few_open_files(rng: np.random.Generator, path: Path, run_dir: Path, reads: list[Path]) -> Place:
    most = int(rng.integers(*OPEN_FILES))
    return Place(f"{most} files may be open", path, Limits(open_files=most))


def odd_target(rng: np.random.Generator, folder: Path, run_dir: Path) -> Place:
    """Of a command that changes a folder of a run, or makes it."""
    kind = rng.integers(6)
    if kind == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.write_text("theirs", encoding="utf-8")
        return Place(f"{folder.name} is a file", folder)
    if kind == 1:
        locks = [folder.parent / ".locks", run_dir / ".locks"][rng.integers(2)]
        shutil.rmtree(locks, ignore_errors=True)
        locks.write_text("theirs", encoding="utf-8")
        return Place("the folder of locks is a file", folder)
    if kind == 2:
        folder.mkdir(exist_ok=True)
        names = [path.name for path in folder.iterdir()] or ["0001", "onnx", "latest", "versions.json"]
        path = folder / names[rng.integers(len(names))]
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (path / "theirs").mkdir(parents=True)
        return Place(f"{path.name} is another folder", folder)
    return (small_files, of_root, few_open_files)[kind - 3](rng, folder, run_dir, [])


PLACES: tuple[Callable[[np.random.Generator, Path, Path, list[Path]], Place], ...] = (
    *(a_folder, below_a_file, no_folder, too_long, a_device, a_loop, of_a_stage, an_input, other_ending),
    *(there_already, small_files, of_root, few_open_files),
)
