"""The little of a SentencePiece model file that a unigram tokenizer needs: pieces, scores, unknown id, normaliser.

The file is a protocol buffer. Fields read: 1 pieces {1 piece: text, 2 score: float, 3 type: number}, 2 trainer {3
model_type, 40 unk_id, 35 byte_fallback}, 3 normalizer {2 precompiled_charsmap: bytes}. Source of the numbers:
sentencepiece_model.proto.

A character map is the bytes of a double array, their number before them, and the texts it points into. The library
follows it unchecked, so it is followed here first. A unit of the array holds bits 0-7 and 31 label, 8 whether a value
is there, 9 whether the offset is in units of 256, 10-30 offset (darts-clone's format); the child of base b under the
byte c lies at b ^ c.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..folder import Folder

__all__ = ["PieceModel", "check_character_maps", "read_model"]

NAME = "spiece.model"
MAX_BYTES = 100_000_000
MOST_UNITS = 1 << 20  # of a character map; the usual ones have 60,000
AT_ONCE = 1 << 12
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ConfigError("spiece.model: truncated")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: an int for varints, bytes for the rest."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            length, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ConfigError(f"spiece.model: field of unknown kind {kind}")
        if at + length > len(data):
            raise ConfigError("spiece.model: truncated")
        yield key >> 3, data[at : at + length]
        at += length


@dataclass(frozen=True)
class PieceModel:
    """A unigram model: pieces with scores, the unknown one's id, the character map, whether bytes stand in for what no
    piece holds."""

    pieces: list[tuple[str, float]]
    unk_id: int
    charsmap: bytes
    byte_fallback: bool


def read_model(folder: Folder) -> PieceModel:
    """spiece.model of a folder. Raises ConfigError when the file is malformed or not a unigram model."""
    pieces: list[tuple[str, float]] = []
    unk_id, charsmap, model_type, byte_fallback = 0, b"", 1, 0
    for number, value in _fields(memoryview(folder.read(NAME, MAX_BYTES))):
        if number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
            pieces.append((bytes(fields.get(1, b"")).decode("utf-8"), score))
        elif number == 2:
            trainer = dict(_fields(value))
            unk_id, model_type, byte_fallback = trainer.get(40, 0), trainer.get(3, 1), trainer.get(35, 0)
        elif number == 3:
            charsmap = bytes(dict(_fields(value)).get(2, b""))
    if charsmap:
        _check_character_map(charsmap, NAME)
    if model_type != 1:
        raise ConfigError(f"{NAME}: model type {model_type}, expected 1 (unigram)")
    if not pieces or not 0 <= unk_id < len(pieces):
        raise ConfigError(f"{NAME}: {len(pieces)} pieces and unknown id {unk_id}")
    return PieceModel(pieces, unk_id, charsmap, bool(byte_fallback))


def check_character_maps(tokenizer: Any) -> None:
    """ConfigError where a character map in the normalizer of a tokenizer.json would be followed out of its bounds."""
    name, waiting = "tokenizer.json", [tokenizer.get("normalizer") if isinstance(tokenizer, dict) else None]
    while waiting:
        step = waiting.pop()
        if isinstance(step, list):
            waiting += step
        elif isinstance(step, dict):
            waiting += [value for value in step.values() if isinstance(value, list | dict)]
            if isinstance(text := step.get("precompiled_charsmap"), str):
                try:
                    data = base64.b64decode(text)
                except binascii.Error as error:
                    raise ConfigError(f"{name}: precompiled_charsmap: {error}") from error
                _check_character_map(data, name)


def _check_character_map(data: bytes, name: str) -> None:
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size % 4 or not 4 <= size <= min(4 * MOST_UNITS, len(data) - 4):
        raise ConfigError(f"{name}: character map of {len(data)} bytes: found an array of {size}, expected it within")
    units = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    texts = np.frombuffer(data, np.uint8, offset=4 + size)
    offsets, labels = (units >> 10) << ((units >> 6) & 8), np.arange(1, 256)
    inside = np.append((texts & 0xC0) != 0x80, True)  # places that do not cut a character
    seen, waiting = np.zeros(len(units), bool), offsets[:1]
    while len(waiting):
        bases, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        children = bases[:, None] ^ labels
        if children.max() >= len(units):
            raise ConfigError(f"{name}: character map: found a step to {children.max()}, expected below {len(units)}")
        places = np.unique(children[(units[children] & 0x800000FF) == labels])
        places = places[~seen[places]]
        seen[places] = True
        following = places ^ offsets[places]
        waiting = np.concatenate([waiting, following])
        leaves = following[(units[places] >> 8) & 1 == 1]
        values = units[leaves[leaves < len(units)]] & 0x7FFFFFFF
        if (leaves >= len(units)).any() or (values >= len(inside)).any() or not inside[values].all():
            raise ConfigError(f"{name}: character map: found a value that points to no text, expected one of its own")
