"""The lock of DeepSpeed's compiler: one that a dead compiler left is swept, a missing compiler is one sentence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sidrec.pipeline import deepspeed_build
from sidrec.pipeline.deepspeed_build import build_lock, cache_folder, refuse_missing_compiler
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen


def test_a_lock_file_of_a_dead_compiler_is_swept_with_a_sentence(tmp_path, capsys):
    stale = tmp_path / "deepspeed_shm_comm" / "lock"
    stale.parent.mkdir()
    stale.touch()
    with build_lock(tmp_path, Screen("sft")):
        assert not stale.exists()
    assert f"{stale} was left by a compiler that was killed" in capsys.readouterr().out
    with build_lock(tmp_path, Screen("sft")):
        pass
    assert capsys.readouterr().out == ""


def compile_for_ever(folder: Path, started: Path) -> None:
    """What a first launch does until it is killed: holds the lock, has torch's lock file there."""
    with build_lock(folder, Screen("sft", quiet=True)):
        (folder / "deepspeed_shm_comm").mkdir(exist_ok=True)
        (folder / "deepspeed_shm_comm" / "lock").touch()
        started.touch()
        time.sleep(600)


def test_a_killed_compiler_does_not_make_the_next_one_wait(tmp_path):
    for attempt in range(3):
        started = tmp_path / f"started{attempt}"
        process = multiprocessing.get_context("spawn").Process(target=compile_for_ever, args=(tmp_path, started))
        process.start()
        limit = time.monotonic() + 120
        while not started.exists():
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        before = time.monotonic()
        with build_lock(tmp_path, Screen("sft", quiet=True)):
            assert not (tmp_path / "deepspeed_shm_comm" / "lock").exists()
        assert time.monotonic() - before < 5


def test_a_missing_compiler_is_one_sentence_that_names_the_package(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"`no-such-compiler` is missing; install it \(`apt install g\+\+`\)"):
        refuse_missing_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"`ninja` is missing; install it \(`pip install ninja`\)"):
        refuse_missing_compiler()


def test_nothing_of_deepspeed_is_imported_unless_it_is_asked_for(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    before = {name for name in sys.modules if name.startswith("deepspeed")}
    deepspeed_build.build_deepspeed(Screen("sft", quiet=True))
    assert {name for name in sys.modules if name.startswith("deepspeed")} == before


def test_extensions_lie_in_a_folder_of_this_projects_for_this_torch(monkeypatch, tmp_path):
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path / "sidrec")
    assert torch.__version__ in cache_folder().name
