"""benchmarks/faults.py: it tells a traceback, a silent difference and a loss from what is in order, and counts them."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import faults
from benchmarks.answering_commands import ANSWERING, Served
from benchmarks.child import HUNG, Ended, Limits, run_child
from benchmarks.damages import damage_file, other_bytes
from benchmarks.fault_trials import Outcome, SmallRun, byte_string, changed, differs, state_of, without
from benchmarks.foreign_files import READERS, write_foreign
from benchmarks.odd_settings import odd_flags, odd_yaml, settings_of_commands
from benchmarks.output_places import odd_place
from benchmarks.store_damages import damage_store, write_store
from sidrec.pipeline.files import write_json


@pytest.mark.parametrize(
    ("program", "code", "is_traceback"),
    [
        ("print('well')", 0, False),
        ("import sys; sys.exit(2)", 2, False),
        ("raise ValueError('not well')", 1, True),
        ("import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()", 0, True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, True),
    ],
)
def test_how_a_command_ends(tmp_path: Path, program: str, code: int, is_traceback: bool) -> None:
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    for as_process in (False, True):
        ended = run_child([str(file)], 30, as_process)
        assert (ended.code, ended.is_traceback) == (code, is_traceback), ended.printed


def test_a_command_without_end_is_killed(tmp_path: Path) -> None:
    file, mark = tmp_path / "program.py", tmp_path / "mark"
    file.write_text(
        f"import time; open({str(mark)!r}, 'w').close(); print('begun', flush=True); time.sleep(100)", encoding="utf-8"
    )
    ended = run_child([str(file)], 30, until=lambda said: "begun" in said and mark.exists())
    assert (ended.code, ended.is_traceback) == (HUNG, False)
    assert run_child([str(file)], 0.2).code == HUNG


def test_a_fork_that_a_signal_ended_runs_again_as_users_run_it(tmp_path: Path) -> None:
    file, mark = tmp_path / "command.py", tmp_path / "begun"
    file.write_text(
        f"import os, pathlib, signal\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), signal.SIGSEGV)\nprint('whole')\n"
    )
    ended = run_child([str(file)], 30)
    assert (ended.code, ended.printed, ended.repeated) == (0, "whole\n", True)
    mark.unlink()
    assert run_child([str(file)], 30, as_process=True).is_traceback, "as users run it there is no second time"


@given(st.binary(max_size=300), st.integers(0, 10_000))
def test_damaged_bytes_differ(content: bytes, seed: int) -> None:
    _, damaged = other_bytes(np.random.default_rng(seed), content)
    assert damaged != content


def test_a_damaged_file_differs_from_before(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"b": [1, 2]}', encoding="utf-8")
    ways = set()
    for seed in range(200):
        file = tmp_path / "file.json"
        file.write_text('{"a": {"b": 1}, "c": [true, null]}', encoding="utf-8")
        before = file.read_bytes()
        ways.add(damage_file(np.random.default_rng(seed), file, [other, file]))
        assert not file.is_file() or file.read_bytes() != before
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
    assert {"lost", "a folder in its place", f"exchanged for {tmp_path.name}/other.json", "cut", "other_json"} <= ways


def test_odd_settings_name_what_there_is(tmp_path: Path) -> None:
    stages = settings_of_commands()
    assert {"data", "sft", "rl", "evaluation", "sid lora", "serve", "keys", "update"} <= stages.keys()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        settings = list(stages.values())[seed % len(stages)]
        names = {setting.name for setting in settings}
        flags = [word[2:] for word in odd_flags(rng, settings) if word.startswith("--") and word != "--"]
        assert flags
        assert set(flags) <= names
        odd_yaml(rng, settings, tmp_path / "odd.yaml")
        content = yaml.safe_load((tmp_path / "odd.yaml").read_text(encoding="utf-8"))
        assert set(content) & names


def test_a_damaged_store_is_another_file_and_every_kind_of_damage_comes(tmp_path: Path) -> None:
    write_store(tmp_path / "whole.db")
    before, said = (tmp_path / "whole.db").read_bytes(), []
    for seed in range(120):
        file = tmp_path / "store.db"
        shutil.copyfile(tmp_path / "whole.db", file)
        said.append(damage_store(np.random.default_rng(seed), file))
        is_same = file.is_file() and file.read_bytes() == before
        assert not is_same or "(" in said[-1], said[-1]  # a cell that must not be null stays
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    for kind in (
        "UPDATE",
        "DROP TABLE",
        "RENAME COLUMN",
        "version_num",
        "DELETE",
        "CREATE",
        "random bytes",
        "cut to",
        "folder",
        "lost",
    ):
        assert any(kind in one for one in said), kind


def test_an_odd_place_is_none_where_an_answer_lies_already(tmp_path: Path) -> None:
    said = set()
    for seed in range(150):
        run_dir = tmp_path / str(seed) / "run"
        (run_dir / "data").mkdir(parents=True)
        for name in ("manifest.json", "log.csv"):
            (run_dir / "data" / name).write_text("theirs", encoding="utf-8")
        odd = odd_place(np.random.default_rng(seed), run_dir / "answer.csv", run_dir, [run_dir / "data" / "log.csv"])
        said.add(odd.said)
        assert odd.path.suffix == ".csv" or "ending" in odd.said
    assert {
        "a folder is there",
        "below a file",
        "a link to /dev/null",
        "of another user",
        "in the place of log.csv",
    } <= said


@pytest.mark.parametrize("name", list(ANSWERING))
def test_a_command_names_its_run_directory_and_what_it_reads(tmp_path: Path, name: str) -> None:
    command = ANSWERING[name].command(tmp_path / "run", tmp_path / "raw")
    assert command[:2] == ["-m", "sidrec"]
    assert any(str(tmp_path / "run") in word for word in command)
    assert not any("{" in word for word in command)


def test_a_service_is_asked_when_it_listens() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Answerer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        served = Served()
        assert not served("settings: …")
        assert served(f"serve: sft at http://127.0.0.1:{server.server_port}, its description at …\n")
        server.shutdown()
        thread.join()
    assert served.answer == '[["i1", "i2"]]'


class Answerer(http.server.BaseHTTPRequestHandler):
    """Gives one list, whatever is asked."""

    def do_POST(self) -> None:
        body = json.dumps({"lists": [{"items": [{"item_id": "i1"}, {"item_id": "i2"}]}]}).encode()
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def test_limits_hold_for_a_child(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(
        f"import pathlib; pathlib.Path({str(tmp_path / 'large')!r}).write_bytes(bytes(5000))", encoding="utf-8"
    )
    ended = run_child([str(file)], 30, limits=Limits(file_bytes=4000))
    assert "File too large" in ended.printed
    assert run_child([str(file)], 30).code == 0


def test_flags_that_a_file_names_are_left_out() -> None:
    assert without(["x.py", "--a", "1", "2", "--b", "3"], "a: 5\nc: 1\n") == ["x.py", "--b", "3"]


def test_what_is_lost(tmp_path: Path) -> None:
    for name in ("data/items", "sid/codes", "sid/log.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    before = state_of(tmp_path)
    (tmp_path / "data" / "items").unlink()
    (tmp_path / "sid" / "codes").write_text("other", encoding="utf-8")
    (tmp_path / "sid" / "log.txt").write_text("other", encoding="utf-8")
    assert changed(before, state_of(tmp_path), ("sid",)) == ["data/items"]
    assert sorted(changed(before, state_of(tmp_path), ())) == ["data/items", "sid/codes"]


def test_a_silent_difference_is_one_that_two_whole_runs_do_not_have(tmp_path: Path) -> None:
    for run in ("run", "again", "tried"):
        folder = tmp_path / run / "sft"
        folder.mkdir(parents=True)
        (folder / "model").write_text("weights", encoding="utf-8")
        (folder / "picture").write_text(run, encoding="utf-8")
        write_json(folder / "manifest.json", {"finished": True, "outputs": {"model": {}, "picture": {}}})
    small, ended = SmallRun(tmp_path), Ended(0, "")
    assert not differs(small, "sft", tmp_path / "tried", ended)
    (tmp_path / "tried" / "sft" / "model").write_text("others", encoding="utf-8")
    assert differs(small, "sft", tmp_path / "tried", ended)
    assert not differs(small, "sft", tmp_path / "tried", Ended(2, "error: refused"))
    assert Outcome.of("", ended, True, ["data/items"]).faults == ["silent", "lost"]
    assert Outcome.of("", Ended(2, ""), True, []).faults == []


@pytest.mark.slow
def test_files_of_others_are_whole_before_they_are_damaged(tmp_path: Path) -> None:
    """Every reader that needs no other stage reads the whole file. As processes: Polars' threads do not outlive a fork."""
    (tmp_path / "raw").mkdir()
    write_foreign(tmp_path / "raw")
    for number, reader in enumerate(reader for reader in READERS if not reader.starts_from):
        (run_dir := tmp_path / f"run{number}").mkdir()
        ended = run_child(reader.on(tmp_path / "raw", run_dir), 60, as_process=True)
        assert ended.code == 0, (reader.name, ended.printed)


