"""The versions of a bundle's catalogue: each a folder of its own that is never changed, and one small file that says which is current.

    BUNDLE/                            version 1: items.parquet and semantic_ids/, with the model
    BUNDLE/catalogue/0002/             items.parquet, semantic_ids/ and a manifest
    BUNDLE/catalogue/versions.json     every version's number, time and counts, and the current one's number

A version is there when `versions.json` names it, which is replaced in one step: a writer that is killed before leaves a folder that nobody
reads, and the next one replaces. Readers hold the folder that was current when they began. The model is shared, since it has a token for
every code and, for nodes of the trie that it has not seen, the rows of their codes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.trie import SidTrie
from sidrec.decoding.trie_file import SIDS_FOLDER, TRIE_FILE, open_trie, save_trie
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json
from sidrec.pipeline.hashes import FileHashes
from sidrec.pipeline.lock import only_one
from sidrec.pipeline.stage import Stage, changed_output, digest_of, read_manifest, write_manifest
from sidrec.serving.about import BUNDLE_AGAIN, ITEMS
from sidrec.tokenizer.semantic_ids import SemanticIds

FOLDER, RECORD = "catalogue", "versions.json"
FORMAT_VERSION = 1
FIRST = 1  # the number of the version that the bundle was made with


@dataclass(frozen=True)
class Version:
    """after: the number of the version that it was made from, 0 of none. time: ISO, UTC; empty where it is not known. items: how many the
    catalogue holds; added, removed, changed: of them, against the version before."""

    number: int
    after: int
    time: str
    added: int
    removed: int
    changed: int
    items: int


@dataclass(frozen=True)
class Catalogue:
    """items: as `items.parquet` of the data, row i of item i, and sids: of all items that are there or were. is_held: bool [N], which
    are."""

    items: pl.DataFrame
    sids: SemanticIds
    is_held: np.ndarray

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Every item_id's row."""
        return {name: row for row, name in enumerate(self.items["item_id"])}

    @classmethod
    def read(cls, folder: Path) -> Catalogue:
        items = pl.read_parquet(folder / ITEMS, glob=False)
        trie, sids = open_trie(folder / SIDS_FOLDER / TRIE_FILE), SemanticIds.read(folder / SIDS_FOLDER)
        assert len(items) == sids.n_items == trie.n_slots, f"{len(items)} items, {sids.n_items} SIDs in {folder}"
        return cls(items, sids, (trie.leaf_of_item(torch.arange(trie.n_slots)) >= 0).numpy())

    def save(self, folder: Path) -> None:
        """Write the files of a version, the trie of the items that are there among them."""
        with atomic_path(folder / ITEMS) as temporary:
            self.items.write_parquet(temporary)
        self.sids.save(folder / SIDS_FOLDER)
        held = torch.from_numpy(self.is_held.nonzero()[0])
        codes = torch.from_numpy(self.sids.codes)[held]
        save_trie(SidTrie(codes, self.sids.level_sizes, held, self.sids.n_items), folder / SIDS_FOLDER / TRIE_FILE)


def live_catalogue(folder: Path, sids: SemanticIds, device: torch.device) -> LiveCatalogue:
    """A version's catalogue as a recommender takes it: removed items are not recommended, and may stand in histories. sids: of it."""
    return LiveCatalogue(open_trie(folder / SIDS_FOLDER / TRIE_FILE).to(device), torch.from_numpy(sids.codes))


def versions(bundle: Path, of_other_codes: bool = False) -> tuple[list[Version], int]:
    """Every version, and the current one's number. Raises InputError where what says so is damaged, of another format or, unless
    of_other_codes, of other semantic IDs than the bundle's."""
    path = bundle / FOLDER / RECORD
    if not path.exists():
        n_items = pl.scan_parquet(bundle / ITEMS, glob=False).select(pl.len()).collect().item()
        return [Version(FIRST, 0, "", n_items, 0, 0, n_items)], FIRST
    record, back = read_json(path), f"put back a copy, or delete it to go back to version {FIRST}"
    if not isinstance(record, dict) or record.get("sha256") != digest_of(record):
        raise InputError(f"{path} is not as it was written; {back}.")
    if record.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format {record.get('format_version')}, this version reads {FORMAT_VERSION}; {BUNDLE_AGAIN}."
        )
    if not of_other_codes and record.get("codes", _codes_hash(bundle)) != _codes_hash(bundle):
        raise InputError(
            f"{path}: version {record['current']:04d} is of other semantic IDs than the bundle's model, which was made again since, or of "
            f"another bundle; go back with `sidrec catalogue --bundle {bundle} --rollback {FIRST}`."
        )
    return [Version(**made) for made in record["versions"]], record["current"]


def folder_of(bundle: Path, number: int) -> Path:
    """Where a version's files lie."""
    return bundle if number == FIRST else bundle / FOLDER / f"{number:04d}"


def current_folder(bundle: Path) -> Path:
    """The folder of the current version. Raises InputError when a file of it has changed, or it belongs to other semantic IDs."""
    number = versions(bundle)[1]
    _refuse_if_changed(bundle, number)
    return folder_of(bundle, number)


@contextmanager
def changing(bundle: Path) -> Iterator[Catalogue]:
    """Hold the lock of the bundle's writers; the current catalogue.

    bundle: whole. Raises InputError when another process holds the lock, or a file of the current version has changed.
    """
    with only_one(bundle / ".locks", FOLDER):
        yield Catalogue.read(current_folder(bundle))


