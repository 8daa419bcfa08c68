"""A row, before it is encoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Columns", "Row", "Unread"]


class Row(NamedTuple):
    """What names a row, what `encode` takes, and the bytes it holds until then, as far as is known."""

    key: str
    item: Any
    size: int = 0


class Columns(NamedTuple):
    """What is read of each row: the item's column or extension, the key's column, the modalities that a model reads;
    and the numbers of rows that have no name."""

    column: str | None
    key: str | None
    readable: tuple[str, ...]
    numbers: Iterator[int]


class Unread:
    """An item that says why it cannot be read when it is: as of any other bad one, that is its row's failure."""

    def __init__(self, why: str):
        self.why = why

    def read(self) -> bytes:
        raise ValueError(self.why)
