"""Where rows come from: folders, patterns, tar shards, tables, files of texts, any iterable; here or where fsspec goes.

A row is a key that names it and an item that `encode` takes. Rows come in one order, each when it is asked for; what a
file holds is read when its turn comes. A folder stands for the media in it, at any depth, sorted by path, or else for
its tar shards, or else for its tables. A tar shard holds samples as WebDataset's do: files that follow one another and
have one name up to the first dot. Rows of tables and lines of texts are numbered through; of an iterable every string
is its own key, of anything else its number is.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import count, groupby
from typing import Any

from ..modalities import AUDIO, IMAGE, TEXT, VIDEO
from ..processing.items import extension_of
from . import tables
from .rows import Columns, Row, Unread
from .stores import Store, is_elsewhere, store_of

__all__ = ["describe", "is_source", "rows_of"]

MEDIA, SHARD, TABLE, TEXTS = "media", "shard", "table", "texts"
EXTENSIONS = {
    SHARD: (".tar", ".tar.gz", ".tgz"),
    TABLE: (".parquet", ".arrow", ".feather", ".csv"),
    TEXTS: (".txt",),
}
IN_FOLDERS = (MEDIA, SHARD, TABLE)  # the first of these that a folder holds
LARGEST_MEMBER = 1 << 30  # bytes of one file in a shard
COUNTED = re.compile(r"\{(\d+)\.\.(\d+)\}")
SAMPLE = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]*)")  # the name of a sample, and of one of its files


def describe(inputs: Any) -> str:
    """What rows come from, as a job remembers it."""
    names = inputs if _are_containers(inputs) else [inputs]
    return ", ".join(os.fspath(name) if _is_path(name) else type(name).__name__ for name in names)


def is_source(inputs: Any) -> bool:
    """Whether rows are read here, out of files or a table, instead of taken from an iterable."""
    return _is_path(inputs) or _are_containers(inputs) or tables.is_table(inputs)


def rows_of(inputs: Any, readable: tuple[str, ...], column: str | None = None, key: str | None = None) -> Iterator[Row]:
    """Rows of a folder, a pattern ("*", "?", "[ab]", "**", "{000..017}"), a shard, a table, a file of lines, a list of
    shards or tables, a table in memory (Arrow, pandas, Polars, datasets), or any iterable of items.

    `readable`: the modalities of a folder's files that are taken. `column`: of tables the one that holds the items, of
    shards the extension ("jpg"); needed where there are several. `key`: the column that names a table's rows.

    Raises ValueError where there is nothing to read, or no such column.
    """
    columns = Columns(column, key, readable, count())
    if _is_path(inputs) or _are_containers(inputs):
        names = [inputs] if _is_path(inputs) else inputs
        return (row for name in names for row in _of_name(os.fspath(name), columns))
    if tables.is_table(inputs):
        return tables.rows_of_batches(tables.batches_of(inputs), columns)
    if not isinstance(inputs, Iterable) or isinstance(inputs, bytes | bytearray | dict) or hasattr(inputs, "read"):
        raise ValueError(f"inputs: found {type(inputs).__name__}, expected a folder, a pattern, a file or an iterable")
    return map(_row_of_item, inputs, columns.numbers)


def _is_path(name: Any) -> bool:
    return isinstance(name, str | os.PathLike)


def _are_containers(inputs: Any) -> bool:
    """Whether it is a list of names of shards or tables; lists of media and of texts are items."""
    several = isinstance(inputs, list | tuple) and bool(inputs)
    return several and all(_is_path(name) and _kind(os.fspath(name)) in (SHARD, TABLE) for name in inputs)


def _kind(name: str) -> str | None:
    lower = name.lower()
    return next(
        (kind for kind, ends in EXTENSIONS.items() if lower.endswith(ends)), MEDIA if extension_of(lower) else None
    )


def _row_of_item(item: Any, number: int) -> Row:
    key = os.fspath(item) if _is_path(item) else str(number)
    if is_elsewhere(item) and extension_of(item.lower()):
        item = store_of(item).item(item)
    return Row(key, item, len(item) if isinstance(item, bytes | bytearray | memoryview) else getattr(item, "nbytes", 0))


def _of_name(name: str, columns: Columns) -> Iterator[Row]:
    """Rows of what a name stands for; ValueError where that is nothing."""
    for one in _counted(name):
        store = store_of(one)
        rows = _of_several(store, one, columns) if store.is_folder(one) or _is_pattern(store, one) else None
        first = None
        for first in _of_file(store, one, columns) if rows is None else rows:
            yield first
        if first is None and rows is not None:
            containers = ", ".join(EXTENSIONS[SHARD] + EXTENSIONS[TABLE])
            raise ValueError(f"{one}: nothing to read, expected {', '.join(columns.readable)} files, or {containers}")


def _is_pattern(store: Store, name: str) -> bool:
    return glob.has_magic(name) and not store.is_file(name)


def _counted(name: str) -> list[str]:
    """The names of "shard-{000..017}.tar", as WebDataset's are said."""
    match = COUNTED.search(name)
    if not match or os.path.exists(name):
        return [name]
    first, last = match.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [one for number in numbers for one in _counted(name[: match.start()] + number + name[match.end() :])]


