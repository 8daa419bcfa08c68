"""Vectors of an index, some thousand or million rows at a time, which never change once they are written.

A segment's rows are float32, bfloat16 (as uint16), int8 with a scale a row, or signs packed into bytes: what is
scanned. Beside rows of less than float32 there may be exacter ones, int8 beside signs and else float32, from which
candidates are scored again, and a graph of near rows. In a folder each is an .npy that is mapped; shape and type are
checked against what the index says before.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import _C
from .graph import Graph

__all__ = ["DTYPES", "Segment", "check_segment", "join", "make_segment", "open_segment", "remove_segment",
           "write_array", "write_segment"]  # fmt: skip

FILES = ("vectors", "scales", "exact", "graph")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16), "int8": np.dtype(np.int8),
          "binary": np.dtype(np.uint8)}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows [n, D], or [n, ceil(D / 8)] of signs; `exact` [n, D] and `graph` where they are kept; `scales` [n] of int8
    ones, whichever of both these are; `alive` [n] False for removed rows, None while all are there."""

    number: int
    rows: np.ndarray
    scales: np.ndarray | None = None
    exact: np.ndarray | None = None
    graph: Graph | None = None
    alive: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept of it, by the names of the files."""
        kept = (self.rows, self.scales, self.exact, None if self.graph is None else self.graph.data)
        return {name: array for name, array in zip(FILES, kept, strict=True) if array is not None}

    def scan(self, mask: np.ndarray | None, queries: np.ndarray, k: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows [n, k] of the largest products with queries [n, D]; -inf and -1 where there are fewer."""
        return _C.search(self.rows, self.scales if self.rows.dtype == np.int8 else None, mask, queries, k, threads)

    def floats(self, places: np.ndarray, dim: int) -> np.ndarray:
        """Rows at those places [m] as float32 [m, dim], as exact as they are kept; signs as unit vectors."""
        rows = (self.rows if self.exact is None else self.exact)[places]
        if rows.dtype == np.uint16:
            return (rows.astype(np.uint32) << 16).view(np.float32)
        if rows.dtype == np.uint8:
            return (np.unpackbits(rows, axis=1, count=dim) * np.float32(2) - 1) / np.sqrt(np.float32(dim))
        return rows * self.scales[places, None] if rows.dtype == np.int8 else rows


def make_segment(number: int, rows: np.ndarray, dtype: str, keep_exact: bool) -> Segment:
    """A segment of float32 rows [n, D]."""
    if dtype == "float32":
        return Segment(number, rows)
    exact = rows if keep_exact else None
    if dtype == "bfloat16":
        bits = rows.view(np.uint32)
        return Segment(number, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), None, exact)
    signs = np.packbits(rows > 0, axis=1) if dtype == "binary" else None
    if signs is not None and not keep_exact:
        return Segment(number, signs)
    scales = np.abs(rows).max(1) / np.float32(127)
    digits = np.rint(rows / np.maximum(scales, np.finfo(np.float32).tiny)[:, None]).astype(np.int8)
    return Segment(number, digits, scales, exact) if signs is None else Segment(number, signs, scales, digits)


def join(number: int, segments: list[Segment]) -> Segment:
    """The rows that are left of several, one after another; without a graph."""
    arrays = {}
    for name in segments[0].arrays.keys() - {"graph"}:
        parts = [s.arrays[name] if s.alive is None else s.arrays[name][s.alive] for s in segments]
        arrays[name] = np.concatenate(parts)
    return Segment(number, arrays["vectors"], arrays.get("scales"), arrays.get("exact"))


def _file(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number:06d}.npy"


def _checksum(array: np.ndarray) -> str:
    """crc32 of its bytes, in hex."""
    return f"{zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8)):08x}"


def write_segment(folder: Path, segment: Segment) -> dict[str, str]:
    """Writes a segment's files, which are on the disk afterwards; the checksum of each."""
    return dict(write_array(folder, segment.number, name, array) for name, array in segment.arrays.items())


def write_array(folder: Path, number: int, name: str, array: np.ndarray) -> tuple[str, str]:
    """Writes one file of a segment; its name and checksum."""
    with open(_file(folder, name, number), "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    return name, _checksum(array)


def remove_segment(folder: Path, number: int) -> None:
    for name in FILES:
        _file(folder, name, number).unlink(missing_ok=True)


def check_segment(folder: Path, segment: Segment, sums: dict[str, str]) -> None:
    """ValueError where a file's content is not what was written."""
    for name, array in segment.arrays.items():
        _check(_file(folder, name, segment.number), array, sums[name])


def _check(path: Path, array: np.ndarray, expected: str) -> None:
    if (read := _checksum(array)) != expected:
        raise ValueError(f"{path}: checksum {read}, expected {expected}: damaged")


def open_segment(folder: Path, number: int, count: int, dim: int, dtype: str, sums: dict[str, str]) -> Segment:
    """A segment's files, mapped. ValueError where one is not what the index says."""
    binary = dtype == "binary"
    types = {"vectors": DTYPES[dtype], "scales": np.float32, "exact": np.int8 if binary else np.float32,
             "graph": np.uint8}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"scales": (count,), "vectors": (count, -(-dim // 8) if binary else dim),
                                          "exact": (count, dim)}  # fmt: skip
    arrays = {}
    for name, checksum in sums.items():
        path = _file(folder, name, number)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not an array that can be mapped: {error}") from error
        shape = shapes.get(name, (array.size,))
        if array.dtype != types[name] or array.shape != shape or not array.flags.c_contiguous:
            expected = f"{np.dtype(types[name])} {list(shape)}"
            raise ValueError(f"{path}: found {array.dtype} {list(array.shape)}, the index expects {expected}")
        arrays[name] = np.asarray(array)
        if name == "graph":  # another library follows its links: never those of a damaged file
            _check(path, arrays[name], checksum)
    graph = Graph(arrays["graph"]) if "graph" in arrays else None
    return Segment(number, arrays["vectors"], arrays.get("scales"), arrays.get("exact"), graph)
