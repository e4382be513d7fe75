"""The file that a command writes its answer to, where the user names it: looked at before any work begins."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import temporary_of
from sidrec.pipeline.stage import MANIFEST, read_manifest


def check_output(flag: str, path: Path, inputs: Collection[Path] = (), endings: Sequence[str] = ()) -> None:
    """Raise InputError for a file that cannot be written, or must not be: one that the command reads, or that a stage has written.

    flag: names the path, such as "--output". inputs: files and folders that the command reads. endings: of which the path must have one,
    which says the format; none: any. The folder must be there. Leaves nothing.
    """
    if endings and not path.name.lower().endswith(tuple(endings)):
        listed = " or ".join(filter(None, (", ".join(endings[:-1]), endings[-1])))
        raise InputError(f"{flag} {path} must end in {listed}, which says the format.")
    try:
        if path.is_dir():
            raise InputError(f"{flag} {path} is a folder; name a file in it.")
        if not path.parent.is_dir():
            raise InputError(f"{flag} {path}: there is no folder {path.parent}; make it first.")
        _refuse_precious(flag, Path(os.path.realpath(path)), inputs)
        temporary = temporary_of(path)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written ({error.strerror}); choose another place.") from error


def _refuse_precious(flag: str, path: Path, inputs: Collection[Path]) -> None:
    """path: without links."""
    for source in inputs:
        place = Path(os.path.realpath(source))
        if path == place or place in path.parents:
            what = "is" if path == place else "lies in"
            raise InputError(f"{flag} {path} {what} {source}, which this command reads; name another file.")
    for folder in path.parents:
        manifest = None
        with suppress(InputError):  # another program may have a file of this name
            manifest = read_manifest(folder, refuse_older=False)
        name = path.relative_to(folder).as_posix()
        if manifest is not None and (name == MANIFEST or name in manifest["outputs"]):
            raise InputError(
                f"{flag} {path} is a file of the stage in {folder}, which would be lost; name another file."
            )
