"""Requests are gathered into batches, and one thread asks the model, so that the event loop never waits for it.

A batch is sent when it is full, or its oldest request has waited for the deadline beside a thread that is free: while the model works, the
next batch gathers, and clients that have just been answered may join it. Requests with the same question about different histories are one
call of `sidrec.serving.answer.answer`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from sidrec.pipeline.errors import InputError
from sidrec.serving.answer import Question, answer, may_be_recommended
from sidrec.serving.bundle import Bundle
from sidrec.serving.generation import Generation
from sidrec.serving.item_filter import allowed_by
from sidrec.serving.metrics import Metrics


@dataclass(frozen=True)
class Wish:
    """A request without its history; equal ones are answered together. where: conditions as JSON. exclude: item ids."""

    k: int
    keep_seen: bool
    diversity: int | None
    where: str
    exclude: frozenset[str]
    temperature: float | None = None

    def question(self, bundle: Bundle) -> Question:
        """Raises InputError for conditions that do not fit the catalogue's columns."""
        conditions, allowed = json.loads(self.where), None
        if conditions:
            allowed = allowed_by(bundle.items, conditions)
        if self.exclude:
            allowed = np.ones(len(bundle.items), dtype=bool) if allowed is None else allowed
            allowed[[bundle.index_of[name] for name in self.exclude if name in bundle.index_of]] = False
        return Question(self.k, self.keep_seen, allowed, self.diversity, temperature=self.temperature)


@dataclass(frozen=True, eq=False)
class Job:
    """history: item indices, oldest first. why_empty: what is said where there are none."""

    generation: Generation
    history: np.ndarray
    why_empty: str | None
    wish: Wish


@dataclass(frozen=True)
class Answer:
    """items: as `ListedItem`. propensities: of the items of a drawn list."""

    reason: str | None
    items: list[dict[str, Any]]
    propensities: list[float] | None = None


@dataclass(eq=False)
class _Waiting:
    job: Job
    future: asyncio.Future[Answer]
    since: float


def answer_together(jobs: Sequence[Job]) -> list[Answer | Exception]:
    """The answer to each, or why there is none; a fault of one leaves those with other questions alone."""
    together: dict[tuple[int, Wish], list[int]] = {}
    for number, job in enumerate(jobs):
        together.setdefault((id(job.generation), job.wish), []).append(number)
    answers: dict[int, Answer | Exception] = {}
    for numbers in together.values():
        alike = [jobs[number] for number in numbers]
        try:
            answers |= zip(numbers, _answers(alike), strict=True)
        except Exception as error:  # each of the requests says it
            answers |= dict.fromkeys(numbers, error)
    return [answers[number] for number in range(len(jobs))]


def _answers(jobs: Sequence[Job]) -> list[Answer]:
    """Of jobs with the same question."""
    bundle = jobs[0].generation.bundle
    question = jobs[0].wish.question(bundle)
    rows = answer(
        bundle,
        [job.history for job in jobs],
        question,
        [str(number) for number in range(len(jobs))],
        [job.why_empty for job in jobs],
    )
    chances: list[list[float]] = [[] for _ in jobs]
    if "propensity" in rows.columns:
        drawn = rows.select(pl.col("user_id").cast(pl.Int64), "propensity").drop_nulls()
        for number, propensity in drawn.iter_rows():
            chances[number].append(propensity)
        rows = rows.drop("propensity")
    lists: list[list[dict[str, Any]]] = [[] for _ in jobs]
    reasons: list[str | None] = [None] * len(jobs)
    for number, rank, item_id, title, score, sid, cold, reason in rows.iter_rows():
        reasons[int(number)] = reason
        if item_id is not None:
            item = {"rank": rank, "item_id": item_id, "title": title, "score": score, "sid": sid, "cold": cold}
            lists[int(number)].append(item)
    return [Answer(reason, items, drawn or None) for reason, items, drawn in zip(reasons, lists, chances, strict=True)]


class Batcher:
    """wait: seconds that a request waits for others while the model has nothing to do; 0: each is answered alone. most: of a batch.

    Its methods are called on the event loop. work: what the thread does with a batch.
    """

    def __init__(
        self,
        wait: float,
        most: int,
        metrics: Metrics,
        work: Callable[[Sequence[Job]], list[Answer | Exception]] = answer_together,
    ) -> None:
        self.wait, self.most, self.metrics, self.work = wait, most if wait else 1, metrics, work
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_busy, self._free_since = False, 0.0
        metrics.queue.set_function(lambda: len(self._waiting))

    def ask(self, job: Job) -> asyncio.Future[Answer]:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(job, loop.create_future(), loop.time())
        self._waiting.append(waiting)
        self._consider()
        return waiting.future

    def close(self) -> None:
        """Let the thread end; to be called when nothing is asked any more."""
        self._thread.shutdown()

    def _consider(self) -> None:
        """Send a batch if it is time, else see to it that somebody asks again."""
        if self._is_busy or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        due = max(self._waiting[0].since, self._free_since) + self.wait
        if len(self._waiting) >= self.most or due <= loop.time():
            self._send()
        elif self._timer is None:
            self._timer = loop.call_at(due, self._is_due)

    def _is_due(self) -> None:
        self._timer = None
        if self._waiting and not self._is_busy:
            self._send()

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [self._waiting.popleft() for _ in range(min(self.most, len(self._waiting)))]
        self._is_busy = True
        done = asyncio.get_running_loop().run_in_executor(self._thread, self._work, [each.job for each in batch])
        done.add_done_callback(lambda result: self._give_out(batch, result))

    def _work(self, jobs: list[Job]) -> list[Answer | Exception]:
        began = time.perf_counter()
        try:
            return self.work(jobs)
        finally:
            self.metrics.model_seconds.inc(time.perf_counter() - began)
            self.metrics.batch_sizes.observe(len(jobs))

    def _give_out(self, batch: list[_Waiting], done: asyncio.Future[list[Answer | Exception]]) -> None:
        self._is_busy, self._free_since = False, asyncio.get_running_loop().time()
        error = done.exception()
        results = [error] * len(batch) if error is not None else done.result()
        for waiting, result in zip(batch, results, strict=True):
            if waiting.future.done():  # its client is gone
                continue
            if isinstance(result, BaseException):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(result)
        self._consider()


def warm_up(generation: Generation) -> None:
    """Answer once, so that what is made once is there. Raises InputError where the bundle cannot answer."""
    bundle = generation.bundle
    assert len(bundle.index_of) == len(bundle.shelf)  # which are made once
    items = np.flatnonzero(may_be_recommended(bundle, Question()))
    if not len(items):
        raise InputError(f"{generation.folder} has no item to recommend.")
    answer(bundle, [items[:1]], Question())
