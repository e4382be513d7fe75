import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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


def finished(run_dir: Path, source: Path, **config: object) -> Stage:
    stage = Stage(run_dir, "sid", {"levels": 3} | config, (source,))
    assert stage.begin()
    (stage.folder / "codes.npy").write_text("codes")
    stage.finish(stage.folder / "codes.npy")
    return stage


def test_finished_stage_is_skipped(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    before = stage.manifest_path.read_bytes()
    assert stage.is_finished()
    assert stage.begin() is False
    assert stage.manifest_path.read_bytes() == before
    assert require_finished(tmp_path / "run", "sid", "x") == stage.folder


def test_changed_config_is_refused_by_field(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    changed = Stage(stage.run_dir, "sid", {"levels": 4}, (source,))
    with pytest.raises(InputError, match=r"levels=3, not 4; .*--overwrite true"):
        changed.begin()
    assert stage.begin() is False


def test_changed_input_is_refused_by_name(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    source.write_text("two")
    with pytest.raises(InputError, match=r"another .*log\.csv than the one there now"):
        stage.begin()
    source.unlink()
    with pytest.raises(InputError, match=r"log\.csv does not exist"):
        stage.begin()


def test_overwrite_starts_from_an_empty_folder(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    (stage.folder / "stale.bin").write_text("old")
    changed = Stage(stage.run_dir, "sid", {"levels": 4}, (source,))
    assert changed.begin(overwrite=True)
    assert [path.name for path in stage.folder.iterdir()] == ["manifest.json"]
    with pytest.raises(InputError, match="not finished"):
        require_finished(stage.run_dir, "sid", "x")


def test_interrupted_stage_resumes_with_what_it_had(tmp_path: Path, source: Path) -> None:
    stage = Stage(tmp_path / "run", "sid", {"levels": 3}, (source,))
    assert stage.begin()
    (stage.folder / "checkpoint").write_text("half")
    assert not stage.is_finished()
    assert stage.begin()
    assert (stage.folder / "checkpoint").read_text() == "half"
    with pytest.raises(InputError, match="levels=3, not 4"):
        Stage(tmp_path / "run", "sid", {"levels": 4}, (source,)).begin()


def test_damaged_output_is_made_again(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    (stage.folder / "codes.npy").write_text("damaged")
    assert stage.begin()


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_stage_made_are_never_touched(tmp_path: Path, source: Path, overwrite: bool) -> None:
    folder = tmp_path / "run" / "sid"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"holds files that no stage made \(thesis\.tex\)"):
        Stage(tmp_path / "run", "sid", {}, (source,)).begin(overwrite)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_an_input_in_the_stages_own_folder_is_never_deleted(tmp_path: Path, source: Path) -> None:
    stage = finished(tmp_path / "run", source)
    inside = stage.folder / "log.csv"
    inside.write_text("precious")
    with pytest.raises(InputError, match="move it elsewhere"):
        Stage(stage.run_dir, "sid", {}, (inside,)).begin(overwrite=True)
    assert inside.read_text() == "precious"


def test_a_folder_left_before_its_manifest_was_written_is_taken(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "run" / "sid"
    folder.mkdir(parents=True)
    (folder / ".manifest.json.1.tmp").write_text("{")
    assert Stage(tmp_path / "run", "sid", {}, (source,)).begin()


def test_manifest_is_the_same_twice_and_moves_with_the_run(tmp_path: Path) -> None:
    manifests = []
    for name in ("one", "two"):
        run = tmp_path / name
        (run / "data").mkdir(parents=True)
        (run / "data" / "items").write_text("items")
        manifests.append(finished(run, run / "data" / "items").manifest_path.read_bytes())
    assert manifests[0] == manifests[1]
    (tmp_path / "one").rename(tmp_path / "moved")
    require_finished(tmp_path / "moved", "sid", "x")
    (tmp_path / "moved" / "data" / "items").write_text("other")
    with pytest.raises(InputError, match=r"made from another .*items"):
        require_finished(tmp_path / "moved", "sid", "x")


def test_folder_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = sha256(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    second = sha256(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({first, second, sha256(tmp_path / "a")}) == 3


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
        run_as_command(lambda: None)
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_sigterm_ends_a_process_like_ctrl_c() -> None:
    code = "from sidrec.pipeline.stage import run_as_command as run; import time; run(lambda: (print('up', flush=True), time.sleep(30)))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.kill(process.pid, signal.SIGTERM)
        _, message = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "interrupted" in message


def test_a_full_disk_is_known_by_what_libraries_raise() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.save(torch.zeros(100_000), "/dev/full")
    assert means_disk_full(failed.value)
    assert means_disk_full(ValueError("parquet: underlying IO error: No space left on device (os error 28)"))
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert means_disk_full(wrapped)
    assert not means_disk_full(RuntimeError("shapes differ"))
