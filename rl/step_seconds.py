"""Where the time of an update goes: seconds of its parts, by this process's clock, beside the other figures of the log."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

PARTS = ("generate", "lists", "rewards", "forward", "backward", "update")


class StepSeconds(TrainerCallback):
    """Adds up the seconds of an update's parts, and hands them to `note` at its end: `seconds/step`, from its first batch to the end of
    its weights' update, and `seconds/<part>` of every part that there was.

    A part within another counts for itself alone, so that all parts together are at most the step. On a GPU the clock does not wait for
    what it has been given to do: a part that asks for a result waits for all before it.
    """

    def __init__(self, note: Callable[[str, float], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self.note, self.clock = note, clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.open: list[str] = []
        self.mark = self.began = clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done within counts as this part, one of PARTS."""
        assert name in PARTS, name
        self._turn()
        self.open.append(name)
        try:
            yield
        finally:
            self._turn()
            self.open.pop()

    def _turn(self) -> None:
        """Give the seconds since the last turn to the innermost open part."""
        now = self.clock()
        if self.open:
            self.seconds[self.open[-1]] += now - self.mark
        self.mark = now

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.clear()
        self.began = self.clock()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._turn()
        self.open.append("update")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._turn()
        self.open.remove("update")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, seconds in self.seconds.items():
            self.note(f"seconds/{name}", seconds)
        self.note("seconds/step", self.clock() - self.began)
