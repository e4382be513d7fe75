"""benchmarks/deepspeed_killed.py: what it takes for compiling, that nothing of a killed launch is left, and how it judges the next one."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import deepspeed_killed
from benchmarks.deepspeed_killed import KilledConfig, kill_all, kill_while_compiling, sign_of_compiling, trained
from sidrec.pipeline.errors import InputError


def start(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["bash", "-c", script], start_new_session=True)


def test_a_compiler_below_the_launch_or_torchs_lock_is_a_sign(tmp_path: Path) -> None:
    program = shutil.copy(str(shutil.which("sleep")), tmp_path / "cc1plus")
    machine = tmp_path / "machine"
    launch = start("sleep 30 & wait")
    assert sign_of_compiling(launch.pid, machine) is None
    (machine / "extensions" / "comm").mkdir(parents=True)
    (machine / "extensions" / "comm" / "lock").touch()
    assert sign_of_compiling(launch.pid, machine) == "torch's lock appeared"
    kill_all(launch)
    launch = start(f"{program} 30 & wait")
    deadline = time.monotonic() + 30
    while sign_of_compiling(launch.pid, tmp_path / "absent") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sign_of_compiling(launch.pid, tmp_path / "absent") == "cc1plus began"
    kill_all(launch)
    assert sign_of_compiling(launch.pid, machine) is None, "no launch, no sign"


def test_nothing_of_a_killed_launch_is_left(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    launch = start(f"trap '' TERM; bash -c 'setsid sleep 60 & echo $! > {tmp_path}/pid; wait' & wait")
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    below = psutil.Process(launch.pid).children(recursive=True)
    assert len(below) >= 2
    assert kill_while_compiling(launch, tmp_path, delay=0.0) == "torch's lock appeared"
    assert launch.returncode == -9
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in below)


def test_a_launch_that_compiles_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compiled nothing"):
        kill_while_compiling(start("sleep 0.2"), tmp_path, delay=0.0)


def test_only_a_launch_that_trained_in_time_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "launch.log").write_text("error: no space for that")
    assert trained(start("exit 3"), run_dir) == "ended with code 3: 'error: no space for that'"
    assert "ended with code 0" in str(trained(start("true"), run_dir)), "it left no model"
    (run_dir / "sft").mkdir(parents=True)
    (run_dir / "sft" / "model.safetensors").touch()
    assert trained(start("true"), run_dir) is None
    monkeypatch.setattr(deepspeed_killed, "MOST_SECONDS", 0.3)
    hanging = start("sleep 60")
    assert trained(hanging, run_dir) == "hung for 0.3 s"
    assert hanging.poll() is not None


def test_what_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--tries is 0"):
        KilledConfig(tries=0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no C\\+\\+ compiler"):
        deepspeed_killed.main(["--tries", "1"])
