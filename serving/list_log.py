"""Served lists go into the store in the background: a bounded queue, and one thread that writes many in one transaction."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from sidrec.pipeline.errors import InputError
from sidrec.serving.metrics import Metrics
from sidrec.serving.store import Removed, ServedList, Store

MOST_WAITING, MOST_TOGETHER = 10_000, 500
RETRY_SECONDS = 1.0


class ListLog:
    """A list that the queue has no room for is lost, and counted; so is one that the store refuses. While the store is away, lists wait."""

    def __init__(self, store: Store, metrics: Metrics, most_waiting: int = MOST_WAITING) -> None:
        self.store, self.metrics = store, metrics
        self._queue: queue.Queue[tuple[float, ServedList] | None] = queue.Queue(most_waiting)
        self._writing = threading.Lock()
        self._forgotten: dict[str, float] = {}  # users, and when they were deleted
        self._closing = threading.Event()
        self._is_given_up = False
        self._thread = threading.Thread(target=self._write_all, name="list-log")
        metrics.lists_waiting.set_function(self._queue.qsize)
        self._thread.start()

    def add(self, served: ServedList, began: float) -> None:
        """began: when its history was read, by `time.monotonic`."""
        try:
            self._queue.put_nowait((began, served))
        except queue.Full:
            self.metrics.lists_lost.inc()

    def delete_user(self, user: str) -> Removed:
        """Delete a user's rows from the store, and what was to become one: lists of requests that began before."""
        with self._writing:
            removed = self.store.delete_user(user)
            self._forgotten[user] = time.monotonic()
            return removed

    def close(self) -> None:
        """Write what waits, and end. What a store that is away does not take is lost, and said on stderr."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            batch = [self._queue.get()]
            while len(batch) < MOST_TOGETHER and not self._queue.empty():
                batch.append(self._queue.get())
            is_open = None not in batch
            self._write([each for each in batch if each is not None])

    def _write(self, batch: Sequence[tuple[float, ServedList]]) -> None:
        while not self._is_given_up:
            try:
                with self._writing:
                    remembered = [
                        served for began, served in batch if began > self._forgotten.get(served.user_id or "", -1)
                    ]
                    self.metrics.lists_logged.inc(self.store.log_lists(remembered))
                return
            except InputError:
                if len(batch) == 1:
                    self.metrics.lists_lost.inc()
                else:
                    for each in batch:
                        self._write([each])
                return
            except SQLAlchemyError as error:
                if self._closing.is_set():
                    sys.stderr.write(
                        f"served lists that waited are lost: the store does not answer ({type(error).__name__})\n"
                    )
                    self._is_given_up = True
                self._closing.wait(RETRY_SECONDS)
        self.metrics.lists_lost.inc(len(batch))
