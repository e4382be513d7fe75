"""A stage's folder in a run directory: what it was made from, whether it is finished, and that what lies in it is what was made.

Every stage (`data`, `embeddings`, `sid`, `sft`, `rl`, `evaluation`) owns one folder of the run directory. `manifest.json` in it records the
stage's fingerprint, the sha256 and size of every input and output, the versions of the packages, and the sha256 of all this. It holds no
clock time and no absolute path, so that two runs of a stage give the same bytes and a run directory can be moved.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, sweep_temporaries, write_json
from sidrec.pipeline.hashes import FileHashes
from sidrec.pipeline.lock import only_one
from sidrec.pipeline.provenance import RECORDED_PACKAGES

FORMAT = 1  # of manifests and of what the stages write
MANIFEST = "manifest.json"
SEEDS = "seeds"  # folder of a run directory that holds those of further seeds
WORKING = ("checkpoints", "log.txt", "README.md")  # no outputs; evaluation writes its table into a model's README.md
REMEDY = "choose another --run_dir, or pass --overwrite true to make it again"


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    fingerprint: every setting that decides the result (`pipeline.fingerprint`). inputs: files or folders of other stages, or the user's
    own files, which count by what they hold and not by where they lie. working: files and folders in the stage's own that are no outputs.
    """

    run_dir: Path
    name: str
    fingerprint: dict[str, Any]
    inputs: tuple[Path, ...] = ()
    working: tuple[str, ...] = WORKING

    @property
    def folder(self) -> Path:
        return self.run_dir / self.name

    @property
    def manifest_path(self) -> Path:
        return self.folder / MANIFEST

    def is_finished(self) -> bool:
        """Whether the folder is finished, with this fingerprint, these inputs and whole outputs.

        Changes nothing, but for the name of a folder that a kill has left under another one.

        Raises InputError when it was made from other settings or inputs, by another version, or by something else.
        """
        if self._before.exists() and not self.folder.exists():
            with self._lock():
                self._end_exchange()
        manifest = read_manifest(self.folder)
        if manifest is None:
            return False
        hashes = FileHashes(self.run_dir)
        self._refuse_if_different(manifest, self._identity(hashes))
        whole = manifest["finished"] and changed_output(self.folder, manifest, hashes) is None
        hashes.save()
        return whole

    @contextmanager
    def building(self, overwrite: bool = False, resumable: bool = False, leader: bool = True) -> Iterator[Path]:
        """The folder to write the stage's files into; at the end of the block they are listed in the manifest, and the stage is finished.

        resumable: the folder is the stage's own, and what lies in it after an error or a kill is gone on from. Otherwise it is a hidden one
        beside it, which takes the stage's place at the end, so that the last good state is never lost. overwrite: what an earlier run
        made, as its manifest lists it, is replaced. leader: False for the other processes of one run, which enter after the leader has.

        Raises InputError when another process builds the stage, when the folder holds what this project did not make, and as
        `is_finished` does unless `overwrite`.
        """
        if not leader:
            yield self.folder if resumable else self._beside
            return
        self._refuse_if_foreign()
        with self._lock():
            hashes = FileHashes(self.run_dir)
            identity = self._identity(hashes)
            self._end_exchange()
            manifest = read_manifest(self.folder, refuse_older=not overwrite)
            self._refuse_folders(manifest)
            if manifest is not None and not overwrite:
                self._refuse_if_different(manifest, identity)
                if manifest["finished"] and changed_output(self.folder, manifest, hashes) is None:
                    raise InputError(f"{self.folder} has just been finished by another process; nothing is left to do.")
            if resumable:
                yield from self._build_in_place(identity, manifest, overwrite)
            else:
                yield from self._build_beside(identity, manifest)
            self._close(identity, hashes)

    def _build_in_place(
        self, identity: dict[str, Any], manifest: dict[str, Any] | None, overwrite: bool
    ) -> Iterator[Path]:
        if overwrite and manifest is not None:
            delete_listed(self.folder, manifest)
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(self.folder)
        strangers = _files(self.folder) if overwrite or manifest is None else manifest.get("not_ours", [])
        unfinished = identity | {"finished": False, "outputs": {}}
        write_manifest(self.manifest_path, unfinished | ({"not_ours": strangers} if strangers else {}))
        yield self.folder

    def _build_beside(self, identity: dict[str, Any], manifest: dict[str, Any] | None) -> Iterator[Path]:
        beside = self._beside
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        beside.mkdir(parents=True)
        try:
            yield beside
            write_manifest(beside / MANIFEST, identity | {"finished": False, "outputs": {}})
            self._exchange()
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    @property
    def _beside(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.building")

    @property
    def _before(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.before")

    def _lock(self) -> AbstractContextManager[None]:
        return only_one(self.run_dir / ".locks", self.name.replace("/", "-"))

    def _exchange(self) -> None:
        """Put the new folder in the old one's place; files that no stage made go with the place."""
        if self.folder.exists():
            self.folder.rename(self._before)
        self._beside.rename(self.folder)
        self._end_exchange()

    def _end_exchange(self) -> None:
        """Clear away the old folder, or put it back where the new one did not come; after a kill, whatever of this was left to do."""
        if not self._before.exists():
            return
        if not self.folder.exists():
            self._before.rename(self.folder)
            return
        manifest = read_manifest(self._before, refuse_older=False)
        if manifest is not None:
            delete_listed(self._before, manifest)
        strangers = _files(self._before)
        if strangers:
            noted = read_json(self.manifest_path)
            write_manifest(self.manifest_path, noted | {"not_ours": sorted({*noted.get("not_ours", []), *strangers})})
        for name in strangers:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._before / name).replace(self.folder / name)
        shutil.rmtree(self._before)

    def _close(self, identity: dict[str, Any], hashes: FileHashes) -> None:
        strangers = read_json(self.manifest_path).get("not_ours", [])
        names = [name for name in _files(self.folder, self.working) if name not in strangers]
        outputs = {name: hashes.described(self.folder / name) for name in names}
        finished = identity | {"finished": True, "outputs": outputs} | ({"not_ours": strangers} if strangers else {})
        write_manifest(self.manifest_path, finished)
        hashes.save()

    def _identity(self, hashes: FileHashes) -> dict[str, Any]:
        inputs, outside = {}, []
        for path in self.inputs:
            if not path.exists():
                raise InputError(
                    f"{path} does not exist; the stage {self.name!r} needs it, so run the stage before it first."
                )
            resolved, run_dir = path.resolve(), self.run_dir.resolve()
            if resolved.is_relative_to(run_dir):
                inputs[str(resolved.relative_to(run_dir))] = content_hash(path, hashes)
            else:
                outside.append({"name": path.name, "sha256": content_hash(path, hashes)})
        return {
            "format": FORMAT,
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "inputs": inputs,
            "outside_inputs": outside,
            "packages": {package: version(package) for package in RECORDED_PACKAGES},
        }

    def _refuse_if_foreign(self) -> None:
        folder = self.folder.resolve()
        inside = [path for path in self.inputs if path.resolve().is_relative_to(folder)]
        if inside:
            raise InputError(
                f"{inside[0]} lies in {self.folder}, which this stage writes and may delete; move it elsewhere."
            )
        owner = self.folder.resolve().parent
        if self.folder.is_symlink() and owner != self.run_dir.resolve() and (owner / "data" / MANIFEST).exists():
            raise InputError(
                f"{self.folder} is a link to the folder of another run, {owner}, which would be changed; delete the link, or name another "
                "--run_dir."
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file where this stage's folder would be; choose another --run_dir.")
        if self.folder.exists() and not self.manifest_path.exists():
            strangers = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
            if strangers:
                raise InputError(
                    f"{self.folder} holds files that no stage made ({strangers[0]}); choose another --run_dir."
                )

    def _refuse_folders(self, manifest: dict[str, Any] | None) -> None:
        """A folder in the place of a listed file is somebody's work, and in the way."""
        in_the_way = next((name for name in (manifest or {}).get("outputs", []) if (self.folder / name).is_dir()), None)
        if in_the_way is not None:
            raise InputError(
                f"{self.folder / in_the_way} is a folder where this stage's file would be; move it elsewhere."
            )

    def _refuse_if_different(self, made: dict[str, Any], wanted: dict[str, Any]) -> None:
        for field in sorted(set(made["fingerprint"]) | set(wanted["fingerprint"])):
            old, new = made["fingerprint"].get(field), wanted["fingerprint"].get(field)
            if old != new:
                raise InputError(f"{self.folder} was made with {field}={old!r}, not {new!r}; {REMEDY}.")
        for path in sorted(set(made["inputs"]) | set(wanted["inputs"])):
            if made["inputs"].get(path) != wanted["inputs"].get(path):
                raise InputError(
                    f"{self.folder} was made from another {self.run_dir / path} than the one there now; {REMEDY}."
                )
        before, now = made["outside_inputs"], wanted["outside_inputs"]
        for old, new in zip(before, now, strict=False):
            if old["sha256"] != new["sha256"]:
                raise InputError(f"{self.folder} was made from another {old['name']} than {new['name']} now; {REMEDY}.")
        if len(before) != len(now):
            raise InputError(f"{self.folder} was made from {len(before)} files, not from {len(now)}; {REMEDY}.")


def require_finished(run_dir: Path, name: str, command: str) -> Path:
    """The folder of a finished stage, whose inputs in the run directory and whose outputs are those that its manifest lists.

    Raises InputError naming `command` when the stage has not run, and naming the file that has changed since.
    """
    folder, hashes = run_dir / name, FileHashes(run_dir)
    manifest = _finished_manifest(folder, name, command)
    for path, digest in manifest["inputs"].items():
        file = run_dir / path
        if not file.exists() or content_hash(file, hashes) != digest:
            raise InputError(f"{folder} was made from another {file} than the one there now; run `{command}` again.")
    _refuse_if_changed(folder, manifest, hashes, command)
    hashes.save()
    return folder


def require_whole(folder: Path, name: str, command: str) -> None:
    """For a stage's folder that may have been copied from its run: raises InputError unless it is finished, and its outputs unchanged."""
    _refuse_if_changed(folder, _finished_manifest(folder, name, command), FileHashes(folder), command)


def _finished_manifest(folder: Path, name: str, command: str) -> dict[str, Any]:
    manifest = read_manifest(folder, command)
    if manifest is None or manifest["stage"] != name:
        raise InputError(f"{folder} holds no finished {name!r} stage; run `{command}` first.")
    if not manifest["finished"]:
        raise InputError(f"{folder} is not finished; run `{command}` again to complete it.")
    return manifest


def _refuse_if_changed(folder: Path, manifest: dict[str, Any], hashes: FileHashes, command: str) -> None:
    damaged = changed_output(folder, manifest, hashes)
    if damaged is not None:
        raise InputError(
            f"{folder / damaged} is not the file that {folder / MANIFEST} lists: it was changed, exchanged or lost since; "
            f"run `{command} --overwrite true` to make it again."
        )


def read_manifest(folder: Path, command: str = "", refuse_older: bool = True) -> dict[str, Any] | None:
    """A stage's manifest; None where there is none. Raises InputError when it is damaged, of something else, or of another format."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path)
    if not _is_manifest(manifest):
        raise InputError(f"{path} is no manifest of this project; choose another --run_dir.")
    if manifest.get("format") != FORMAT and refuse_older:
        again = f"run `{command} --overwrite true`" if command else "pass --overwrite true"
        raise InputError(
            f"{folder} is of format {manifest.get('format', 0)}, and this version reads format {FORMAT}; {again} to make it again."
        )
    if refuse_older and manifest.get("sha256") != digest_of(manifest):
        raise InputError(
            f"{path} is not as it was written: it was changed since, or is of an earlier version; "
            f"{f'run `{command} --overwrite true`' if command else 'pass --overwrite true'} to make the stage again."
        )
    return manifest


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """With the sha256 of what it says, so that a change is noticed."""
    write_json(path, content | {"sha256": digest_of(content)})


def digest_of(content: dict[str, Any]) -> str:
    """sha256 of a manifest's content as JSON; whether it has one already does not matter."""
    said = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def recorded_settings(run_dir: Path, name: str, overwrite: bool) -> dict[str, Any] | None:
    """What a stage was last made with, None where nothing says it.

    overwrite: whether its files are made again anyway. If not, raises InputError where the manifest lists others than are there: either may
    be of another run, and so may the settings.
    """
    folder, hashes = run_dir / name, FileHashes(run_dir)
    content = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if not isinstance(content, dict) or not isinstance(content.get("fingerprint"), dict):
        return None
    if not overwrite and _is_manifest(content) and content["format"] == FORMAT:
        read_manifest(folder)  # refuses one that was changed
    if not overwrite and _is_manifest(content) and content["format"] == FORMAT and content["finished"]:
        changed = changed_output(folder, content, hashes)
        hashes.save()
        if changed is not None:
            raise InputError(
                f"{folder / changed} is not the file that {folder / MANIFEST} lists, so the last settings may be of another run; name them "
                "by --config FILE, or pass --overwrite true to make the stage again with those of the manifest."
            )
    return dict(content["fingerprint"])


def _is_manifest(content: Any) -> bool:
    """Whether JSON has a manifest's shape, and lists no file outside the manifest's folder."""
    if not isinstance(content, dict) or not {"stage", "inputs", "outputs", "finished", "packages"} <= content.keys():
        return False
    outputs = content["outputs"]
    if not isinstance(outputs, dict | list) or not all(
        isinstance(name, str) and _lies_inside(name) for name in outputs
    ):
        return False
    if content.get("format") != FORMAT:
        return True
    shape = {"fingerprint": dict, "inputs": dict, "outputs": dict, "outside_inputs": list, "finished": bool}
    return (
        all(isinstance(content.get(name), kind) for name, kind in shape.items())
        and all(isinstance(made, dict) and {"sha256", "bytes"} <= made.keys() for made in content["outputs"].values())
        and all(isinstance(made, dict) and {"sha256", "name"} <= made.keys() for made in content["outside_inputs"])
        and isinstance(content.get("not_ours", []), list)
    )


def _lies_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def changed_output(folder: Path, manifest: dict[str, Any], hashes: FileHashes) -> str | None:
    """The name of the first listed output that is not there as it was written; None where all are."""
    for name, described in manifest["outputs"].items():
        file = folder / name
        if (
            not file.is_file()
            or file.stat().st_size != described["bytes"]
            or hashes.sha256(file) != described["sha256"]
        ):
            return name
    return None


def content_hash(path: Path, hashes: FileHashes) -> str:
    """sha256 of what a file or a folder holds; of a stage's folder, of the outputs that its manifest lists."""
    if path.is_dir() and (path / MANIFEST).exists():
        outputs = (read_manifest(path) or {"outputs": {}})["outputs"]
        return hashes.of_lines(f"{name} {made['sha256']}" for name, made in outputs.items())
    if path.is_dir():
        return hashes.of_lines(f"{name} {hashes.sha256(path / name)}" for name in _files(path))
    return hashes.sha256(path)


def delete_listed(folder: Path, manifest: dict[str, Any]) -> None:
    """Delete a stage's outputs, working files and manifest, and the folders that are then empty; nothing else."""
    strangers = set(manifest.get("not_ours", []))
    listed = manifest["outputs"] if manifest.get("finished") else _files(folder)
    for name in listed:
        file = folder / name.removeprefix(
            f"{manifest.get('stage')}/"
        )  # older manifests name files from the run directory
        if name not in strangers:
            file.unlink(missing_ok=True)
    for name in WORKING:
        path = folder / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    sweep_temporaries(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


def _files(folder: Path, working: tuple[str, ...] = WORKING) -> list[str]:
    """The files in a folder, at any depth, by their path in it; without the manifest, `working` files and hidden ones."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(path.as_posix() for path in shown if str(path) != MANIFEST and path.parts[0] not in working)


def seed_runs(run_dir: Path, stage: str) -> list[Path]:
    """The run directories of further seeds in which this stage is finished, in order.

    Raises InputError for one that was trained otherwise than the run's own stage, but for the seed.
    """
    folders = [folder for folder in (run_dir / SEEDS).glob("*") if folder.name.isdecimal()]
    runs = []
    for folder in sorted(folders, key=lambda folder: int(folder.name)):
        manifest, first = read_manifest(folder / stage), read_manifest(run_dir / stage)
        if manifest is None or not manifest["finished"] or first is None:
            continue
        if _but_for_the_seed(manifest) != _but_for_the_seed(first):
            raise InputError(
                f"{folder / stage} was trained with other settings or data than {run_dir / stage}; train it again with --seeds and "
                "--overwrite true, or delete it."
            )
        runs.append(folder)
    return runs


def _but_for_the_seed(manifest: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings without the seed, and what the inputs hold; those of a further seed are links, and so outside of its run directory."""
    outside = [made["sha256"] for made in manifest["outside_inputs"]]
    return {**manifest["fingerprint"], "seed": None}, sorted([*manifest["inputs"].values(), *outside])
