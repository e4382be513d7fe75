"""What a training shows: one line with its size and time, one live bar, and every logged figure in log.txt."""

from __future__ import annotations

import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from sidrec.pipeline.deepspeed_build import build_deepspeed
from sidrec.pipeline.launch import refuse_wrong_number_of_processes
from sidrec.pipeline.screen import Bar, Screen, duration

KIB_PER_GIB = 1 << 20
MEASURED_STEPS, MEASURED_SECONDS = 5, 10.0  # steps, after the first, or seconds from which the time is estimated
SETTLED = 60.0  # seconds: the first estimate after these is held against what training took


@contextmanager
def stage_screen(name: str) -> Iterator[Screen]:
    """The screen of a training stage; until the stage's folder is there, its log is a temporary file. DeepSpeed is made ready."""
    refuse_wrong_number_of_processes()
    screen = Screen(name, quiet=os.environ.get("RANK", "0") != "0")
    with tempfile.TemporaryDirectory() as folder, screen.logging_to(Path(folder) / "log.txt"):
        build_deepspeed(screen)
        yield screen


@dataclass
class TimeLeft:
    """How long training will still take, in seconds, by the steps (but the first, which warms up) and validations so far."""

    steps: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    warm: bool = False

    def count_step(self, seconds: float) -> None:
        if self.warm:
            self.steps.append(seconds)
        self.warm = True

    @property
    def is_known(self) -> bool:
        """Whether enough steps have been measured."""
        return len(self.steps) >= MEASURED_STEPS or sum(self.steps) >= MEASURED_SECONDS

    def seconds(self, steps: int, validations: int) -> float:
        """Of so many more steps and validations; validations count as soon as one has been measured. NaN before the second step."""
        if not self.steps:
            return math.nan
        mean = sum(self.validations) / len(self.validations) if self.validations else 0.0
        return steps * sum(self.steps) / len(self.steps) + validations * mean


def validations_to_come(args: Any, state: Any) -> int:
    """How often a trainer will still validate, if it is not stopped early."""
    if str(args.eval_strategy.value) == "no":
        return 0
    if str(args.eval_strategy.value) == "epoch":
        an_epoch = state.global_step / state.epoch if state.epoch else state.max_steps
        return math.ceil(state.max_steps / an_epoch - 1e-6) - int(state.global_step / an_epoch + 1e-6)
    return math.ceil(state.max_steps / state.eval_steps) - state.global_step // state.eval_steps


class ShowProgress(TrainerCallback):
    """In place of transformers' bars and printed dictionaries. `what` is trained, in words.

    At the end log.txt gets what training and validation took of this process's processor time, its peak of memory, and, of a training of
    over a minute, the seconds from the first step to the last beside those foretold after a minute and a validation.
    """

    def __init__(self, screen: Screen, what: str) -> None:
        self.screen, self.what = screen, what
        self.time_left, self.announced = TimeLeft(), False
        self.open_bar = ExitStack()
        self.bar: Bar | None = None
        self.note = ""
        self.begin = self.mark = time.monotonic()
        self.cpu_mark = time.process_time()
        self.foretold: float | None = None  # seconds in all
        self.cpu_seconds = {"training": 0.0, "validation": 0.0}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm and state.is_world_process_zero:
            done, total = state.global_step, state.max_steps
            bar = self.screen.bar("training", total, "steps", done, estimates=False)  # on_step_end counts validations
            self.bar = self.open_bar.enter_context(bar)
        self._seconds_since_mark("training")
        self.begin = self.mark

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.time_left.count_step(self._seconds_since_mark("training"))
        if not self.announced and (self.time_left.is_known or state.global_step >= state.max_steps):
            self._announce(args, state)
        if self.bar is not None:
            self.bar.advance(1, self.note)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        self.time_left.validations.append(self._seconds_since_mark("validation"))
        seconds = self.time_left.seconds(state.max_steps - state.global_step, validations_to_come(args, state))
        if self.foretold is None and self.mark - self.begin >= SETTLED and seconds > 0:
            self.foretold = self.mark - self.begin + seconds
        if self.announced and seconds > 0 and state.is_world_process_zero:
            self.screen.note(f"{self.screen.stage}: {duration(seconds)} left, validations counted")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds_since_mark("training")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.screen.note(json.dumps(logs | {"step": state.global_step}, default=float))
        if "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"
        elif "eval_recall@10" in logs:
            self.note = f"valid Recall@10 {logs['eval_recall@10']:.4f}"

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.announced and state.global_step:
            self._announce(args, state)
        self.bar = None
        self.open_bar.close()
        self._seconds_since_mark("training")
        if state.is_world_process_zero:
            seconds = {f"{name}_cpu_seconds": round(spent, 1) for name, spent in self.cpu_seconds.items()}
            if (
                self.foretold is not None and state.global_step == state.max_steps
            ):  # nothing is foretold of an early stop
                seconds |= {"seconds": round(self.mark - self.begin, 1), "foretold_seconds": round(self.foretold, 1)}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB
            self.screen.note(json.dumps(seconds | {"peak_gib": round(peak, 2), "step": state.global_step}))

    def _seconds_since_mark(self, spent_on: str) -> float:
        now, cpu_now = time.monotonic(), time.process_time()
        seconds, self.mark = now - self.mark, now
        self.cpu_seconds[spent_on] += cpu_now - self.cpu_mark
        self.cpu_mark = cpu_now
        return seconds

    def _announce(self, args: Any, state: Any) -> None:
        self.announced = True
        if not state.is_world_process_zero:
            return
        steps, validations = state.max_steps - state.global_step, validations_to_come(args, state)
        seconds = self.time_left.seconds(steps, validations)
        to_go = f", about {duration(seconds)} to go" if steps and seconds > 0 else ""
        if to_go and validations and not self.time_left.validations:
            to_go += f" and {validations} validation{'s' if validations > 1 else ''} on top"
        self.screen.say(f"{self.screen.stage}: {self.what}; {state.max_steps} steps{to_go}")


def show_progress(trainer: Any, screen: Screen, what: str) -> None:
    """Let `trainer` show on `screen` what it does. what: the model and the machine, in words."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ShowProgress(screen, what))