def test_trials_are_counted_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {
        0: Ended(0, ""),
        1: Ended(2, "error: no"),
        2: Ended(1, "Traceback (most recent call last)"),
        3: Ended(HUNG, ""),
    }
    calls = tmp_path / "calls"
    calls.touch()

    def trial(rng: np.random.Generator, name: str, small: SmallRun, folder: Path, as_process: bool) -> Outcome:
        with calls.open("a", encoding="utf-8") as handle:
            handle.write(f"{as_process}\n")
        number = len(calls.read_text(encoding="utf-8").splitlines()) - 1
        return Outcome.of(
            f"trial {number}", ends[number % 4], silent=number == 0, lost=["sid/x"] if number == 1 else []
        )

    monkeypatch.setattr(
        faults,
        "TRIALS",
        {"artefacts": (trial, ("data",)), "settings": (byte_string, ("x",)), "byte_strings": (byte_string, ("x",))},
    )
    monkeypatch.setattr(faults, "PRELOADED", ())
    monkeypatch.setattr(SmallRun, "make", lambda small: small.folder.mkdir(exist_ok=True))
    flags = f"--work_dir {tmp_path / 'work'} --settings 0 --byte_strings 0 --processes 2 --workers 1 --json".split()
    for artefacts in ("2", "4", "4"):
        with pytest.raises(SystemExit) as end:
            faults.main([*flags, "--artefacts", artefacts])
        assert end.value.code == 1
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["tried"], figures["refused"], figures["hung"]) == (4, 1, 1)
    assert (figures["tracebacks"], figures["silent"], figures["lost"]) == (1, 1, 1)
    assert calls.read_text(encoding="utf-8").split() == ["True", "True", "False", "False"]
