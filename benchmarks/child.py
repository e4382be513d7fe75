"""A command of the project as a child of this process: forked, so that what takes long to import is there, or a process of its own."""

from __future__ import annotations

import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import ROOT, stage_environment

MEMORY = 6 << 30  # bytes that a child may have beyond what its parent has
MOST_READ = 1 << 16  # bytes of what it prints, for `until`
HUNG = -1
STRANGER = 65534  # the user nobody


@dataclass(frozen=True)
class Limits:
    """Of a forked child. file_bytes: of each file that it writes; open_files: how many it has at one time; None: as many as its parent.
    is_stranger: whether the files are another user's, for which this process must be root's."""

    file_bytes: int | None = None
    open_files: int | None = None
    is_stranger: bool = False


@dataclass(frozen=True)
class Ended:
    """code: the exit code; HUNG where the child was killed because its time was up. printed: the last of what it wrote. repeated: as a
    process of its own, after a signal had ended its fork, which may be the fork's fault: torch is not made to be forked."""

    code: int
    printed: str
    repeated: bool = False

    @property
    def is_traceback(self) -> bool:
        """Neither success nor one sentence."""
        return self.code not in (0, 2, HUNG) or "Traceback (most recent call last)" in self.printed


def run_child(
    command: list[str],
    seconds: float,
    as_process: bool = False,
    until: Callable[[str], bool] = lambda said: False,
    limits: Limits | None = None,
) -> Ended:
    """Run what stands behind `python`, killed after `seconds`, or when `until` holds of what it has printed. as_process: by an interpreter
    of its own, as a user does it. limits: it runs under these, and as a fork."""
    as_process = as_process and limits is None
    with tempfile.TemporaryFile() as output:
        if as_process:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=stage_environment(1),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            pid = process.pid
        else:
            pid = os.fork()
            if pid == 0:
                _become(command, output.fileno(), limits or Limits())
        code = _wait(pid, seconds, lambda: until(os.pread(output.fileno(), MOST_READ, 0).decode("utf-8", "replace")))
        if not as_process and limits is None and code < 0 and code != HUNG:
            return replace(run_child(command, seconds, True, until), repeated=True)
        output.seek(0)
        return Ended(code, output.read().decode("utf-8", "replace")[-4000:])


def _wait(pid: int, seconds: float, until: Callable[[], bool]) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return HUNG


def _become(command: list[str], output: int, limits: Limits) -> None:
    """Run the command in this forked process, and end it."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", errors="replace") for number in (1, 2))
    os.chdir(ROOT)
    _obey(limits)
    code = 1
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(command)
            runpy.run_path(str(Path(ROOT, command[0])), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _obey(limits: Limits) -> None:
    """Let them hold for this process."""
    for kind, most in ((resource.RLIMIT_FSIZE, limits.file_bytes), (resource.RLIMIT_NOFILE, limits.open_files)):
        if most is not None:
            resource.setrlimit(kind, (most, most))
    if limits.is_stranger:
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
