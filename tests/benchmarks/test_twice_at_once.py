"""benchmarks/twice_at_once.py: it holds on stages of the project, and it tells stages that do not keep a second process out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import twice_at_once
from benchmarks.small_run import Kind, write_raw
from benchmarks.twice_at_once import Ended, TwiceConfig, how_second_ended
from sidrec.pipeline.errors import InputError

# a stage of half a second; how it keeps others out is its first argument
STAGE = """
import fcntl, hashlib, json, os, pathlib, sys, time
how, run_dir = sys.argv[1], pathlib.Path(sys.argv[3])
folder, locks = run_dir / "data", run_dir / ".locks"
locks.mkdir(exist_ok=True)
if (folder / "manifest.json").exists():
    sys.exit(print("finished already"))
def refuse():
    time.sleep(0.1)
    sys.exit(print(f"error: {folder} is being made by process {(locks / 'data.pid').read_text()} right now") or 2)
if how == "honest":
    handle = open(locks / "data.lock", "w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        refuse()
elif how == "outlives":
    try:
        (locks / "data.lock").touch(exist_ok=False)
    except OSError:
        refuse()
if how != "silent":
    (locks / "data.pid").write_text(str(os.getpid()))
time.sleep(0.5 + 0.2 * (os.getpid() % 2))
folder.mkdir(exist_ok=True)
for name in ("items.parquet", "interactions.parquet"):
    (folder / name).write_text(str(time.time()) if how == "clock" else name)
(folder / "manifest.json").write_text(json.dumps({"finished": True, "outputs": {"items.parquet": {}, "interactions.parquet": {}}}))
"""


def run(capfd: pytest.CaptureFixture[str], *flags: str) -> dict:
    twice_at_once.main(list(flags))
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def stage_that(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """In the place of the stage `data`: one that keeps others out as `how` says."""
    kind = Kind(["-c", STAGE, how], (), ("items.parquet", "interactions.parquet"))
    monkeypatch.setattr(twice_at_once, "kinds", lambda raw: {"data": kind})


@pytest.mark.slow
def test_it_holds_on_a_stage_itself(capfd: pytest.CaptureFixture[str]) -> None:
    figures = run(capfd, "--tries", "3", "--stages", "data")
    assert figures["all_held"]
    assert list(figures["stages"]) == ["data"]
    stage = figures["stages"]["data"]
    assert (stage["pairs"], stage["kills"], sum(stage["second"].values())) == (3, 3, 3)
    assert set(stage["second"]) <= {"refused", "found it finished"}


def test_a_stage_with_a_lock_holds(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stage_that(monkeypatch, "honest")
    figures = run(capfd, "--tries", "2", "--stages", "data")
    assert figures["all_held"]
    assert figures["stages"]["data"]["second"] == {"refused": 2}


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("open", "the finished stage was written a second time"),
        ("outlives", "the next process ended with code 2: error: "),
    ],
)
def test_a_stage_that_lets_two_in_or_whose_lock_outlives_it_is_told(
    how: str, fault: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stage_that(monkeypatch, how)
    with pytest.raises(SystemExit, match="1"):
        twice_at_once.main(["--tries", "2", "--stages", "data"])
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    stage = figures["stages"]["data"]
    assert not figures["all_held"]
    assert any(fault in line for line in stage["pair_faults"] + stage["kill_faults"])


@pytest.mark.parametrize(("how", "words"), [("silent", "takes no lock"), ("clock", "make different items.parquet")])
def test_a_stage_that_cannot_be_tried_is_refused(how: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch, how)
    with pytest.raises(InputError, match=words):
        twice_at_once.main(["--tries", "1", "--stages", "data"])


def test_endings_of_the_second_process() -> None:
    worked = Ended(7, 0, "done", lock_at=1.0, end_at=2.0)

    def second(code: int | None, printed: str, lock_at: float | None = None) -> str:
        return how_second_ended(worked, Ended(8, code, printed, lock_at, 2.0)).name

    assert second(2, "\nerror: x/data is being made by process 7 right now; wait.\n") == "refused"
    assert second(2, "\nerror: x/data is being made by process 9 right now; wait.\n") == "refused for another reason"
    assert (
        second(2, "error: x/data has just been finished by another process; nothing is left to do.")
        == "found it finished"
    )
    assert second(0, "data: 3 users") == "found it finished"
    assert second(0, "data: 3 users", lock_at=1.5) == "worked too"
    assert second(2, "Traceback (most recent call last)\nerror: process 7 ") == "no sentence"
    assert second(None, "") == "worked too"
    assert how_second_ended(Ended(7, 1, "", 1.0, 2.0), worked).fault is not None


def test_what_cannot_be_asked() -> None:
    with pytest.raises(InputError, match="--stages has \\['nosuch'\\]"):
        TwiceConfig(stages=["nosuch"])
    with pytest.raises(InputError, match="--tries is 0"):
        TwiceConfig(tries=0)


def test_the_small_log_is_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write_raw(tmp_path / name)
    for file in ("log.csv", "items.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
