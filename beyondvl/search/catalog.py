"""What an index knows of its vectors, in SQLite: which segments there are, which key each row has, what was removed.

One transaction publishes all that a change did: a reader, here or in another process, sees the index before or after.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Catalog", "Key"]

Key = str | int
FORMAT = 1
TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE segments (number INTEGER PRIMARY KEY, count INTEGER NOT NULL, sums TEXT NOT NULL);
CREATE TABLE keys (segment INTEGER NOT NULL, row INTEGER NOT NULL, key NOT NULL,
                   PRIMARY KEY (segment, row)) WITHOUT ROWID;
CREATE UNIQUE INDEX keys_by_key ON keys (key);
CREATE TABLE removed (segment INTEGER NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (segment, row)) WITHOUT ROWID;
CREATE TABLE files (key TEXT PRIMARY KEY, size INTEGER, modified INTEGER, error TEXT) WITHOUT ROWID;
"""
MOST_NAMED = 500  # keys of one statement


class Catalog:
    """A database at a path, or in memory (None). Its errors are ValueErrors that name it."""

    def __init__(self, path: Path | None):
        self.path = path
        self._base: sqlite3.Connection | None = None

    @property
    def base(self) -> sqlite3.Connection:
        if self._base is None:
            name, fixed = ":memory:", False
            if self.path is not None:
                fixed = not os.access(self.path.parent, os.W_OK)  # of what nobody writes nothing is locked
                name = self.path.absolute().as_uri() + ("?mode=ro&immutable=1" if fixed else "")
            self._base = sqlite3.connect(name, timeout=60, isolation_level=None, check_same_thread=False, uri=True)
            if self.path is not None and not fixed:
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=FULL")
        return self._base

    def create(self, facts: dict[str, Any]) -> None:
        """An empty index."""
        with self.change() as base:
            for statement in TABLES.split(";"):
                base.execute(statement)
            for name, value in (facts | {"format": FORMAT}).items():
                base.execute("INSERT INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def close(self) -> None:
        if self._base is not None:
            self._base.close()
        self._base = None

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes; undone by an error."""
        with self._transaction("BEGIN IMMEDIATE") as base:
            yield base

    @contextmanager
    def view(self) -> Iterator[sqlite3.Connection]:
        """A transaction that reads: what others do meanwhile is not seen."""
        with self._transaction("BEGIN") as base:
            yield base

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        try:
            self.base.execute(begin)
            try:
                yield self.base
                self.base.execute("COMMIT")
            except BaseException:
                if self.base.in_transaction:
                    self.base.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: not an index that can be read or written: {error}") from error

    # within a transaction

    def version(self) -> tuple[int, int]:
        """What changes with every change of anybody."""
        return self.base.execute("PRAGMA data_version").fetchone()[0], self.base.total_changes

    def facts(self) -> dict[str, Any]:
        return {name: json.loads(value) for name, value in self.base.execute("SELECT name, value FROM facts")}

    def set_fact(self, name: str, value: Any) -> None:
        self.base.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def segments(self) -> list[tuple[int, int, dict[str, str]]]:
        """Number, rows and checksums of each, in order."""
        rows = self.base.execute("SELECT number, count, sums FROM segments ORDER BY number")
        return [(number, count, json.loads(sums)) for number, count, sums in rows]

    def removed(self) -> dict[int, list[int]]:
        """Rows of each segment that are removed."""
        rows: dict[int, list[int]] = {}
        for segment, row in self.base.execute("SELECT segment, row FROM removed"):
            rows.setdefault(segment, []).append(row)
        return rows

    def count(self) -> int:
        asked = "SELECT (SELECT IFNULL(SUM(count), 0) FROM segments) - (SELECT COUNT(*) FROM removed)"
        return self.base.execute(asked).fetchone()[0]

    def keys(self) -> Iterator[Key]:
        for (key,) in self.base.execute("SELECT key FROM keys ORDER BY segment, row"):
            yield key

    def key_at(self, segment: int, row: int) -> Key:
        return self.base.execute("SELECT key FROM keys WHERE segment = ? AND row = ?", (segment, row)).fetchone()[0]

    def places(self, keys: Sequence[Key]) -> dict[Key, tuple[int, int]]:
        """Segment and row of those keys that are there."""
        out = {}
        for start in range(0, len(keys), MOST_NAMED):
            some = keys[start : start + MOST_NAMED]
            marks = ", ".join("?" * len(some))
            for key, segment, row in self.base.execute(
                f"SELECT key, segment, row FROM keys WHERE key IN ({marks})", some
            ):
                out[key] = segment, row
        return out

    def remove(self, keys: Sequence[Key]) -> int:
        """Takes keys out; how many there were."""
        places = self.places(keys)
        self.base.executemany("INSERT INTO removed VALUES (?, ?)", places.values())
        self.base.executemany("DELETE FROM keys WHERE key = ?", ((key,) for key in places))
        return len(places)

    def files(self) -> dict[Key, tuple[int, int]]:
        """Size and time of change of the files that were looked at."""
        rows = self.base.execute("SELECT key, size, modified FROM files")
        return {key: (size, modified) for key, size, modified in rows}

    def note_files(self, files: Iterable[tuple[Key, int, int, str | None]]) -> None:
        """Key, size, time of change and error of files."""
        self.base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", files)

    def forget_files(self, keys: Iterable[Key]) -> None:
        self.base.executemany("DELETE FROM files WHERE key = ?", ((key,) for key in keys))

    def add_segment(self, number: int, keys: Iterable[Key], count: int, sums: dict[str, str]) -> None:
        self.base.execute("INSERT INTO segments VALUES (?, ?, ?)", (number, count, json.dumps(sums)))
        self.base.executemany("INSERT INTO keys VALUES (?, ?, ?)", ((number, row, key) for row, key in enumerate(keys)))

    def add_sum(self, number: int, name: str, checksum: str) -> None:
        """Notes one more file of a segment."""
        (sums,) = self.base.execute("SELECT sums FROM segments WHERE number = ?", (number,)).fetchone()
        changed = json.dumps(json.loads(sums) | {name: checksum})
        self.base.execute("UPDATE segments SET sums = ? WHERE number = ?", (changed, number))

    def take_out(self, segments: Iterable[int]) -> list[Key]:
        """Takes segments out; the keys that they had, in order."""
        keys: list[Key] = []
        for number in segments:
            keys += [k for (k,) in self.base.execute("SELECT key FROM keys WHERE segment = ? ORDER BY row", (number,))]
            for table, column in (("keys", "segment"), ("removed", "segment"), ("segments", "number")):
                self.base.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))
        return keys
