"""What goes on beside long work: a generator computed ahead by a thread, files read ahead by the system, a progress
bar."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterable
from typing import Any

from .files import open_regular

__all__ = ["Ahead", "progress", "read_ahead"]


class Ahead:
    """What a generator gives, computed by a thread of its own up to `most` ahead of who takes it."""

    def __init__(self, source: Generator[Any, None, None], most: int):
        from concurrent.futures import ThreadPoolExecutor  # loading a model does not wait for it

        self._source, self._pool = source, ThreadPoolExecutor(1)
        self._coming = deque(self._pool.submit(next, source, None) for _ in range(most))

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._source.close()

    @property
    def idle(self) -> bool:
        """Whether the thread has computed all it may."""
        return self._coming[-1].done()

    def take(self, most: int) -> list[Any]:
        """What is there, at least one and at most so many; empty at the end."""
        taken: list[Any] = []
        while len(taken) < most and (not taken or self._coming[0].done()):
            item = self._coming.popleft().result()
            self._coming.append(self._pool.submit(next, self._source, None))
            if item is None:
                break
            taken.append(item)
        return taken


def read_ahead(paths: Iterable[Any]) -> None:
    """Asks the system to read the files that come next while this batch is decoded and the model runs; what is no path
    is passed over. Decoding itself is not moved ahead: it would only take the cores the model computes on."""
    for path in paths:
        if isinstance(path, str | os.PathLike) and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # what is wrong with the file is said when its turn comes
                fd = open_regular(path)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)


class _NoBar:
    def update(self, count: int) -> None:
        """Nothing is shown."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to close."""


def progress(total: int | None, show: bool | None) -> Any:
    """A bar that is told of items; None shows one when logging is at INFO or below."""
    if show is None:
        import logging

        show = logging.getLogger("beyondvl").getEffectiveLevel() <= logging.INFO
    if not show:
        return _NoBar()
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Batches", unit="item", disable=os.environ.get("TQDM_DISABLE") == "1")
