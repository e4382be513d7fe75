"""What a stage shows on a terminal, what where its output goes to a file, and what goes to its log only."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from pathlib import Path

import pytest

from sidrec.pipeline import screen as screen_module
from sidrec.pipeline.screen import Screen, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that bars see, as the only entry."""
    now = [100.0]
    monkeypatch.setattr(screen_module.time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


def test_a_redirected_bar_says_a_line_a_minute_and_is_never_silent(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Screen("sft").bar("training", total=600, unit="steps") as bar:
        for step in range(1, 601):
            clock[0] += 1.0
            bar.advance(1, f"loss {600 - step}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11  # after 2, 62, 122, … 542 seconds, and at the end
    assert lines[0] == "sft: training, 600 steps, about 10 min to go"
    assert lines[1] == "training 10% 62/600 steps, 1.0 steps/s, 9 min left, loss 538"
    assert lines[-1] == "training: 600 steps in 10 min"


def test_a_short_bar_leaves_no_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Screen("sid").bar("k-means", total=5, unit="iterations") as bar:
        for _ in range(5):
            clock[0] += 1.0
            bar.advance()
    assert capsys.readouterr().out == ""


def test_the_estimate_is_of_the_first_seconds_and_said_once(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Screen("evaluation").bar("ranking, test", total=100, unit="lists") as bar:
        bar.advance(0)
        clock[0] += 3.0
        bar.advance(0)  # nothing is measured yet
        assert capsys.readouterr().out == ""
        clock[0] += 1.0
        bar.advance(10)
        assert capsys.readouterr().out == "evaluation: ranking, test, 100 lists, about 36 s to go\n"
        clock[0] += 10.0
        bar.advance(10)
        assert capsys.readouterr().out == ""


def test_who_estimates_otherwise_gets_no_estimate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Screen("sft").bar("training", total=100, unit="steps", estimates=False) as bar:
        for _ in range(30):
            clock[0] += 1.0
            bar.advance()
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal_is_drawn_over_itself_and_wiped(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(screen_module.os, "get_terminal_size", lambda *_: screen_module.os.terminal_size((60, 24)))
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen("sft")
    with screen.bar("training", total=10, unit="steps") as bar:
        for _ in range(10):
            clock[0] += 1.0
            bar.advance()
        screen.say("a word in between")
    drawn = terminal.getvalue()
    assert drawn.count("\n") == 2
    assert "\rsft: training, 10 steps, about 8 s to go\n" in drawn
    assert max(len(part) for part in drawn.replace("\n", "\r").split("\r")) < 60
    assert "\rtraining ━━" in drawn
    assert drawn.endswith("\ra word in between\n")


def test_a_resumed_bar_counts_its_rate_from_where_it_began(clock: list[float]) -> None:
    with Screen("sft", quiet=True).bar("training", total=100, unit="steps", done=90) as bar:
        clock[0] += 5.0
        bar.advance(5)
        assert "95/100 steps, 1.0 steps/s, 5 s left" in bar.text(clock[0])


def test_what_libraries_print_goes_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.__stderr__)
    logger = logging.getLogger("a.library")
    logger.addHandler(handler)
    screen = Screen("sft")
    with screen.logging_to(tmp_path / "sft" / "log.txt"):
        print({"loss": 1.5})
        print("10%\r20%\r30%", file=sys.stderr)
        warnings.warn("old call", stacklevel=1)
        logger.warning("a warning")
        screen.note("details")
        screen.say("for people")
    logger.removeHandler(handler)
    print("after")
    assert capsys.readouterr().out == "for people\nafter\n"
    log = (tmp_path / "sft" / "log.txt").read_text()
    for text in ("{'loss': 1.5}", "\n30%\n", "UserWarning: old call", "a warning", " details", " for people"):
        assert text in log
    assert "10%" not in log
    assert "after" not in log


def test_an_error_leaves_the_screen_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen("sft")
    with pytest.raises(ZeroDivisionError), screen.logging_to(tmp_path / "log.txt"):
        raise ZeroDivisionError
    print("seen")
    screen.say("heard")
    assert capsys.readouterr().out == "seen\nheard\n"


def test_quiet_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen("sft", quiet=True)
    screen.begin("training")
    screen.summary("sft", ["done"])
    assert capsys.readouterr().out == ""


def test_a_summary_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    Screen("data").summary("data", ["x" * 300, "[0.4933–0.5123] [bold]"])
    assert capsys.readouterr().out == f"data: {'x' * 300}\n  [0.4933–0.5123] [bold]\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (99, "99 s"), (100, "2 min"), (5000, "83 min"), (12_000, "3 h 20 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
