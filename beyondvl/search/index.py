"""`Index`: embeddings by key, and the nearest of them to a query, exactly: the core looks at every row.

In memory, or in a folder: `index.db` says what is there (catalog.py), vectors lie in files that never change and are
mapped (segments.py). An addition writes a segment of its own; it takes those before it with it that are not twice as
long, so there are few, and every row is written again a few times at most.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..outputs import check_count, thread_count, to_numpy
from ..similarity import unit_rows
from .catalog import FORMAT, Catalog, Key
from .graph import LEAST, Graph, import_usearch
from .items import ItemsMixin
from .segments import (
    DTYPES,
    Segment,
    check_segment,
    join,
    make_segment,
    open_segment,
    remove_segment,
    write_array,
    write_segment,
)

__all__ = ["Index"]

METRICS = ("cosine", "dot")
MOST_DIM, MOST_HITS = 4096, 1 << 16
RESCORED = {"float32": 4, "bfloat16": 4, "int8": 4, "binary": 64}  # candidates for each hit
TOGETHER = 256  # queries
SCORED = 1 << 24  # numbers of candidates at a time
ATTEMPTS = 5  # to open what another process joins meanwhile


@dataclass(frozen=True)
class Wanted:
    """How a segment is searched: for k rows of each query, out of `candidates` where these are scored again."""

    k: int
    candidates: int
    threads: int
    by_graph: bool


class Index(ItemsMixin):
    """Embeddings [n, dim] by key.

    Args:
        dim: numbers of a vector.
        dtype: what is scanned: "float32", "bfloat16" (half the memory and time), "int8" (a quarter) or "binary" (signs
            alone, a 32nd).
        metric: "cosine", or "dot" (products as they are).
        rescore: whether exacter rows are kept beside those that are scanned (in a folder: on the disk), from which the
            best candidates are scored again: int8 beside "binary", else float32; None: of "int8" and "binary" alone.
        approximate: whether segments of 8,192 rows and more have a graph by which near ones are found without looking
            at all of them (HNSW, by usearch: pip install 'beyondvl[approximate]'). Some are missed, most where many
            rows are equal; additions take longer. A search with a filter, and `duplicates`, look at all.
        path: a new or empty folder to keep it in; None: in memory.
        model: whose embeddings these are: another model's are refused (`for_model`, `search_items`).

    Keys are strings or whole numbers. Every method is one step: it is done or nothing is, also for other processes that
    have the folder open. Safe to use from several threads.

    Raises ValueError for options that make no sense, and where the folder holds other things.
    """

    def __init__(
        self,
        dim: int,
        dtype: str = "float32",
        metric: str = "cosine",
        *,
        rescore: bool | None = None,
        approximate: bool = False,
        path: str | os.PathLike | None = None,
        model: dict[str, Any] | None = None,
    ):
        check_count("dim", dim)
        if dim > MOST_DIM:
            raise ValueError(f"dim: found {dim}, expected at most {MOST_DIM}")
        for name, value, known in (("dtype", dtype, tuple(DTYPES)), ("metric", metric, METRICS)):
            if value not in known:
                raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(known)}")
        exact = dtype in ("int8", "binary") if rescore is None else bool(rescore) and dtype != "float32"
        facts = {"dim": int(dim), "dtype": dtype, "metric": metric, "rescore": exact, "model": model}
        if approximate:
            import_usearch()
            facts["approximate"] = True
        folder = None if path is None else Path(path)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ValueError(f"{folder}: holds files, expected a new or empty folder: Index.open opens an index")
        self._begin(folder, facts)
        self.catalog.create(facts)

    def _begin(self, folder: Path | None, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts
        self.catalog = Catalog(None if folder is None else folder / "index.db")
        self._lock = threading.RLock()
        self._segments: list[Segment] = []
        self._seen: tuple[int, int] | None = None
        self._process = os.getpid()

    @classmethod
    def open(cls, path: str | os.PathLike, verify: bool = False) -> Index:
        """The index in a folder. `verify`: read all of it and compare checksums.

        Raises FileNotFoundError where there is none, ValueError where it is damaged or of another format.
        """
        folder = Path(path)
        if not (folder / "index.db").is_file():
            raise FileNotFoundError(f"{folder}: no index there, expected index.db and vectors-*.npy")
        index = cls.__new__(cls)
        index._begin(folder, {})
        with index.catalog.view():
            index.facts = index.catalog.facts()
        if index.facts.get("format") != FORMAT:
            raise ValueError(f"{folder}: an index of format {index.facts.get('format')!r}, expected {FORMAT}")
        with index._read() as segments:
            sums = {number: sums for number, _, sums in index.catalog.segments()}
            for segment in segments if verify else ():
                check_segment(folder, segment, sums[segment.number])
        return index

    def save(self, path: str | os.PathLike) -> Index:
        """Writes it to a new or empty folder; the index there, which this one does not follow."""
        with self._read() as segments:
            options = {"rescore": self.facts["rescore"], "approximate": self.approximate, "model": self.facts["model"]}
            other = Index(self.dim, self.dtype, self.metric, path=path, **options)
            if segments:
                with other._change():
                    other._publish(join(1, segments), list(self.catalog.keys()), [])
                other._draw_graphs()
        return other

    @property
    def dim(self) -> int:
        return self.facts["dim"]

    @property
    def dtype(self) -> str:
        return self.facts["dtype"]

    @property
    def metric(self) -> str:
        return self.facts["metric"]

    @property
    def approximate(self) -> bool:
        return self.facts.get("approximate", False)

    def __len__(self) -> int:
        with self._read():
            return self.catalog.count()

    def __contains__(self, key: Key) -> bool:
        with self._read():
            return bool(self.catalog.places([key]))

    def __repr__(self) -> str:
        where = "memory" if self.folder is None else str(self.folder)
        return f"Index({len(self)} of {self.dim} numbers, {self.dtype}, {self.metric}, in {where})"

    def __reduce__(self) -> tuple:
        """Pickled as its folder."""
        if self.folder is None:
            raise TypeError("an index in memory cannot be pickled: save(path) it and open it there")
        return Index.open, (str(self.folder.absolute()),)

    def keys(self) -> list[Key]:
        """All keys, in the order of their vectors."""
        with self._read():
            return list(self.catalog.keys())

    def close(self) -> None:
        """Lets go of its files; it opens them again when it is used."""
        with self._lock:
            self.catalog.close()
            self._segments, self._seen = [], None

    def add(self, keys: Iterable[Key], vectors: Any) -> None:
        """Adds vectors [n, dim]; one whose key is there takes its place. float32, or what converts to it.

        Raises ValueError for another shape, keys that are not as many or are twice there, and numbers that are not
        finite; TypeError for a key that is neither a string nor a whole number.
        """
        rows, names = self._rows(vectors, "vectors"), _checked(keys)
        if len(names) != len(rows):
            raise ValueError(f"keys: found {len(names)}, expected {len(rows)}, one of each vector")
        if len(set(names)) != len(names):
            twice = next(name for at, name in enumerate(names) if name in names[:at])
            raise ValueError(f"keys: found {twice!r} twice, expected it once")
        if not names:
            return
        self._add(names, rows, names)

    def _add(self, keys: list[Key], rows: np.ndarray, old: list[Key], files: Iterable[tuple] = ()) -> None:
        """Adds checked rows in the place of `old` keys, and notes the files that they are of."""
        new = make_segment(0, rows, self.dtype, self.facts["rescore"])
        with self._change():
            self.catalog.remove(old)
            self.catalog.note_files(files)
            self._refresh()
            others: list[Segment] = []
            for segment in reversed(self._segments):
                if len(segment) > 2 * (len(new) + sum(map(len, others))):
                    break
                others.insert(0, segment)
            if keys:
                self._publish(new, keys, others)
        self._draw_graphs()

    def remove(self, keys: Iterable[Key]) -> int:
        """Removes those of the keys that are there; how many."""
        names = _checked([keys] if isinstance(keys, str | int) else keys)
        with self._change():
            count = self.catalog.remove(names)
            self._refresh()
            sparse = [s for s in self._segments if s.alive is not None and 2 * int(s.alive.sum()) < len(s)]
            if sparse:
                self._publish(None, [], sparse)
        self._draw_graphs()
        return count

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        filter: Iterable[Key] | None = None,
        exact: bool = False,
        rescore_multiplier: int | None = None,
        num_threads: int | None = None,
    ) -> tuple[list, np.ndarray]:
        """The k keys whose vectors are nearest to each of the queries [n, dim], or to one [dim].

        Args:
            filter: keys among which they are looked for; None: all.
            exact: look at every row, also of an `approximate` index.
            rescore_multiplier: candidates for each of k that are scored again, where exacter rows are kept or a graph
                is followed; None: 4, of "binary" 64.

        Returns keys, a list of each query's, the nearest first, and their scores [n, m] float32 (cosines, or products),
        m being k or as many as there are; of one query a list and [m]. Exact but for "int8", "binary" and, natively,
        "bfloat16", whose candidates are found in that precision, and where the index is `approximate`.

        Raises ValueError for another shape and numbers that are not finite.
        """
        check_count("k", k)
        if rescore_multiplier is not None:
            check_count("rescore_multiplier", rescore_multiplier)
        rows, threads = self._rows(queries, "queries"), thread_count(num_threads)
        keys: list[list[Key]] = []
        scores = []
        with self._read() as segments:
            masks = self._masks(segments, filter)
            there = sum(len(s) if m is None else int(m.sum()) for s, m in zip(segments, masks, strict=True))
            k = min(k, there, MOST_HITS)
            candidates = min(k * (rescore_multiplier or RESCORED[self.dtype]), MOST_HITS)
            wanted = Wanted(k, candidates, threads, by_graph=filter is None and not exact)
            for start in range(0, len(rows), TOGETHER):
                part = rows[start : start + TOGETHER]
                found, places = self._nearest(segments, masks, part, wanted)
                # a product that overflows to -inf is no hit
                keys += [[self.catalog.key_at(*map(int, place)) for place in each if place[1] >= 0] for each in places]
                scores.append(found)
        whole = np.concatenate([np.zeros((0, k), np.float32), *scores])
        return (keys[0], whole[0]) if np.ndim(to_numpy(queries)) == 1 else (keys, whole)

    def _nearest(
        self, segments: list[Segment], masks: list[Any], rows: np.ndarray, wanted: Wanted
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n, k] and places (segment, row) [n, k, 2] of the best of all segments."""
        scores = np.zeros((len(rows), 0), np.float32)
        places = np.zeros((len(rows), 0, 2), np.int64)
        for segment, mask in zip(segments, masks, strict=True):
            if wanted.k and len(segment):
                found, at = self._scan(segment, mask, rows, wanted)
                scores = np.concatenate([scores, found], 1)
                places = np.concatenate([places, np.stack([np.full_like(at, segment.number), at], 2)], 1)
        return _top(scores, places, wanted.k)

    def vectors(self, keys: Sequence[Key]) -> np.ndarray:
        """Vectors [n, dim] float32 of those keys, as exact as they are kept. KeyError for one that is not there."""
        with self._read() as segments:
            places = self.catalog.places(list(keys))
            by_number = {segment.number: segment for segment in segments}
            out = np.empty((len(keys), self.dim), np.float32)
            for at, key in enumerate(keys):
                if key not in places:
                    raise KeyError(key)
                number, row = places[key]
                out[at] = by_number[number].floats(np.array([row]), self.dim)[0]
        return out

    def _rows(self, vectors: Any, name: str) -> np.ndarray:
        """float32 [n, dim], of length 1 where cosines are compared."""
        rows = np.ascontiguousarray(np.atleast_2d(np.asarray(to_numpy(vectors, name), np.float32)))
        if rows.size == 0:
            rows = rows.reshape(0, self.dim)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"{name}: found shape {list(np.shape(vectors))}, expected [n, {self.dim}]")
        if not np.isfinite(rows).all():
            row = int(np.argmin(np.isfinite(rows).all(1)))
            raise ValueError(f"{name}: row {row} holds a number that is not finite")
        return unit_rows(rows) if self.metric == "cosine" and len(rows) else rows

    def _scan(
        self, segment: Segment, mask: np.ndarray | None, rows: np.ndarray, wanted: Wanted
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows [n, k] of a segment's best; -inf and -1 where it has fewer."""
        k, count, threads = wanted.k, wanted.candidates, wanted.threads
        if wanted.by_graph and segment.graph is not None and count < len(segment):
            at = segment.graph.search(rows, count, threads)
            if mask is not None:
                at[(at < 0) | ~mask[at]] = -1
            if ((at >= 0).sum(1) >= k).all():  # else too many of them were removed
                return _top(_scores(segment, rows, at), at, k)
        if segment.exact is None:
            return segment.scan(mask, rows, k, threads)
        _, at = segment.scan(mask, rows, count, threads)
        return _top(_scores(segment, rows, at), at, k)

    def _masks(self, segments: list[Segment], filter: Iterable[Key] | None) -> list[np.ndarray | None]:
        """Of each segment the rows that may be hit; None: all of them."""
        if filter is None:
            return [segment.alive for segment in segments]
        masks = {segment.number: np.zeros(len(segment), bool) for segment in segments}
        for number, row in self.catalog.places(_checked(filter)).values():
            masks[number][row] = True
        return [masks[segment.number] for segment in segments]

    # what is kept

    @contextmanager
    def _read(self) -> Iterator[list[Segment]]:
        """The segments as one moment has them."""
        self._own()
        with self._lock:
            for left in reversed(range(ATTEMPTS)):
                with self.catalog.view():
                    try:
                        self._refresh()
                    except FileNotFoundError:  # joined with others by another process after this moment
                        if not left:
                            raise
                        continue
                    yield self._segments
                    return

    @contextmanager
    def _change(self) -> Iterator[None]:
        """A change, undone by an error; files that are in the index no more are deleted after it."""
        self._own()
        with self._lock:
            self._gone: list[int] = []
            try:
                with self.catalog.change():
                    self._refresh()
                    yield
            finally:
                self._seen = None
            for number in self._gone if self.folder is not None else ():
                remove_segment(self.folder, number)  # who has mapped it keeps it

    def _own(self) -> None:
        """A process that was forked opens its own connection."""
        if os.getpid() != self._process and self.folder is not None:
            self._begin(self.folder, self.facts)

    def _refresh(self) -> None:
        """Opens what was published since, by whomever; within a transaction."""
        version = self.catalog.version()
        if version == self._seen:
            return
        before = {segment.number: segment for segment in self._segments}
        removed, segments = self.catalog.removed(), []
        for number, count, sums in self.catalog.segments():
            segment = before.get(number)
            if segment is None or (segment.graph is None and "graph" in sums):
                segment = open_segment(self.folder, number, count, self.dim, self.dtype, sums)
            alive = None
            if number in removed:
                alive = np.ones(count, bool)
                alive[removed[number]] = False
            segments.append(replace(segment, alive=alive))
        self._segments, self._seen = segments, version

    def _publish(self, new: Segment | None, keys: list[Key], others: list[Segment]) -> None:
        """Writes a segment of new rows, and of others' in their place; it is there when the transaction ends."""
        old = self.catalog.take_out(segment.number for segment in others)
        parts = [*others, *([new] if new is not None else [])]
        segment = join(1 + max((s.number for s in [*self._segments, *parts]), default=0), parts)
        sums = {} if self.folder is None else write_segment(self.folder, segment)
        self.catalog.add_segment(segment.number, [*old, *keys], len(segment), sums)
        self._gone = [other.number for other in others]
        if self.folder is None:
            self._segments = [*self._segments, segment]

    def _draw_graphs(self) -> None:
        """Makes the graphs that large segments lack, which takes a while: others read and write meanwhile."""
        if not self.approximate:
            return
        with self._read() as segments:
            lacking = [segment for segment in segments if segment.graph is None and len(segment) >= LEAST]
        for segment in lacking:
            rows = segment.floats(np.arange(len(segment)), self.dim)
            graph = Graph.of(rows, self.dtype, self.metric, thread_count(None))
            with self._change():
                there = next((s for s in self._segments if s.number == segment.number), None)
                if there is None or there.graph is not None:  # joined with others, or made by another process
                    continue
                if self.folder is None:
                    drawn = replace(there, graph=graph)
                    self._segments = [drawn if s is there else s for s in self._segments]
                else:
                    self.catalog.add_sum(segment.number, *write_array(self.folder, segment.number, "graph", graph.data))


def _scores(segment: Segment, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Products [n, m] of queries [n, D] with a segment's rows at those places [n, m]; -inf at -1."""
    scores = np.empty(at.shape, np.float32)
    each = max(1, SCORED // (at.shape[1] * rows.shape[1] or 1))
    for start in range(0, len(at), each):
        some = at[start : start + each]
        near = segment.floats(some.reshape(-1), rows.shape[1]).reshape(*some.shape, -1)
        scores[start : start + each] = (near * rows[start : start + each, None]).sum(-1)
    scores[at < 0] = -np.inf
    return scores


def _top(scores: np.ndarray, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of scores [n, m] and their places [n, m, ...], the first of equal ones before."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    rows = np.arange(len(scores))[:, None]
    return scores[rows, best], places[rows, best]


def _checked(keys: Iterable[Key]) -> list[Key]:
    """Keys as strings and ints. TypeError for another one, ValueError for a number too large."""
    out: list[Key] = []
    for key in keys:
        if isinstance(key, np.integer):
            key = int(key)
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise TypeError(f"keys: found {key!r:.100} ({type(key).__name__}), expected a string or a whole number")
        if isinstance(key, int) and not -(2**63) <= key < 2**63:
            raise ValueError(f"keys: found {key}, expected a whole number of 64 bits")
        out.append(str(key) if isinstance(key, np.str_) else key)
    return out
