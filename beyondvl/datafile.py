"""A weights file that is open: where each tensor lies in it, and reads of float32 at given places."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from .errors import CheckpointError
from .files import open_regular
from .spec import Spec

__all__ = ["DTYPES", "MAX_RANK", "DataFile", "Entry", "is_size"]

MAX_RANK = 8
CHUNK_BYTES = 8 << 20

# stored name -> (NumPy type on disk, how to widen it)
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "<u1",
}


class Entry(Spec):
    """Where one tensor lies: [begin, begin + bytes) of the file `source`. What is `lent` is of a checkpoint that others
    are stored over, and need not be used."""

    source: object
    dtype: str
    shape: tuple[int, ...]
    begin: int
    lent: bool = False

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class DataFile:
    """An open weights file; reads are positioned, so threads may share it."""

    fd = -1

    def __init__(self, path: Path):
        self.path = path
        try:
            self.fd = open_regular(path)
        except OSError as error:
            raise self.fail(f"cannot be opened: {error.strerror}") from error
        self.size = os.fstat(self.fd).st_size

    def close(self) -> None:
        # first the number goes: it may be another file's as soon as it is closed
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self):
        self.close()

    def fail(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: {message}")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            got = os.preadv(self.fd, [buffer[done:]], offset + done)
            if got <= 0:
                raise self.fail(f"the file ends at byte {offset + done}: it was truncated")
            done += got

    def read_bytes(self, count: int, offset: int) -> bytes:
        data = bytearray(count)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_floats(self, entry: Entry) -> np.ndarray:
        """The tensor as float32, converted in pieces so that no second whole copy exists."""
        out = np.empty(entry.shape, np.float32)
        flat = out.reshape(-1)
        if entry.dtype == "F32":
            if flat.size:
                self.read_into(memoryview(flat).cast("B"), entry.begin)
            return out
        stored = np.dtype(DTYPES[entry.dtype])
        step = CHUNK_BYTES // stored.itemsize
        for start in range(0, flat.size, step):
            piece = np.empty(min(step, flat.size - start), stored)
            self.read_into(memoryview(piece).cast("B"), entry.begin + start * stored.itemsize)
            if entry.dtype == "BF16":
                flat[start : start + piece.size].view(np.uint32)[:] = piece.astype(np.uint32) << 16
            else:
                flat[start : start + piece.size] = piece
        return out


def is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= 1 << 48
