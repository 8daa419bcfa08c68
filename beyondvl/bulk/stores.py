"""Where files lie: on this machine, or where fsspec reaches ("s3://bucket/folder")."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from ..files import open_regular
from ..processing.items import extension_of

__all__ = ["Elsewhere", "Fetched", "Here", "Store", "fetch", "is_elsewhere", "store_of"]

ELSEWHERE = re.compile(r"(?!file://|https?://|data:)[a-zA-Z][\w+.-]+://")


def is_elsewhere(name: Any) -> bool:
    """Whether a string names what fsspec reaches; pages of the web are not fetched."""
    return isinstance(name, str) and ELSEWHERE.match(name) is not None


class Here:
    """Files of this machine."""

    def names(self, pattern: str) -> Iterator[str]:
        """Files that a name stands for: itself, those of a folder at any depth, or of a pattern."""
        if os.path.isdir(pattern):
            yield from self._within(pattern)
        elif glob.has_magic(pattern) and not os.path.exists(pattern):
            yield from sorted(name for name in glob.iglob(pattern, recursive=True) if not os.path.isdir(name))
        else:
            yield pattern

    def _within(self, folder: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        for name, is_folder in names:
            if not name.startswith("."):
                path = os.path.join(folder, name)
                yield from self._within(path) if is_folder else [path]

    def is_folder(self, name: str) -> bool:
        return os.path.isdir(name)

    def is_file(self, name: str) -> bool:
        return os.path.exists(name)

    def short(self, name: str, folder: str) -> str:
        """What a file is called within a folder."""
        return name.removeprefix(folder.rstrip("/") + "/")

    def open(self, name: str) -> BinaryIO:
        return open(open_regular(name), "rb")

    def item(self, name: str) -> Any:
        """A file as `encode` takes it."""
        return name


class Elsewhere:
    """As Here, by fsspec."""

    def __init__(self, name: str):
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ImportError(f"{name}: needs fsspec: pip install 'beyondvl[remote]'") from error
        self.files = url_to_fs(name)[0]

    def names(self, pattern: str) -> Iterator[str]:
        if self.is_folder(pattern):
            yield from map(self.files.unstrip_protocol, sorted(self.files.find(pattern)))
        elif glob.has_magic(pattern):
            yield from map(self.files.unstrip_protocol, sorted(self.files.glob(pattern)))
        else:
            yield pattern

    def is_folder(self, name: str) -> bool:
        return self.files.isdir(name)

    def is_file(self, name: str) -> bool:
        return self.files.isfile(name)

    def short(self, name: str, folder: str) -> str:
        name, folder = map(self.files._strip_protocol, (name, folder))
        return name.removeprefix(folder.rstrip("/") + "/")

    def open(self, name: str) -> BinaryIO:
        return self.files.open(name, "rb")

    def item(self, name: str) -> Any:
        return {extension_of(name.lower()): Fetched(self.files, name)}


Store = Here | Elsewhere


def store_of(name: str) -> Store:
    """Where a name lies."""
    return Elsewhere(name) if is_elsewhere(name) else Here()


class Fetched:
    """A file elsewhere, whole: fetched with others of its batch, or when it is read."""

    def __init__(self, files: Any, name: str):
        self.files, self.name = files, name
        self.content: bytes | Exception | None = None

    def __fspath__(self) -> str:
        return self.name

    def read(self) -> bytes:
        if self.content is None:
            self.content = self.files.cat_file(self.name)
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


def fetch(items: Iterable[Any]) -> None:
    """Reads those of the items that lie elsewhere, as many at once as their file system does; what cannot be read says
    so in its turn."""
    waiting: dict[int, list[Fetched]] = {}
    for item in items:
        for value in item.values() if isinstance(item, dict) else ():
            if isinstance(value, Fetched):
                waiting.setdefault(id(value.files), []).append(value)
    for several in waiting.values():
        files = several[0].files
        contents = files.cat([one.name for one in several], on_error="return", recursive=False)
        if not isinstance(contents, dict):  # of a single one
            contents = {files._strip_protocol(several[0].name): contents}
        for one in several:
            content = contents.get(files._strip_protocol(one.name))
            one.content = FileNotFoundError(f"{one.name}: not there") if content is None else content
