"""What a stage shows: a line when it starts, one live bar, a summary; everything else goes to the stage's log.txt."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO

SECONDS_BETWEEN_LINES = 60.0  # of a bar where output goes to a file
MEASURED_SECONDS = 2.0  # of work, from which the time of the rest is estimated
LONG_SECONDS = 5.0  # of work to come, which a line announces
SECONDS_BETWEEN_DRAWINGS = 0.2
BAR_WIDTH = 24
LIBRARIES_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


class Bar:
    """Progress of one piece of work: its share, rate and time left. total: in `unit`s. estimates: whether it says how long it will take."""

    def __init__(self, screen: Screen, label: str, total: float, unit: str, done: float, estimates: bool) -> None:
        self.screen, self.label, self.total, self.unit = screen, label, total, unit
        self.start = self.drawn = time.monotonic()
        self.first, self.done, self.note = done, done, ""
        self.estimates, self.lines = estimates, 0

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more as done. note: a few words behind the bar, such as the loss."""
        self.done, self.note = self.done + amount, note or self.note
        now = time.monotonic()
        if self.estimates and now - self.start >= MEASURED_SECONDS and self.done > self.first:
            self.estimates = False
            self._announce(now)
        if self.screen.is_terminal:
            if now - self.drawn >= SECONDS_BETWEEN_DRAWINGS:
                self.drawn = now
                self.screen.draw(self.text(now))
        elif now - self.drawn >= SECONDS_BETWEEN_LINES:
            self.lines, self.drawn = self.lines + 1, now
            self.screen.say(self.text(now))

    def _announce(self, now: float) -> None:
        """A line with the time of the rest, measured from what is done, if it is long."""
        seconds = (self.total - self.done) * (now - self.start) / (self.done - self.first)
        if seconds >= LONG_SECONDS:
            self.lines, self.drawn = self.lines + 1, now
            begun = "" if self.label.startswith(self.screen.stage) else f"{self.screen.stage}: "
            self.screen.say(f"{begun}{self.label}, {self.total:,.0f} {self.unit}, about {duration(seconds)} to go")

    def text(self, now: float) -> str:
        """The bar as one line."""
        seconds = max(now - self.start, 1e-9)
        rate = (self.done - self.first) / seconds
        share = self.done / self.total if self.total else 1.0
        drawn = (
            f"{'━' * round(BAR_WIDTH * min(share, 1.0)):<{BAR_WIDTH}}" if self.screen.is_terminal else f"{share:.0%}"
        )
        left = f", {duration((self.total - self.done) / rate)} left" if rate > 0 and share < 1 else ""
        pace = (
            f"{rate:,.1f} {self.unit}/s" if rate >= 1 or not rate else f"{1 / rate:,.1f} s per {self.unit.rstrip('s')}"
        )
        note = f", {self.note}" if self.note else ""
        return f"{self.label} {drawn} {self.done:,.0f}/{self.total:,.0f} {self.unit}, {pace}{left}{note}"


