"""What a bundle says of itself in bundle.json: its format, its model, and what vectors of new items are made with.

format_version  of bundle.json and of which files there are
model, weight   the model's name, and of a blend its memory's weight
sources         of the items' vectors, in order; null where the semantic IDs are not made of vectors
text_columns    what items' texts are made of, title first; null where an earlier version prepared the data
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json
from sidrec.pipeline.hashes import FileHashes
from sidrec.pipeline.stage import read_manifest, require_whole

FORMAT_VERSION = 2  # 1 had no training counts and no encoders
ABOUT, ITEMS = "bundle.json", "items.parquet"
BUNDLE_AGAIN = "sidrec bundle --run_dir RUN"
AGAIN = f"run `{BUNDLE_AGAIN} --overwrite true` to make it again"


def read_about(folder: Path) -> dict[str, Any]:
    """What bundle.json says. Raises InputError where it is no bundle, an older one, or a file of it has changed."""
    _refuse_a_run(folder)
    require_whole(folder, "bundle", BUNDLE_AGAIN)
    about = read_json(folder / ABOUT)
    version = about.get("format_version", 1) if isinstance(about, dict) else None
    if version != FORMAT_VERSION:
        cure = "install the newer sidrec" if isinstance(version, int) and version > FORMAT_VERSION else AGAIN
        raise InputError(f"{folder / ABOUT} has format {version}, this version reads {FORMAT_VERSION}; {cure}.")
    odd = next((name for name, fits in SHAPE.items() if name not in about or not fits(about[name])), None)
    if odd is not None:
        raise InputError(f"{folder / ABOUT} has {odd} = {str(about.get(odd))[:60]}, which no bundle has; {AGAIN}.")
    return about


def _is_texts(value: Any) -> bool:
    """Whether it is a list of texts, or null."""
    return value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _is_weight(value: Any) -> bool:
    """Whether it is a number of at least 0, or null."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf)


SHAPE: dict[str, Callable[[Any], bool]] = {  # of bundle.json
    "model": lambda name: isinstance(name, str),
    "weight": _is_weight,
    "sources": _is_texts,
    "text_columns": _is_texts,
}


def content_of(folder: Path) -> str:
    """sha256 of what a bundle's files hold, by its manifest: the same for copies. Versions of the catalogue that were made later are not in
    it. Raises InputError where there is no manifest, or it was changed."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} holds no bundle; check the path, or run `{BUNDLE_AGAIN}`.")
    return FileHashes.of_lines(f"{name} {made['sha256']}" for name, made in manifest["outputs"].items())


def _refuse_a_run(folder: Path) -> None:
    """Raise InputError, naming the bundle that it has, where a folder is a run directory."""
    if (folder / ABOUT).is_file() or not (folder / "data").is_dir():
        return
    bundle = folder / "bundle"
    cure = (
        f"name its bundle, {bundle}"
        if (bundle / ABOUT).is_file()
        else f"run `sidrec bundle --run_dir {folder}`, and name {bundle}"
    )
    raise InputError(f"{folder} is a run directory, and no bundle; {cure}.")


def copy_encoders(run_dir: Path, folder: Path) -> dict[str, Any]:
    """Copy what makes vectors of new items, where the run has it, and return what bundle.json says of it.

    sources: of the items' vectors, in order; None where the semantic IDs are not made of vectors. text_columns: what texts are made of.
    """
    for file in encoder_files(run_dir):
        shutil.copyfile(file, folder / file.name)
    fingerprint = (read_manifest(run_dir / "sid") or {"fingerprint": {}})["fingerprint"]
    text = read_json(run_dir / "data" / "dataset.json").get("text")
    return {"sources": fingerprint.get("sources"), "text_columns": None if text is None else text["columns"]}


def encoder_files(run_dir: Path) -> list[Path]:
    """The encoders' files of a run; none where it has no vectors of its own, or an earlier version made them.

    Raises InputError where a file of the run's embeddings has changed.
    """
    from sidrec.tokenizer.embeddings.encoders import ENCODER_FILES  # with scikit-learn, which recommending does without

    files = [run_dir / "embeddings" / name for name in ENCODER_FILES]
    if not all(file.is_file() for file in files):
        return []
    require_whole(run_dir / "embeddings", "embeddings", f"sidrec tokenize --run_dir {run_dir}")
    return files
