"""The little of a SentencePiece model file that a unigram tokenizer needs: pieces, scores, unknown id, normaliser.

The file is a protocol buffer. Fields read: 1 pieces {1 piece: text, 2 score: float, 3 type: number}, 2 trainer {40
unk_id}, 3 normalizer {2 precompiled_charsmap: bytes}. Source of the numbers: sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError

__all__ = ["read_model"]

MAX_BYTES = 100_000_000
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


def read_model(path: Path) -> tuple[list[tuple[str, float]], int, bytes]:
    """(pieces with scores, id of the unknown piece, precompiled character map) of a unigram model.

    Raises ConfigError when the file is malformed or not a unigram model.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path.name}: expected at most {MAX_BYTES} bytes")
    pieces: list[tuple[str, float]] = []
    unk_id, charsmap, model_type = 0, b"", 1
    for number, value in _fields(memoryview(path.read_bytes())):
        if number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
            pieces.append((bytes(fields.get(1, b"")).decode("utf-8"), score))
        elif number == 2:
            trainer = dict(_fields(value))
            unk_id, model_type = trainer.get(40, 0), trainer.get(3, 1)
        elif number == 3:
            charsmap = bytes(dict(_fields(value)).get(2, b""))
    if model_type != 1:
        raise ConfigError(f"{path.name}: model type {model_type}, expected 1 (unigram)")
    if not pieces or not 0 <= unk_id < len(pieces):
        raise ConfigError(f"{path.name}: {len(pieces)} pieces and unknown id {unk_id}")
    return pieces, unk_id, charsmap
