"""A stage's folder in a run directory: what it was made from, whether it is finished, and how a stage ends.

Every stage (`data`, `embeddings`, `sid`, `sft`, `rl`, `evaluation`) owns one folder of the run directory. `manifest.json` in it
records the stage's config and the sha256 of every input and output, with paths relative to the run directory. It holds no clock
time, so that two runs of a stage give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256, write_json
from sidrec.pipeline.provenance import RECORDED_PACKAGES


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    `config` is whatever decides the stage's result (not where it runs or what it prints); `inputs` are files or folders of other
    stages, or the user's own files.
    """

    run_dir: Path
    name: str
    config: dict[str, Any]
    inputs: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        return self.run_dir / self.name

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def begin(self, overwrite: bool = False) -> bool:
        """Claim the folder. True: there is work to do (perhaps to resume); False: finished before, with these very inputs.

        Raises InputError when the folder was made from another config or other inputs, unless `overwrite`, which deletes it; and
        always when the folder holds files that no stage made, or one of the inputs: those are never deleted.
        """
        self._refuse_if_foreign()
        if overwrite:
            identity = self._identity()
            if self.folder.exists():
                shutil.rmtree(self.folder)
        elif self.is_finished():
            return False
        else:
            identity = self._identity()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.manifest_path, identity | {"finished": False, "outputs": {}})
        return True

    def is_finished(self) -> bool:
        """Whether the folder is finished, with this very config and these inputs; changes nothing.

        Raises InputError when it was made from another config or other inputs. A stage that keeps nothing half-made asks this
        first, does its work, and only then calls `begin`: so bad input never costs the last good state.
        """
        identity = self._identity()
        if not self.manifest_path.exists():
            return False
        found = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        self._refuse_if_different(found, identity)
        return found["finished"] and self._outputs_are_whole(found["outputs"])

    def finish(self, *outputs: Path) -> None:
        """Write the manifest: the stage is done and `outputs` (files or folders) are what it made."""
        hashes = {self._relative(path): sha256(path) for path in outputs}
        write_json(self.manifest_path, self._identity() | {"finished": True, "outputs": hashes})

    def _identity(self) -> dict[str, Any]:
        for path in self.inputs:
            if not path.exists():
                raise InputError(
                    f"{path} does not exist; the stage {self.name!r} needs it, so run the stage before it first."
                )
        return {
            "stage": self.name,
            "config": json.loads(json.dumps(self.config, default=str)),
            "inputs": {self._relative(path): sha256(path) for path in self.inputs},
            "packages": {package: version(package) for package in RECORDED_PACKAGES},
        }

    def _refuse_if_foreign(self) -> None:
        folder = self.folder.resolve()
        inside = [path for path in self.inputs if path.resolve().is_relative_to(folder)]
        if inside:
            raise InputError(
                f"{inside[0]} lies in {self.folder}, which this stage writes and may delete; move it elsewhere."
            )
        if self.folder.exists() and not self.manifest_path.exists():
            foreign = [path.name for path in self.folder.iterdir() if not path.name.endswith(".tmp")]
            if foreign:
                raise InputError(
                    f"{self.folder} holds files that no stage made ({foreign[0]}); choose another --run_dir."
                )

    def _refuse_if_different(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        remedy = "choose another --run_dir, or pass --overwrite true to make it again"
        for field in sorted(set(found["config"]) | set(wanted["config"])):
            old, new = found["config"].get(field), wanted["config"].get(field)
            if old != new:
                raise InputError(f"{self.folder} was made with {field}={old!r}, not {new!r}; {remedy}.")
        for path in sorted(set(found["inputs"]) | set(wanted["inputs"])):
            if found["inputs"].get(path) != wanted["inputs"].get(path):
                raise InputError(f"{self.folder} was made from another {path} than the one there now; {remedy}.")

    def _outputs_are_whole(self, outputs: dict[str, str]) -> bool:
        paths = {name: self.run_dir / name for name in outputs}
        return all(path.exists() and sha256(path) == outputs[name] for name, path in paths.items())

    def _relative(self, path: Path) -> str:
        path, run_dir = path.resolve(), self.run_dir.resolve()
        return str(path.relative_to(run_dir) if path.is_relative_to(run_dir) else path)


def require_finished(run_dir: Path, name: str, command: str) -> Path:
    """The folder of a finished stage whose inputs inside the run directory are still those it was made from.

    Raises InputError naming `command` when the stage has not run, and naming both files when an input has changed since.
    """
    folder = run_dir / name
    manifest = folder / "manifest.json"
    if not manifest.exists():
        raise InputError(f"{folder} holds no finished {name!r} stage; run `{command}` first.")
    found = json.loads(manifest.read_text(encoding="utf-8"))
    if not found["finished"]:
        raise InputError(f"{folder} is not finished; run `{command}` again to complete it.")
    for path, digest in found["inputs"].items():
        file = run_dir / path
        if not Path(path).is_absolute() and (not file.exists() or sha256(file) != digest):
            raise InputError(f"{folder} was made from another {file} than the one there now; run `{command}` again.")
    return folder