class Screen:
    """Where a stage writes for people to read.

    stage: its name, which begins its lines. quiet: say nothing (of several processes, all but the first). Lines are never cut or wrapped.
    """

    def __init__(self, stage: str, quiet: bool = False) -> None:
        self.stage, self.quiet = stage, quiet
        self.stream: IO[str] = sys.stdout
        self.is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        self.log: IO[str] | None = None
        self.lines = _Lines(io.StringIO())  # what libraries write goes through it to the log
        self.width = 0

    def say(self, line: str) -> None:
        """A line on the screen and in the log."""
        self.note(line)
        if self.quiet:
            return
        self._wipe()
        self.stream.write(f"{line}\n")
        self.stream.flush()

    def note(self, text: str) -> None:
        """Details that go to the log only, with the time."""
        if self.log is not None:
            self.log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
            self.log.flush()

    def begin(self, what: str) -> None:
        """The stage's first line: what it does. How long its parts take, their bars measure and say."""
        self.say(f"{self.stage}: {what}")

    def summary(self, title: str, lines: Sequence[str]) -> None:
        """The stage's last words: what came of it, and where the files are."""
        for number, line in enumerate(lines):
            self.say(f"{title}: {line}" if number == 0 else f"  {line}")

    @contextlib.contextmanager
    def bar(
        self, label: str, total: float, unit: str = "items", done: float = 0, estimates: bool = True
    ) -> Iterator[Bar]:
        """A live bar for the block, or a line a minute where the output is no terminal. Of long work a line says how much time it will
        take, as soon as that is measured; `estimates` is False where something else says it."""
        bar = Bar(self, label, total, unit, done, estimates)
        try:
            yield bar
        finally:
            self._wipe()
            now = time.monotonic()
            text = f"{label}: {bar.done - bar.first:,.0f} {unit} in {duration(now - bar.start)}"
            self.say(text) if bar.lines and not self.is_terminal else self.note(text)

    def draw(self, text: str) -> None:
        """Put a bar's line in the place of the one before."""
        columns = os.get_terminal_size(self.stream.fileno()).columns if self.is_terminal else 80
        text = text[: columns - 1]
        self.stream.write("\r" + text + " " * max(self.width - len(text), 0))
        self.stream.flush()
        self.width = len(text)

    def _wipe(self) -> None:
        if self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.width = 0

    @contextlib.contextmanager
    def logging_to(self, file: Path) -> Iterator[None]:
        """For the block, `note`, Python's warnings and logging, and what libraries print or draw go to `file`, which is added to.

        A traceback and what other programs write are not touched.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            self.log = file.open("a", encoding="utf-8", errors="replace")
            self.lines = log = _Lines(self.log)
            undo.callback(log.close_log)
            undo.callback(setattr, self, "log", None)
            undo.enter_context(warnings.catch_warnings())
            warnings.showwarning = lambda message, category, filename, line, *_: self.note(
                f"{filename}:{line}: {category.__name__}: {message}"
            )
            undo.enter_context(contextlib.redirect_stdout(log))
            undo.enter_context(contextlib.redirect_stderr(log))
            undo.enter_context(_handlers_write_to(log))
            for name, value in LIBRARIES_BARS.items():
                os.environ.setdefault(name, value)
            yield

    def log_on_to(self, file: Path) -> None:
        """Let the log go on in `file`, which is added to, with what it holds so far: a stage speaks before its folder is there."""
        assert self.log is not None, "log_on_to is called in a block of logging_to"
        self.log.flush()
        first_words = Path(self.log.name).read_text(encoding="utf-8", errors="replace")
        self.lines.close_log()
        self.log = self.lines.log = file.open("a", encoding="utf-8", errors="replace")
        self.log.write(first_words)
        self.log.flush()


class _Lines(io.TextIOBase):
    """Whole lines of a stream; a bar that is drawn over itself leaves its last state only."""

    def __init__(self, log: IO[str]) -> None:
        self.log, self.rest = log, ""

    def close_log(self) -> None:
        self.log.close()

    def write(self, text: str) -> int:
        if self.log.closed:  # a handler that a library made meanwhile outlives the block
            return len(text)
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            last = line.rstrip("\r").rpartition("\r")[2].rstrip()
            if last:
                self.log.write(f"{last}\n")
        return len(text)

    def flush(self) -> None:
        if not self.log.closed:
            self.log.flush()


@contextlib.contextmanager
def _handlers_write_to(log: _Lines) -> Iterator[None]:
    """Let every logging handler that writes to the screen write to `log` instead."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    handlers = {
        handler
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
        and getattr(handler, "stream", None) in (sys.__stderr__, sys.__stdout__)
    }
    streams = [(handler, handler.stream) for handler in handlers]
    for handler in handlers:
        handler.stream = log
    try:
        yield
    finally:
        for handler, stream in streams:
            handler.stream = stream


def duration(seconds: float) -> str:
    """Seconds in words: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
