"""`sidrec serve` as a process of its own, and one connection to it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import ROOT, stage_environment
from sidrec.pipeline.errors import InputError

SECONDS = 60  # to start, to answer and to end


class ServedChild:
    """A service of this bundle and store on a free port of 127.0.0.1. Raises InputError, with its words, where it does not start."""

    def __init__(self, bundle: Path, store: str, *flags: str, threads: int = 1) -> None:
        command = [sys.executable, "-m", "sidrec", "serve", "--bundle", str(bundle), "--store", store, "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            env=stage_environment(threads),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            listening = re.search(r" at http://127\.0\.0\.1:(\d+),", line)
            if listening:
                self.port = int(listening[1])
                return
        raise InputError(f"sidrec serve did not start: {' '.join(said[-3:])}")

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds so far, of all its threads."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def connect(self) -> Connection:
        return Connection(self.port)

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.communicate(timeout=SECONDS)

    def stop(self) -> tuple[int, str]:
        """SIGTERM; the exit code, and what it said since it began to listen."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, said


class Connection:
    """One that is kept; for one thread."""

    def __init__(self, port: int) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body. Raises OSError or HTTPException when there is no answer."""
        try:
            self.http.request(method, path, body, headers)
            response = self.http.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.http.close()
            raise

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Of a JSON body, the status and the answer."""
        status, answer = self.send("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return status, json.loads(answer)
