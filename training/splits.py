"""The parts of the data: what is trained on, what is chosen on, what is reported on.

Flickr8k (7,000 photographs, five captions each; Hodosh et al., 2013): `train`; the first half of `dev` to choose on, the
second half to report on. DAQUAR (795 rooms with questions; Malinowski and Fritz, 2014): by photograph, 15 % to choose on,
another 15 % to report on. ESC-10 (320 sounds; Piczak, 2015): folds 1 to 4, each left out once. The official test parts
are in none of them.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Archive", "Part", "daquar", "esc10", "flickr8k"]

SHARES = {"choose": range(0, 15), "report": range(15, 30), "train": range(30, 100)}  # of a hundred


@dataclass(frozen=True)
class Part:
    """`files` of an archive, and what goes with each: captions, (question, answer) pairs, or a class."""

    files: tuple[str, ...]
    words: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.files)


class Archive:
    """A tar of files and of the .jsonl that say what they show; files are read where they lie."""

    def __init__(self, path: Path):
        self.path, self.tar = path, tarfile.open(path)  # noqa: SIM115  (open for as long as the archive is)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.tar.close()

    def read(self, name: str) -> bytes:
        """A file's content. KeyError where there is none of that name."""
        with self.tar.extractfile(name) as file:
            return file.read()

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of a .jsonl."""
        return [json.loads(line) for line in self.read(name).splitlines()]


def flickr8k(archive: Archive) -> dict[str, Part]:
    """ "train" (6,000), "choose" (500) and "report" (500): captions of each photograph."""
    train, dev = archive.rows("train.jsonl"), archive.rows("dev.jsonl")
    half = len(dev) // 2
    parts = {"train": train, "choose": dev[:half], "report": dev[half:]}
    return {
        name: Part(tuple(row["file"] for row in rows), tuple(tuple(row["captions"]) for row in rows))
        for name, rows in parts.items()
    }


def daquar(archive: Archive) -> dict[str, Part]:
    """ "train", "choose" and "report": (question, answer) pairs of each photograph, by crc32 of its name."""
    rows = archive.rows("questions.jsonl")
    parts = {}
    for name, share in SHARES.items():
        chosen = [row for row in rows if zlib.crc32(row["file"].encode()) % 100 in share]
        files = tuple(row["file"] for row in chosen)
        parts[name] = Part(files, tuple(tuple(map(tuple, row["questions"])) for row in chosen))
    return parts


def esc10(archive: Archive) -> dict[int, Part]:
    """Each fold: the class of each sound."""
    rows = archive.rows("sounds.jsonl")
    folds = sorted({row["fold"] for row in rows})
    return {
        fold: Part(
            tuple(row["file"] for row in rows if row["fold"] == fold),
            tuple(row["class"] for row in rows if row["fold"] == fold),
        )
        for fold in folds
    }
