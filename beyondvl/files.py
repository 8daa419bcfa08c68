"""Files that others name: only regular ones are opened (a pipe would wait, a device never ends), and read up to a
limit. What is wrong with one is an OSError whose `strerror` says it. What several files say together is written aside
and moved in at the end."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_empty", "open_regular", "read_regular", "write_aside"]


def open_regular(path: str | os.PathLike) -> int:
    """A descriptor to read from."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return fd


def read_regular(path: str | os.PathLike, most: int) -> bytes:
    """The whole of a file of at most so many bytes."""
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, expected at most {most}", os.fspath(path))
        return file.read()


def check_empty(folder: Path) -> None:
    """ValueError where a folder holds files: those of something else would be taken for the new one's."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: holds files, expected a new or empty folder")


@contextmanager
def write_aside(folder: Path, last: tuple[str, ...], stale: Iterable[Path] = ()) -> Iterator[Path]:
    """A new folder whose files move into `folder` when all of them are written, those named `last` after the others;
    `stale` are taken out unless written anew.

    Where writing or moving fails, `folder` is as it was. What reads it needs `last`, which go first and come back at
    the end: of a process that is killed in between, no mixture of two models is left to be read.
    """
    import tempfile  # loading a model does not wait for it

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".aside.", dir=folder) as place:
        new, old = Path(place, "new"), Path(place, "old")
        new.mkdir()
        yield new
        names = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
        for path in names:
            with open(new / path, "rb") as file:
                os.fsync(file.fileno())
        back = sorted(names, key=lambda path: last.index(str(path)) if str(path) in last else -1)
        gone = [path for path in dict.fromkeys([*back[::-1], *stale]) if os.path.lexists(folder / path)]
        for path in gone:
            if (folder / path).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(folder / path))
        taken: list[Path] = []
        put: list[Path] = []
        try:
            for path in gone:
                _move(folder / path, old / path)
                taken.append(path)
            for path in back:
                _move(new / path, folder / path)
                put.append(path)
        except BaseException:
            for path in put:
                os.unlink(folder / path)
            for path in taken:
                _move(old / path, folder / path)
            raise


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
