"""`sidrec serve` as a user runs it: how it starts, how it ends, and what kill -9 leaves."""

from __future__ import annotations

import importlib.util
import shutil
import threading
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from run_dirs import assert_one_sentence, exit_code, finished_rq_run

from benchmarks.served_child import ServedChild
from sidrec.serving.store import Store

SERVE = "serving/serve.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("process") / "run"
    shutil.copytree(finished_rq_run(tmp_path_factory), run)
    assert exit_code("serving/make_bundle.py", "--run_dir", run) == 0
    return run / "bundle"


def events(*names: str) -> dict[str, Any]:
    return {"events": [{"event_id": name, "user_id": "ann", "item_id": "i1", "timestamp": 1} for name in names]}


@pytest.mark.slow
def test_what_was_acknowledged_outlives_kill_9_and_sigterm_ends_in_order(bundle: Path, location: str) -> None:
    acknowledged: list[str] = []

    def send(number: int, child: ServedChild) -> None:
        connection, sent = child.connect(), 0
        while True:
            names = [f"{number} {sent} {place}" for place in range(3)]
            try:
                status, _ = connection.post("/events", events(*names))
            except (OSError, HTTPException):
                return
            assert status == 200
            acknowledged.extend(names)
            sent += 1

    child = ServedChild(bundle, location)
    threads = [threading.Thread(target=send, args=(number, child)) for number in range(3)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 60:
        pass
    child.kill()
    for thread in threads:
        thread.join()

    child = ServedChild(bundle, location, "--batch_ms", "1000")
    answers: list[tuple[int, Any]] = []

    def ask() -> None:
        answers.append(child.connect().post("/recommend", {"requests": [{"user": "ann"}]}))

    asking = [threading.Thread(target=ask) for _ in range(5)]
    for thread in asking:
        thread.start()
    while not answers and b"sidrec_queue_length 5.0" not in child.connect().send("GET", "/metrics", None, {})[1]:
        pass
    code, said = child.stop()  # while five wait for the batch to fill
    for thread in asking:
        thread.join()
    assert code == 0, said
    assert "Traceback" not in said
    assert [status for status, _ in answers] == [200] * 5
    with pytest.raises(ConnectionRefusedError):
        child.connect().post("/events", events("late"))
    with closing(Store.open(location)) as store:
        assert store.counts().lists == 5
        with store.engine.connect() as connection:
            stored = set(connection.exec_driver_sql("SELECT event_id FROM events").scalars())
    assert len(acknowledged) >= 60
    assert set(acknowledged) <= stored


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 needs keys, and the store has none"),
        (["--port", "70000"], "--port 70000 is no port"),
        (["--batch_ms", "-1"], "--batch_ms -1.0 is not from 0 to 1000 milliseconds"),
        (["--max_k", "0"], "--max_k 0 is not from 1 to 2,147,483,647"),
        (["--max_history", str(2**40)], f"--max_history {2**40} is not from 1"),
        (["--host", "a..b"], "--host a..b --port 8000 cannot be listened on (no name of a host)"),
        (["--host", "x" * 300], "cannot be listened on"),
        (["--store", ""], "--store would be lost with the process"),
        (["--store", ":memory:"], "--store would be lost with the process"),
        (["--bundles", "nowhere"], "--bundles nowhere: there is no such folder"),
        (["--bundle", "nowhere"], "nowhere"),
        (["--beside", "nowhere"], "nowhere"),
        (["--host", "no.such.host.invalid", "--require_keys", "false"], "cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_sentence(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    named = [] if "--bundle" in flags else ["--bundle", bundle]
    capsys.readouterr()
    free = [] if "--port" in flags or "a..b" in flags else ["--port", "0"]
    assert exit_code(SERVE, *named, "--store", tmp_path / "store.db", *free, *flags) == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert words in said
    if not {"--host", "--store"} & set(flags):  # keys are in a store
        assert not (tmp_path / "store.db").exists(), "it is said before anything is made"


def test_a_port_in_use_is_said(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sidrec.serving.serve import listening

    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        flags = ["--bundle", bundle, "--store", tmp_path / "store.db", "--port", str(port)]
        assert exit_code(SERVE, *flags) == 2
    assert f"--port {port} cannot be listened on" in capsys.readouterr().err
    assert not (tmp_path / "store.db").exists(), "it is said before anything is made"


def test_a_missing_extra_is_named(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else real(name, *rest)
    )
    assert exit_code(SERVE, "--bundle", bundle, "--store", tmp_path / "store.db") == 2
    assert 'serving needs uvicorn, which is not installed: run `pip install "sidrec[serve]"`' in capsys.readouterr().err
