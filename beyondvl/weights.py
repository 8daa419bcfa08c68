"""Checkpoints: safetensors (one file or shards with an index) read one tensor at a time as float32.

Nothing stays mapped or open: each tensor is read with pread into its own memory, so a file that is replaced or
truncated while it is read gives an error instead of killing the process. Every size in a header is checked against
the file before anything is allocated. Format: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np

from .config import read_json
from .datafile import DTYPES, MAX_RANK, DataFile, Entry, is_size
from .errors import CheckpointError, ConfigError, MissingWeightError
from .spec import replace

__all__ = ["Checkpoint", "SafetensorsFile", "open_checkpoint", "save_safetensors"]

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000

FLOATS = {"F64", "F32", "F16", "BF16"}


def _pairs_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"duplicate key {name!r}")
        result[name] = value
    return result


class SafetensorsFile(DataFile):
    """One .safetensors file, its header checked in full."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.entries = self.parse(self.header())

    def header(self) -> bytes:
        if self.size < 8:
            raise self.fail(f"{self.size} bytes: expected a header length of 8 bytes")
        head = self.read_bytes(8, 0)
        length = int.from_bytes(head, "little")
        if head.startswith(b"version "):
            raise self.fail("this is a Git LFS pointer, not the weights: fetch the file itself (git lfs pull)")
        if length > MAX_HEADER_BYTES or 8 + length > self.size:
            most = min(MAX_HEADER_BYTES, self.size - 8)
            raise self.fail(f"header of {length} bytes: expected at most {most} in a file of {self.size}")
        self.data_begin = 8 + length
        return self.read_bytes(length, 8)

    def parse(self, header: bytes) -> dict[str, Entry]:
        if not header.startswith(b"{"):
            raise self.fail("header: expected JSON that begins with '{'")
        try:
            table = json.loads(header.decode("utf-8"), object_pairs_hook=_pairs_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise self.fail(f"header is not valid JSON: {error}") from error
        metadata = table.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self.fail("__metadata__: expected an object of strings")
        if len(table) > MAX_TENSORS:
            raise self.fail(f"{len(table)} tensors: expected at most {MAX_TENSORS}")
        entries = {name: self.entry(name, fields) for name, fields in table.items()}
        self.check_layout(entries)
        return entries

    def entry(self, name: str, fields: object) -> Entry:
        if not name or any(ord(c) < 32 for c in name):
            raise self.fail(f"tensor name {name!r}: expected printable characters")
        if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
            raise self.fail(f"{name}: expected the fields dtype, shape and data_offsets")
        dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self.fail(f"{name}: dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        if not (isinstance(shape, list) and len(shape) <= MAX_RANK and all(map(is_size, shape))):
            raise self.fail(f"{name}: shape {shape!r}: expected at most {MAX_RANK} sizes from 0 to 2^48")
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(is_size, offsets))):
            raise self.fail(f"{name}: data_offsets {offsets!r}: expected [begin, end]")
        bytes_needed = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if offsets[1] - offsets[0] != bytes_needed:
            raise self.fail(
                f"{name}: data_offsets {offsets} span {offsets[1] - offsets[0]} bytes, "
                f"expected {bytes_needed} for shape {shape} of {dtype}"
            )
        return Entry(self, dtype, tuple(shape), self.data_begin + offsets[0])

    def check_layout(self, entries: dict[str, Entry]) -> None:
        """Tensors lie one after another without hole or overlap and end where the file ends."""
        at = self.data_begin
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].count)):
            if entry.begin != at:
                raise self.fail(f"{name}: begins at byte {entry.begin}, expected {at}: tensors overlap or leave a hole")
            at += entry.count * np.dtype(DTYPES[entry.dtype]).itemsize
        if at != self.size:
            raise self.fail(f"{self.size} bytes, expected {at} from the header: truncated or trailing data")