def _of_several(store: Store, name: str, columns: Columns) -> Iterator[Row]:
    """Rows of a folder's or a pattern's files, of one kind."""
    taken = {MEDIA: lambda file: extension_of(file.lower()) in columns.readable}
    kinds = {kind for file in store.names(name) if taken.get(kind := _kind(file), lambda _: True)(file)}
    chosen = next((kind for kind in IN_FOLDERS if kind in kinds), None)
    within = store.is_folder(name)
    for file in store.names(name):
        if chosen == MEDIA and taken[MEDIA](file):
            yield Row(store.short(file, name) if within else file, store.item(file))
        elif chosen not in (MEDIA, None) and _kind(file) == chosen:
            yield from _of_file(store, file, columns)


def _of_file(store: Store, name: str, columns: Columns) -> Iterator[Row]:
    """Rows of one file."""
    kind = _kind(name)
    if kind == SHARD:
        yield from _of_shard(store, name, columns)
    elif kind == TABLE:
        yield from tables.rows_of_batches(tables.batches_of_file(store, name, columns), columns)
    elif kind == TEXTS:
        with store.open(name) as file:
            for line, number in zip(file, columns.numbers, strict=False):
                yield Row(str(number), {TEXT.name: line.decode("utf-8", "replace").rstrip("\r\n")}, len(line))
    elif store.is_file(name):
        yield Row(name, store.item(name))
    else:
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", name)


def _of_shard(store: Store, name: str, columns: Columns) -> Iterator[Row]:
    """Samples of a tar file. ValueError where it is none, or is cut short."""
    try:
        with store.open(name) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            members = (
                (*match.groups(), member, tar)
                for member in tar
                if member.isfile() and (match := SAMPLE.fullmatch(member.name)) and "/__" not in f"/{member.name}"
            )
            for key, files in groupby(members, lambda member: member[0]):
                yield _sample(key, files, columns)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: not a whole tar file: {error}") from error


def _sample(key: str, files: Iterable[tuple], columns: Columns) -> Row:
    """The wanted file of a sample: that of `column`, or the first of what the model reads, a picture before a text."""
    best: tuple[int, Row] | None = None
    names = []
    for _, extension, member, tar in files:
        names.append(extension)
        modality = extension_of(f".{extension.lower()}") or (
            TEXT.name if extension.lower() in ("txt", "text") else None
        )
        if extension.lower() != columns.column if columns.column else modality not in columns.readable:
            continue
        rank = (IMAGE.name, VIDEO.name, AUDIO.name, TEXT.name).index(modality or TEXT.name)
        if best is None or rank < best[0]:
            best = rank, Row(key, _content(member, tar, modality or TEXT.name), member.size)
    wanted = columns.column or f"one of {', '.join(columns.readable)}"
    return best[1] if best else Row(key, {"image": Unread(f"found {', '.join(names)}, expected {wanted}")})


def _content(member: tarfile.TarInfo, tar: tarfile.TarFile, modality: str) -> Any:
    if member.size > LARGEST_MEMBER:
        return {modality: Unread(f"{member.size} bytes, expected at most {LARGEST_MEMBER}")}
    data = tar.extractfile(member).read()
    return {modality: data.decode("utf-8", "replace") if modality == TEXT.name else data}
