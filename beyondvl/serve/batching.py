"""Requests that come together are encoded together: one thread runs the model on whatever is waiting, up to a limit.

While the model works, requests pile up and make the next batch; a single one waits for nobody. An item that cannot be
read fails alone.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

import numpy as np

from ..outcomes import counted

__all__ = ["Batcher", "Busy"]


class Busy(Exception):
    """More items wait than may."""


class Batcher:
    """Runs `model.encode` in a thread of its own.

    Args:
        model: what encodes.
        max_batch: items of one run.
        max_waiting: items that may wait; beyond them `submit` raises Busy.
        watch: told how many items each run has.
    """

    def __init__(self, model: Any, max_batch: int, max_waiting: int, watch: Any):
        self.model, self.max_batch, self.max_waiting, self.watch = model, max_batch, max_waiting, watch
        self._jobs: deque[tuple[list[Any], Future]] = deque()
        self._waiting = 0
        self._ready = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="beyondvl-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that wait or are being encoded."""
        return self._waiting

    def submit(self, items: list[Any]) -> Future:
        """A future of (rows [n, D] of unit length, {place: error} of those that failed, whose rows are NaN)."""
        future: Future = Future()
        with self._ready:
            if not self._open:
                raise Busy("the server is closing")
            if self._waiting + len(items) > self.max_waiting and self._waiting:
                raise Busy(f"{self._waiting} items wait, expected at most {self.max_waiting}")
            self._waiting += len(items)
            self._jobs.append((items, future))
            self._ready.notify()
        return future

    def close(self) -> None:
        """Ends when what waits is done."""
        with self._ready:
            self._open = False
            self._ready.notify()
        self._thread.join()

    def _take(self) -> list[tuple[list[Any], Future]] | None:
        """Jobs of one run; None when it is closed and nothing waits."""
        with self._ready:
            while self._open and not self._jobs:
                self._ready.wait()
            if not self._jobs:
                return None
            taken, count = [], 0
            while self._jobs and (not taken or count + len(self._jobs[0][0]) <= self.max_batch):
                items, future = self._jobs.popleft()
                if future.set_running_or_notify_cancel():
                    taken.append((items, future))
                    count += len(items)
                else:  # nobody waits for it any more
                    self._waiting -= len(items)
            return taken

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            items = [item for some, _ in jobs for item in some]
            try:
                self._encode(items, jobs)
            except BaseException as error:  # of the model itself: each request is told
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(error)
            finally:
                with self._ready:
                    self._waiting -= len(items)

    def _encode(self, items: list[Any], jobs: list[tuple[list[Any], Future]]) -> None:
        if not items:
            return
        self.watch(len(items))
        rows = self.model.encode(items, on_error="null", normalize_embeddings=True, show_progress_bar=False)
        failures, first = counted(rows.failures, 0), 0
        for some, future in jobs:
            own = {f.index - first: f.error for f in failures if first <= f.index < first + len(some)}
            future.set_result((np.asarray(rows)[first : first + len(some)], own))
            first += len(some)
