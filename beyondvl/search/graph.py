"""Approximate search: the rows of a segment as a graph of near ones (Malkov and Yashunin, 2016), by usearch.

It finds candidates; what they score is computed from the segment's own rows.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

__all__ = ["LEAST", "Graph", "import_usearch"]

LEAST = 8192  # rows; fewer are scanned in a millisecond
BEAM = 128  # nodes that a search has open


def import_usearch() -> Any:
    """usearch's module of indices. ImportError that says what is to be installed."""
    try:
        from usearch import index
    except ImportError as error:
        raise ImportError("approximate=True: needs usearch: pip install 'beyondvl[approximate]'") from error
    return index


class Graph:
    """A graph as the bytes [m] uint8 that are kept of it, opened when it is searched first."""

    def __init__(self, data: np.ndarray):
        self.data = data
        self._opened: Any = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, rows: np.ndarray, dtype: str, metric: str, num_threads: int) -> Graph:
        """Of rows [n, D] float32, numbered from 0. It holds them itself, in bfloat16 or, of length 1, in int8."""
        own = "i8" if dtype in ("int8", "binary") and metric == "cosine" else "bf16"
        kind = "cos" if metric == "cosine" else "ip"
        made = import_usearch().Index(ndim=rows.shape[1], metric=kind, dtype=own)
        made.add(np.arange(len(rows)), rows, threads=num_threads)
        return cls(np.frombuffer(made.save(), np.uint8))

    def search(self, queries: np.ndarray, count: int, num_threads: int) -> np.ndarray:
        """Numbers [n, count] int64 of rows near to queries [n, D]; -1 where it knows of fewer."""
        with self._lock:  # the beam belongs to the opened graph
            if self._opened is None:
                self._opened = import_usearch().Index.restore(memoryview(self.data), view=True)
            self._opened.expansion_search = max(BEAM, count)
            matches = self._opened.search(queries, count, threads=num_threads)
        keys = np.asarray(matches.keys).reshape(len(queries), -1).astype(np.int64)
        out = np.full((len(queries), count), -1, np.int64)
        out[:, : keys.shape[1]] = keys
        counts = np.atleast_1d(getattr(matches, "counts", keys.shape[1]))
        out[np.arange(count) >= counts[:, None]] = -1
        return out