def write_version(bundle: Path, catalogue: Catalogue, added: int = 0, removed: int = 0, changed: int = 0) -> Version:
    """Make `catalogue` the current version. To be called while `changing` is held."""
    before, current = versions(bundle)
    time = datetime.now(UTC).isoformat(timespec="seconds")
    made = Version(before[-1].number + 1, current, time, added, removed, changed, int(catalogue.is_held.sum()))
    folder = folder_of(bundle, made.number)
    stage = Stage(folder.parent, folder.name, {"sids": _digest(bundle)}, working=())
    with stage.building(overwrite=True) as building:  # over what a killed writer has left
        catalogue.save(building)
    _record(bundle, [*before, made], made.number)
    return made


def roll_back(bundle: Path, number: int) -> None:
    """Make a version current again. Raises InputError where there is none of that number, or a file of it has changed."""
    with only_one(bundle / ".locks", FOLDER):
        made, _ = versions(bundle, of_other_codes=True)
        if number not in [version.number for version in made]:
            raise InputError(
                f"{bundle} has no version {number} of its catalogue; `sidrec catalogue --bundle {bundle}` lists those that it has."
            )
        _refuse_if_changed(bundle, number)
        _record(bundle, made, number)


def prune(bundle: Path, newest: int) -> int:
    """Delete the versions but for the `newest` ones, the current one and the first, which is the bundle itself; how many were deleted.

    Their numbers are not given again. A process that is killed meanwhile leaves folders that nobody reads, for the next one to delete.
    """
    assert newest >= 1, f"the newest {newest} versions stay"
    with only_one(bundle / ".locks", FOLDER):
        made, current = versions(bundle)
        stay = [version for version in made if version.number in (FIRST, current)] + made[-newest:]
        if len(made) > 1:
            _record(bundle, [version for version in made if version in stay], current)
        numbers = {version.number for version in stay}
        for folder in (bundle / FOLDER).glob("[0-9]*"):
            ours = folder.name.isdecimal() and folder.is_dir() and int(folder.name) <= made[-1].number + 1
            if ours and int(folder.name) not in numbers:  # a folder of another name or number is somebody else's
                shutil.rmtree(folder)
        return len(made) - len(numbers)


def take_over(bundle: Path, source: Path) -> Version:
    """Give a bundle the versions of another bundle's catalogue, in place of its own; the current one.

    So items that were added, changed and removed since training stay so with a model that was trained further on the same semantic IDs.
    Raises InputError where the other bundle is of other items or semantic IDs, or its current version is not as it was written.
    """
    with only_one(source / ".locks", FOLDER), only_one(bundle / ".locks", FOLDER):
        current_folder(source)
        made, current = versions(source)
        ids = [pl.read_parquet(folder / ITEMS, columns=["item_id"], glob=False) for folder in (bundle, source)]
        if not ids[0].equals(ids[1]) or _digest(bundle) != _digest(source):
            raise InputError(
                f"{source} was made with other items or semantic IDs than {bundle}, so its catalogue is not taken over; give the items to "
                "`sidrec add-items` again."
            )
        if (source / FOLDER).is_dir():
            coming = bundle / f".{FOLDER}.coming"
            shutil.rmtree(coming, ignore_errors=True)  # of a process that was killed
            shutil.copytree(source / FOLDER, coming, ignore=shutil.ignore_patterns(".*"))
            shutil.rmtree(bundle / FOLDER, ignore_errors=True)
            coming.rename(bundle / FOLDER)
        return next(version for version in made if version.number == current)


def _record(bundle: Path, made: list[Version], current: int) -> None:
    content: dict[str, Any] = {"format_version": FORMAT_VERSION, "current": current, "codes": _codes_hash(bundle)}
    (bundle / FOLDER).mkdir(exist_ok=True)
    write_manifest(bundle / FOLDER / RECORD, content | {"versions": [asdict(version) for version in made]})


def _codes_hash(bundle: Path) -> str | None:
    """sha256 of the semantic IDs that the bundle was made with, as its manifest has it."""
    outputs = (read_manifest(bundle, BUNDLE_AGAIN) or {"outputs": {}})["outputs"]
    codes: str | None = outputs.get(f"{SIDS_FOLDER}/codes_all.npy", {}).get("sha256")
    return codes


def _digest(bundle: Path) -> str:
    return SemanticIds.read(bundle / SIDS_FOLDER).digest


def _refuse_if_changed(bundle: Path, number: int) -> None:
    if number == FIRST:
        return  # the bundle's own manifest lists its files
    folder, back = folder_of(bundle, number), f"go back with `sidrec catalogue --bundle {bundle} --rollback N`"
    manifest = read_manifest(folder)
    if manifest is None or not manifest["finished"]:
        raise InputError(f"{folder} is missing or not whole; {back}.")
    damaged = changed_output(folder, manifest, FileHashes(folder))
    if damaged is not None:
        raise InputError(
            f"{folder / damaged} is not the file that its manifest lists: it was changed or lost since; {back}."
        )
    if manifest["fingerprint"]["sids"] != _digest(bundle):
        raise InputError(
            f"{folder} is of other semantic IDs than the bundle's model, which was made again since; {back}."
        )
