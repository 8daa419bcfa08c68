"""What becomes of the items of `encode`: each has a row, or a failure that says why it has none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .outputs import from_numpy

__all__ = ["ITEM_ERRORS", "POLICIES", "Embeddings", "Failure", "Outcomes", "counted", "policy"]

POLICIES = ("raise", "skip", "null")
# what an item raises that cannot be read; a library that is missing is no item's fault
ITEM_ERRORS = (ValueError, TypeError, OSError)


class Failure(NamedTuple):
    """Why an item has no row: its place, what it is (a path, or what it looks like) and the error."""

    index: int
    source: str
    error: Exception

    def __str__(self) -> str:
        return f"item {self.index}, {self.source}: {self.error}"


class Embeddings(np.ndarray):
    """Embeddings [n, D] of which `indices` says what item each row is of, `failures` what became of the others, and of
    a stream `keys` how its items are called."""

    indices: np.ndarray | None = None
    failures: tuple[Failure, ...] = ()
    keys: list[str] | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.indices, self.failures, self.keys = None, (), None  # of another selection of rows nothing is known


def counted(failures: Iterable[Failure], first: int) -> tuple[Failure, ...]:
    """Failures of some items, counted among all, `first` of which came before; their errors name no place among the
    some."""
    out = []
    for failure in failures:
        failure.error.args = (str(failure.error).removeprefix(f"image {failure.index}: "),)
        out.append(failure._replace(index=failure.index + first))
    return tuple(out)


def source_of(item: Any) -> str:
    """What names an item: its path, or its type and size."""
    if isinstance(item, dict):
        return next((source_of(value) for value in item.values()), "{}")
    if isinstance(item, str | os.PathLike):
        return repr(os.fspath(item))
    shape = getattr(item, "shape", getattr(item, "size", None))
    size = f"{len(item)}" if isinstance(item, bytes | bytearray | memoryview) else "" if shape is None else f"{shape}"
    return f"{type(item).__name__} {size}".rstrip()


def policy(on_error: str, as_rows: bool, precision: str | None, single: bool) -> str:
    """`on_error`. ValueError for none of the policies, and where rows cannot carry failures or NaN."""
    if on_error not in POLICIES:
        raise ValueError(f"on_error: found {on_error!r}, expected one of {', '.join(POLICIES)}")
    if on_error != "raise" and (single or not as_rows):
        raise ValueError(f"on_error: found {on_error!r}, expected a list of items and an array or one tensor of rows")
    if on_error == "null" and precision not in (None, "float32", "float16"):
        raise ValueError(f"on_error: found 'null' and precision {precision!r}, which has no NaN: expected 'skip'")
    return on_error


class Outcomes:
    """The rows of finished items, and failures; by the policy "raise" the first failure ends the call."""

    def __init__(self, items: list[Any], policy: str):
        self.items, self.policy = items, policy
        self.failures: dict[int, Failure] = {}
        self.shape: Callable[[np.ndarray], np.ndarray] = np.asarray
        self.rows: np.ndarray | None = None  # (n, D) float32, undefined where nothing is finished
        self.finished = np.zeros(len(items), bool)

    def add(self, indices: list[int], rows: np.ndarray) -> None:
        if self.rows is None:
            self.rows = np.empty((len(self.items), rows.shape[1]), np.float32)
        self.rows[indices] = rows
        self.finished[indices] = True

    def fail(self, index: int, error: Exception) -> None:
        """Notes the failure, or raises it, the place and the item named in `index` and `source`."""
        failure = Failure(index, source_of(self.items[index]), error)
        if self.policy == "raise":
            error.index, error.source = failure.index, failure.source
            raise error
        self.failures[index] = failure

    def attempt(self, index: int, work: Callable[..., Any], *args: Any) -> Any:
        """What the work on an item gives, None where it failed."""
        try:
            return work(*args)
        except ITEM_ERRORS as error:
            self.fail(index, error)

    def left(self, indices: list[int]) -> list[int]:
        """Those that have not failed."""
        return [i for i in indices if i not in self.failures]

    def results(self, width: int = 0) -> Embeddings:
        """Rows of finished items, as `shape` makes them of float32 (n, D); by "null" a row of every item, NaN of those
        that failed. `width` is D where no item is finished."""
        rows = np.empty((len(self.items), width), np.float32) if self.rows is None else self.rows
        indices = np.arange(len(self.items)) if self.policy == "null" else np.flatnonzero(self.finished)
        if self.policy == "null":
            rows[~self.finished] = np.nan
        out = self.shape(rows[indices] if len(indices) < len(rows) else rows).view(Embeddings)
        out.indices, out.failures = indices, tuple(self.failures[i] for i in sorted(self.failures))
        return out

    def returned(self, width: int, kind: str) -> Any:
        """`results` as an array or a torch tensor ("pt"); by "raise" a plain one, since nothing is missing."""
        rows = self.results(width)
        if kind == "pt":
            tensor = from_numpy(np.asarray(rows), kind)
            tensor.indices, tensor.failures = rows.indices, rows.failures
            return tensor
        return np.asarray(rows) if self.policy == "raise" else rows

    @contextmanager
    def kept(self) -> Iterator[None]:
        """An error that ends the call has `results`: what was finished before it."""
        try:
            yield
        except BaseException as error:
            if self.finished.any():
                error.results = self.results()
                error.add_note(
                    f"{self.finished.sum()} of {len(self.items)} items are finished: their rows are in .results"
                )
            raise