class Checkpoint:
    """All tensors of a model by name, whatever files they lie in.

    `rename` maps a stored key to the name families use; int8 tensors are widened with the scales stored beside
    them (`NAME_scale`, one per row or one in all; or bitsandbytes' `.SCB`, absmax per row over 127).
    """

    def __init__(self, entries: dict[str, Entry], source: str):
        self.entries, self.source = entries, source

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def names(self) -> list[str]:
        return list(self.entries)

    def renamed(self, rename) -> Checkpoint:
        renamed: dict[str, Entry] = {}
        for key, entry in self.entries.items():
            name = rename(key)
            if name in renamed:
                raise CheckpointError(f"{self.source}: two tensors would be named {name}")
            renamed[name] = entry
        return Checkpoint(renamed, self.source)

    def joined(self, other: Checkpoint) -> Checkpoint:
        """With another one's tensors beside its own. CheckpointError for a name that both have."""
        if twice := sorted(set(self.entries) & set(other.entries)):
            raise CheckpointError(f"{other.source}: {twice[0]} is in {self.source} too")
        return Checkpoint({**self.entries, **other.entries}, self.source)

    def over(self, base: Checkpoint) -> Checkpoint:
        """With the tensors of another one that it has not; what is there in both is its own, scales included."""
        own = self.entries.keys()
        kept = {n: replace(e, lent=True) for n, e in base.entries.items() if not own & {n, n.removesuffix("_scale")}}
        return Checkpoint({**kept, **self.entries}, self.source)

    def scale_name(self, name: str) -> str | None:
        for candidate in (f"{name}_scale", re.sub(r"\.weight$", ".SCB", name)):
            if candidate != name and candidate in self.entries:
                return candidate
        return None

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as float32, whatever axes of 1 it is stored with; CheckpointError when it is missing or of another
        shape."""
        entry = self.entries.get(name)
        if entry is None:
            raise MissingWeightError(f"{self.source}: {name} is missing, expected a tensor of shape {list(shape)}")
        if entry.count != math.prod(shape) or _squeezed(entry.shape) != _squeezed(shape):
            raise CheckpointError(
                f"{self.source}: {name}: found shape {list(entry.shape)}, the config expects {list(shape)}"
            )
        array = entry.source.read_floats(entry).reshape(shape)
        if entry.dtype in FLOATS:
            return array
        scale = self.scale_name(name)
        if entry.dtype != "I8" or scale is None:
            raise CheckpointError(
                f"{self.source}: {name}: dtype {entry.dtype} without scales, expected floats or I8 with {name}_scale"
            )
        return self.apply_scale(array, name, scale)

    def apply_scale(self, array: np.ndarray, name: str, scale: str) -> np.ndarray:
        entry = self.entries[scale]
        rows = array.shape[0] if array.ndim else 1
        if entry.dtype not in FLOATS or entry.count not in (1, rows):
            raise CheckpointError(
                f"{self.source}: {scale}: {entry.dtype} {list(entry.shape)}, expected 1 or {rows} floats"
            )
        factors = entry.source.read_floats(entry).reshape(-1)
        if scale.endswith(".SCB"):
            factors = factors / np.float32(127)
        array *= factors.reshape((-1,) + (1,) * (array.ndim - 1))
        return array

    def companions(self, used: set[str]) -> set[str]:
        """Scales that belong to tensors that were read."""
        return {scale for name in used if (scale := self.scale_name(name))}


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


SHARD_NAME = re.compile(r"[\w.\-]+\.(safetensors|bin)")


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = read_json(path).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(f"not a shard index: {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path.name}: not a shard index: weight_map: expected a non-empty object")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise CheckpointError(f"{path.name}: {name}: file {shard!r}: expected a plain file name in the same folder")
    return weight_map


def _open_file(path: Path) -> dict[str, Entry]:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path).entries
    from .torch_bin import TorchFile  # most checkpoints do not wait for it

    return TorchFile(path).entries


def _open_shards(index_path: Path) -> dict[str, Entry]:
    weight_map = _read_index(index_path)
    entries: dict[str, Entry] = {}
    for shard in sorted(set(weight_map.values())):
        path = index_path.parent / shard
        if not path.exists():
            raise CheckpointError(f"{index_path.name}: shard {shard} is missing from {index_path.parent}")
        for name, entry in _open_file(path).items():
            if name in entries:
                raise CheckpointError(f"{index_path.name}: {name} lies in two shards")
            entries[name] = entry
    missing = sorted(set(weight_map) - set(entries))
    if missing:
        raise CheckpointError(f"{index_path.name}: {missing[0]} lies in no shard ({len(missing)} such)")
    return entries


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def open_checkpoint(folder: Path, first: tuple[str, ...] = ()) -> Checkpoint:
    """The weights in a folder, by the names in `first`, then the ecosystem's; safetensors before torch files.

    Raises CheckpointError when there is none or one is malformed.
    """
    for name in (*first, *WEIGHT_FILES):
        path = folder / name
        if path.exists():
            entries = _open_shards(path) if name.endswith(".index.json") else _open_file(path)
            return Checkpoint(entries, name)
    raise CheckpointError(f"{folder}: no weights found, expected one of {', '.join(WEIGHT_FILES)}")


def save_safetensors(path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None):
    """Writes arrays as a .safetensors file: to a temporary file in the same folder, then renamed over `path`."""
    names = {np.dtype(code): name for name, code in DTYPES.items() if name not in ("BF16", "BOOL")}
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, array in tensors.items():
        table[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for array in tensors.values():
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
