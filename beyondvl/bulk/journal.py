"""What a job has done so far, so that one that was stopped at any moment goes on where it was.

`_job.json` says what the job is, once; `_parts.jsonl` has a line of each part that is wholly written: its rows, a
checksum of their keys, what failed. A part is there when its line is: what was written beyond is written again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import parse_json
from ..files import read_regular
from ..outcomes import Failure

__all__ = ["Journal", "checksum"]

JOB, PARTS = "_job.json", "_parts.jsonl"
MOST = 1 << 30  # bytes of a journal


def checksum(keys: Iterable[str], start: int = 0) -> int:
    """crc32 of keys, one after another."""
    for key in keys:
        start = zlib.crc32(f"{len(key)} {key}".encode("utf-8", "surrogatepass"), start)
    return start


class Journal:
    """The parts of a job in a folder that is this process' own while it works. Made by `open`."""

    def __init__(self, folder: Path, job: dict[str, Any], lines: list[dict[str, Any]]):
        self.folder, self.job, self.lines = folder, job, lines

    @classmethod
    @contextmanager
    def open(cls, folder: Path, job: dict[str, Any], overwrite: bool) -> Iterator[Journal]:
        """The journal of a job, begun where there is none. ValueError where the folder is another job's, or holds what
        is no job's; BlockingIOError where another process works on it."""
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                said = "another process writes there, expected none"
                raise BlockingIOError(errno.EWOULDBLOCK, said, os.fspath(folder)) from error
            journal = cls._begun(folder, job, overwrite)
            yield journal
        finally:
            os.close(handle)

    @classmethod
    def _begun(cls, folder: Path, job: dict[str, Any], overwrite: bool) -> Journal:
        there = [path for path in folder.iterdir() if not path.name.startswith(".aside.")]
        for path in folder.glob(".aside.*"):  # of a process that was killed
            _remove(path)
        if not (folder / JOB).exists():
            if there:
                raise ValueError(f"{folder}: holds {there[0].name}, expected a new or empty folder, or a job's own")
        elif overwrite:
            for path in sorted(there, key=lambda path: path.name == JOB):  # the last to go
                _remove(path)
        else:
            return cls._resumed(folder, job)
        (folder / f".aside.{JOB}").write_text(json.dumps(job, indent=1) + "\n")
        os.replace(folder / f".aside.{JOB}", folder / JOB)
        return cls(folder, job, [])

    @classmethod
    def _resumed(cls, folder: Path, job: dict[str, Any]) -> Journal:
        before = parse_json(read_regular(folder / JOB, MOST), JOB)
        for name in dict.fromkeys([*before, *job]):
            if before.get(name) != job.get(name):
                raise ValueError(f"{folder}: a job of {name} {before.get(name)!r}, expected {job.get(name)!r}: "
                                 "another folder, or overwrite=True")  # fmt: skip
        lines, size = [], 0
        if (folder / PARTS).exists():
            data = read_regular(folder / PARTS, MOST)
            for line in data.splitlines(keepends=True):
                if not line.endswith(b"\n"):  # the process was killed within it
                    break
                lines.append(parse_json(line, PARTS))
                size += len(line)
            os.truncate(folder / PARTS, size)
        return cls(folder, job, lines)

    def note(self, **line: Any) -> None:
        """Adds a line, which is on the disk afterwards."""
        with open(self.folder / PARTS, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        self.lines.append(line)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Those that are written."""
        return [line for line in self.lines if "part" in line]

    def known(self, name: str) -> Any:
        """What was noted once by that name, or None."""
        return next((line[name] for line in self.lines if name in line), None)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What failed, in order."""
        told = (failure for part in self.parts for failure in part["failures"])
        return tuple(Failure(index, source, ValueError(error)) for index, source, error in told)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
