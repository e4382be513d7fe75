import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sidrec.pipeline.command import means_disk_full, run_as_command
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, sha256, write_json
from sidrec.pipeline.stage import Stage, require_finished


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "user" / "log.csv"
    path.parent.mkdir()
    path.write_text("one")
    return path


def build(stage: Stage, content: str = "codes", overwrite: bool = False, resumable: bool = False) -> Stage:
    with stage.building(overwrite, resumable) as folder:
        (folder / "codes.npy").write_text(content)
    return stage


def fail(stage: Stage, name: str, overwrite: bool = False, resumable: bool = False) -> None:
    """Write half of a file, and end with an error."""
    with stage.building(overwrite, resumable) as folder:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("half")
        raise ZeroDivisionError


def finished(run_dir: Path, *sources: Path, **settings: object) -> Stage:
    return build(Stage(run_dir, "sid", {"levels": 3} | settings, sources))


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def test_a_finished_stage_is_known_and_its_manifest_lists_every_file(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    before = stage.manifest_path.read_bytes()
    assert stage.is_finished()
    assert require_finished(tmp_path / "run", "sid", "x") == stage.folder
    assert json.loads(before)["outputs"] == {"codes.npy": {"bytes": 5, "sha256": sha256(stage.folder / "codes.npy")}}
    assert stage.manifest_path.read_bytes() == before


@pytest.mark.parametrize("resumable", [False, True])
def test_other_settings_are_refused_by_field(tmp_path: Path, source: Path, resumable: bool) -> None:
    stage = finished(tmp_path / "run", source)
    changed = Stage(stage.run_dir, "sid", {"levels": 4}, (source,))
    with pytest.raises(InputError, match=r"levels=3, not 4; .*--overwrite true"):
        changed.is_finished()
    with pytest.raises(InputError, match="levels=3, not 4"):
        build(changed, "other", resumable=resumable)
    assert stage.is_finished()


def test_inputs_count_by_content_not_by_path(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    moved = source.parent.parent / "elsewhere.csv"
    source.rename(moved)
    assert Stage(stage.run_dir, "sid", {"levels": 3}, (moved,)).is_finished()
    moved.write_text("two")
    with pytest.raises(InputError, match=r"another log\.csv than elsewhere\.csv now"):
        Stage(stage.run_dir, "sid", {"levels": 3}, (moved,)).is_finished()
    with pytest.raises(InputError, match=r"log\.csv does not exist"):
        stage.is_finished()


@pytest.mark.parametrize("resumable", [False, True])
def test_overwrite_replaces_what_was_made_and_nothing_else(tmp_path: Path, source: Path, resumable: bool) -> None:
    stage = finished(tmp_path / "run", source)
    (stage.folder / "notes.txt").write_text("precious")
    changed = Stage(stage.run_dir, "sid", {"levels": 4}, (source,))
    build(changed, "other", overwrite=True, resumable=resumable)
    assert files(stage.folder) == {"codes.npy": "other", "notes.txt": "precious"}
    build(stage, "codes", overwrite=True, resumable=resumable)
    assert files(stage.folder) == {"codes.npy": "codes", "notes.txt": "precious"}
    assert list(json.loads(stage.manifest_path.read_text())["outputs"]) == ["codes.npy"]


def test_an_error_keeps_the_last_good_state_of_a_stage_that_is_built_beside(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    with pytest.raises(ZeroDivisionError):
        fail(stage, "codes.npy", overwrite=True)
    assert stage.is_finished()
    assert files(stage.folder) == {"codes.npy": "codes"}
    assert [path.name for path in stage.run_dir.iterdir() if "building" in path.name] == []


def test_an_interrupted_stage_resumes_with_what_it_had(tmp_path: Path, source: Path) -> None:
    stage = Stage(tmp_path / "run", "sid", {"levels": 3}, (source,))
    with pytest.raises(ZeroDivisionError):
        fail(stage, "checkpoints/last", resumable=True)
    assert not stage.is_finished()
    with pytest.raises(InputError, match="not finished"):
        require_finished(stage.run_dir, "sid", "x")
    with pytest.raises(InputError, match="levels=3, not 4"):
        build(Stage(tmp_path / "run", "sid", {"levels": 4}, (source,)), resumable=True)
    with stage.building(resumable=True) as folder:
        assert (folder / "checkpoints" / "last").read_text() == "half"
    assert stage.is_finished()


@pytest.mark.parametrize("content", ["damag", "damaged", None])
def test_a_changed_output_is_named_and_made_again(tmp_path: Path, source: Path, content: str | None) -> None:
    stage = finished(tmp_path / "run", source)
    codes = stage.folder / "codes.npy"
    codes.unlink() if content is None else codes.write_text(content)
    with pytest.raises(InputError, match=r"codes\.npy is not the file .* run `x --overwrite true`"):
        require_finished(stage.run_dir, "sid", "x")
    assert not stage.is_finished()
    build(stage)
    assert stage.is_finished()


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_stage_made_are_never_touched(tmp_path: Path, source: Path, overwrite: bool) -> None:
    folder = tmp_path / "run" / "sid"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    stage = Stage(tmp_path / "run", "sid", {}, (source,))
    with pytest.raises(InputError, match=r"holds files that no stage made \(thesis\.tex\)"):
        build(stage, overwrite=overwrite)
    (folder / "manifest.json").write_text('{"name": "another program", "version": 3}')
    with pytest.raises(InputError, match="no manifest of this project"):
        build(stage, overwrite=overwrite)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "thesis.tex"]


def test_an_input_in_the_stages_own_folder_is_never_deleted(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    inside = stage.folder / "log.csv"
    inside.write_text("precious")
    with pytest.raises(InputError, match="move it elsewhere"):
        build(Stage(stage.run_dir, "sid", {}, (inside,)), overwrite=True)
    assert inside.read_text() == "precious"


def test_temporaries_of_dead_processes_are_swept_and_no_inputs(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "run" / "sid"
    folder.mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (folder / f".manifest.json.{dead.pid}.tmp").write_text("{")
    (folder / f".codes.npy.{os.getpid()}.tmp").write_text("[")
    (folder / ".DS_Store").write_text("x")
    stage = build(Stage(tmp_path / "run", "sid", {}, (source,)), resumable=True)
    assert sorted(files(folder)) == [".DS_Store", f".codes.npy.{os.getpid()}.tmp", "codes.npy"]
    assert list(json.loads(stage.manifest_path.read_text())["outputs"]) == ["codes.npy"]


def test_a_manifest_is_the_same_twice_and_moves_with_the_run(tmp_path: Path) -> None:
    manifests = []
    for name in ("one", "two"):
        run = tmp_path / name
        (run / "data").mkdir(parents=True)
        (run / "data" / "items").write_text("items")
        manifests.append(finished(run, run / "data" / "items").manifest_path.read_bytes())
    assert manifests[0] == manifests[1]
    (tmp_path / "one").rename(tmp_path / "moved")
    require_finished(tmp_path / "moved", "sid", "x")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    require_finished(tmp_path / "copied", "sid", "x")
    (tmp_path / "moved" / "data" / "items").write_text("other")
    with pytest.raises(InputError, match=r"made from another .*items"):
        require_finished(tmp_path / "moved", "sid", "x")


def test_a_stage_of_an_older_format_is_refused_or_replaced(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "run" / "sid"
    folder.mkdir(parents=True)
    (folder / "codes.npy").write_text("old")
    older = {"stage": "sid", "config": {}, "inputs": {}, "packages": {}, "finished": True}
    write_json(folder / "manifest.json", older | {"outputs": {"sid/codes.npy": "0123"}})
    stage = Stage(tmp_path / "run", "sid", {}, (source,))
    with pytest.raises(InputError, match=r"is of format 0, and this version reads format \d; run `x --overwrite true`"):
        require_finished(stage.run_dir, "sid", "x")
    with pytest.raises(InputError, match="is of format 0"):
        build(stage)
    build(stage, "new", overwrite=True)
    assert files(folder) == {"codes.npy": "new"}


HOLD = """
import sys, time
from pathlib import Path
from sidrec.pipeline.stage import Stage
with Stage(Path(sys.argv[1]), "sid", {}).building(resumable=True):
    print("up", flush=True)
    time.sleep(60)
"""


def test_a_second_process_names_the_first_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "run", "sid", {})
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(stage.run_dir)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        with pytest.raises(InputError, match=rf"run/sid is being made by process {holder.pid} right now"):
            build(stage, resumable=True)
        holder.kill()
    build(stage, resumable=True)
    assert stage.is_finished()


def test_a_stage_that_another_process_finished_meanwhile_is_not_made_twice(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    with pytest.raises(InputError, match="has just been finished"):
        build(stage)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    stage.folder.rename(stage.run_dir / ".sid.before")
    build(stage, "new", overwrite=True)
    assert files(stage.folder) == {"codes.npy": "new"}


def test_a_kill_between_the_two_renames_is_settled_before_anything_is_made_again(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    stage.folder.rename(stage.run_dir / ".sid.before")
    assert stage.is_finished()
    assert files(stage.folder) == {"codes.npy": "codes"}


def test_a_kill_after_the_two_renames_loses_nothing_and_blocks_nothing(
    tmp_path: Path, source: Path, monkeypatch
) -> None:
    stage = finished(tmp_path / "run", source)
    (stage.folder / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "_end_exchange", lambda self: None)
        patch.setattr(Stage, "_close", lambda self, identity, hashes: None)
        build(stage, "new", overwrite=True)
    assert (stage.run_dir / ".sid.before" / "notes.txt").exists()
    build(stage, "newer")
    assert files(stage.folder) == {"codes.npy": "newer", "notes.txt": "mine"}
    build(stage, "newest", overwrite=True)
    assert files(stage.folder) == {"codes.npy": "newest", "notes.txt": "mine"}
    assert not (stage.run_dir / ".sid.before").exists()


@pytest.mark.parametrize(
    "other",
    [
        {"outputs": []},
        {"outputs": None},
        {"outputs": {"codes.npy": 1}},
        {"outputs": {"codes.npy": {}}},
        {"fingerprint": []},
        {"fingerprint": None},
        {"inputs": []},
        {"outside_inputs": None},
        {"outside_inputs": [3]},
        {"finished": "perhaps"},
        {"not_ours": 3},
        {"outputs": {"../../user/log.csv": {"sha256": "0", "bytes": 3}}},
        {"format": 0, "outputs": {"/etc/x": "0"}},
    ],
)
def test_other_json_is_no_manifest_and_deletes_nothing(tmp_path: Path, source: Path, other: dict[str, object]) -> None:
    stage = finished(tmp_path / "run", source)
    write_json(stage.manifest_path, json.loads(stage.manifest_path.read_text()) | other)
    uses = (
        stage.is_finished,
        lambda: require_finished(stage.run_dir, "sid", "x"),
        lambda: build(stage, overwrite=True),
        lambda: build(Stage(stage.run_dir, "sft", {}, (stage.folder,))),
    )
    for use in uses:
        with pytest.raises(InputError, match=r"sid/manifest\.json is no manifest of this project"):
            use()
    assert source.read_text() == "one"
    assert (stage.folder / "codes.npy").read_text() == "codes"


def test_hashes_are_computed_once_and_again_when_a_file_changes(tmp_path: Path, source: Path, monkeypatch) -> None:
    stage = finished(tmp_path / "run", source)
    hashed: list[str] = []
    monkeypatch.setattr("sidrec.pipeline.hashes.sha256", lambda path: hashed.append(path.name) or sha256(path))
    assert stage.is_finished()
    assert hashed == []
    times = (stage.folder / "codes.npy").stat()
    (stage.folder / "codes.npy").write_text("CODES")
    os.utime(stage.folder / "codes.npy", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not stage.is_finished()
    assert hashed == ["codes.npy"]


def test_folder_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = sha256(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    second = sha256(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({first, second, sha256(tmp_path / "a")}) == 3


def test_what_is_written_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    """safetensors writes for the owner alone."""
    (tmp_path / "ordinary").touch()
    with atomic_path(tmp_path / "x.safetensors") as temporary:
        save_file({"x": np.zeros(2)}, temporary)
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"good": 1})

    def fail() -> None:
        with atomic_path(tmp_path / "x.json") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert json.loads((tmp_path / "x.json").read_text()) == {"good": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("u.data is empty; download it again."), 2, "error: u.data is empty"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/items.parquet"),
            2,
            "disk is full while writing /x/items.parquet",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x cannot be used (Permission denied)"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/y"), 2, "choose a shorter name"),
        (OSError(errno.EFBIG, "File too large"), 2, "a file cannot be used (File too large)"),
        (OSError("Too many open files (os error 24): /x/a.parquet"), 2, "/x/a.parquet cannot be used (Too many open"),
        (
            OSError("Permission denied (os error 13): /x/b.parquet\n\nsaid"),
            2,
            "/x/b.parquet cannot be used (Permission",
        ),
        (ValueError("parquet: underlying IO error: File too large (os error 27)"), 2, "larger than this account"),
        (
            ValueError("I/O error: Read-only file system (os error 30)"),
            2,
            "choose a path on a disk that can be written",
        ),
        (MemoryError("Unable to allocate 57 GiB"), 2, "not enough memory (Unable to allocate 57 GiB)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "not enough memory"),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ],
)
def test_exit_codes(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            run_as_command(raising(error))
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert end.value.code == code
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


def test_other_errors_are_not_hidden() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(PermissionError):
            run_as_command(raising(PermissionError(errno.EACCES, "denied")))
        wrong = KeyError("name")
        wrong.__context__ = FileNotFoundError(errno.ENOENT, "No such file", "/x")
        with pytest.raises(KeyError):
            run_as_command(raising(wrong))
        run_as_command(lambda: None)
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_sigterm_ends_a_process_like_ctrl_c() -> None:
    code = "from sidrec.pipeline.command import run_as_command as run; import time; run(lambda: (print('up', flush=True), time.sleep(30)))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.kill(process.pid, signal.SIGTERM)
        _, message = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "interrupted" in message


def printing(words: str, output: int, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command that prints, with an output of its own."""
    code = f"from sidrec.pipeline.command import run_as_command as run; run(lambda: print({words!r}))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=os.environ | environment, check=False)


def test_an_output_that_takes_nothing_ends_a_command_without_a_traceback() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    ended = printing("words", full)
    os.close(full)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 2)
    assert b"error: the disk is full" in ended.stderr
    reader, writer = os.pipe()
    os.close(reader)
    ended = printing("words", writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
    ended = printing("Café ☕", subprocess.PIPE, PYTHONIOENCODING="latin-1")
    assert (ended.returncode, ended.stdout) == (0, "Café ?\n".encode("latin-1"))


def test_a_full_disk_is_known_by_what_libraries_raise() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.save(torch.zeros(100_000), "/dev/full")
    assert means_disk_full(failed.value)
    assert means_disk_full(ValueError("parquet: underlying IO error: No space left on device (os error 28)"))
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert means_disk_full(wrapped)
    assert not means_disk_full(RuntimeError("shapes differ"))
