"""pytorch_model.bin without torch: a reader of the zip layout that executes nothing.

Such a file is a zip of stored (uncompressed) members: `data.pkl` describes the tensors, `data/N` holds their bytes.
The description is a program for a stack machine; this reader knows the few instructions that a dictionary of
tensors needs and four names it may mention. Any other instruction or name is refused by name: nothing is
imported, no object is built but dictionaries, tuples, numbers, strings and records of this file.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .datafile import DTYPES, MAX_RANK, DataFile, Entry, is_size
from .errors import CheckpointError

__all__ = ["TorchFile"]

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch wrote first before it wrote zip files
MAX_PROGRAM_BYTES = 16_000_000  # some hundred a tensor
STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


@dataclass(frozen=True)
class Name:
    """A global the program mentions; only ever compared, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


REBUILD_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Name("torch._utils", "_rebuild_parameter")
ORDERED_DICT = Name("collections", "OrderedDict")
ALLOWED = {REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT} | {Name("torch", storage) for storage in STORAGES}


@dataclass(frozen=True)
class Storage:
    """The bytes of one member of the zip."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Mark:
    """Separates the operands of an instruction that takes a variable number."""


MARK = Mark()


class Machine:
    """Interprets the description; `run` returns the object it leaves."""

    def __init__(self, program: bytes, fail: Callable[[str], CheckpointError]):
        self.program, self.fail, self.at = program, fail, 0
        self.stack: list = []
        self.memo: dict[int, object] = {}

    def take(self, count: int) -> bytes:
        piece = self.program[self.at : self.at + count]
        if len(piece) != count:
            raise self.fail("data.pkl ends early")
        self.at += count
        return piece

    def number(self, code: str) -> int | float:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def line(self) -> str:
        end = self.program.find(b"\n", self.at)
        if end < 0:
            raise self.fail("data.pkl ends early")
        text = self.program[self.at : end].decode("utf-8")
        self.at = end + 1
        return text

    def pop(self):
        if not self.stack:
            raise self.fail("data.pkl takes from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list:
        items = []
        while (item := self.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def run(self):
        while True:
            code = self.take(1)
            if code == b".":
                return self.pop()
            action = INSTRUCTIONS.get(code)
            if action is None:
                raise self.fail(f"instruction {code!r} is not one a dictionary of tensors needs")
            action(self)

    def push_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):  # anything else might be huge to print
            raise self.fail("mentions something whose name is no text")
        global_name = Name(module, name)
        if global_name not in ALLOWED:
            raise self.fail(f"mentions {global_name}, which is not allowed: only tensors, storages and OrderedDict are")
        self.stack.append(global_name)

    def persistent(self) -> None:
        """('storage', kind, key, location, count) -> a storage."""
        match self.pop():
            case ("storage", Name("torch", kind), str(key), str(), int(count)) if kind in STORAGES:
                self.stack.append(Storage(STORAGES[kind], key, count))
            case other:
                raise self.fail(f"unexpected storage of {type(other).__name__}")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        match function, arguments:
            case (Name(), ()) if function == ORDERED_DICT:
                self.stack.append({})
            case (Name(), (Storage() as storage, int(offset), tuple(shape), tuple(stride), *_)) if (
                function == REBUILD_TENSOR and _are_sizes(shape) and _are_sizes(stride) and _are_sizes((offset,))
            ):
                self.stack.append(Tensor(storage, offset, shape, stride))
            case (Name(), (Tensor() as tensor, *_)) if function == REBUILD_PARAMETER:
                self.stack.append(tensor)
            case _:
                name = str(function) if isinstance(function, Name) else type(function).__name__
                raise self.fail(f"unexpected call of {name}")

    def set_items(self, items: list) -> None:
        if not self.stack or not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise self.fail("data.pkl sets items of something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise self.fail(f"key of {type(key).__name__}: expected text")
            self.stack[-1][key] = value

    def build(self) -> None:
        """Attributes of an OrderedDict (its _metadata): read past, never set."""
        self.pop()

    def remember(self, index: int) -> None:
        if not self.stack:
            raise self.fail("data.pkl remembers an empty stack")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.fail(f"data.pkl recalls object {index}, which it never made")
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def text(self, length: int) -> None:
        self.stack.append(self.take(length).decode("utf-8"))

    def push(self, value) -> None:
        self.stack.append(value)


INSTRUCTIONS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": lambda m: m.take(1),  # protocol
    b"\x95": lambda m: m.take(8),  # frame
    b"(": lambda m: m.push(MARK),
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push(()),  # lists only ever appear empty, as hooks
    b")": lambda m: m.push(()),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"G": lambda m: m.push(m.number(">d")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    b"X": lambda m: m.text(m.number("<I")),
    b"\x8c": lambda m: m.text(m.number("<B")),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"c": lambda m: m.push_global(m.line(), m.line()),
    b"\x93": lambda m: (lambda name, module: m.push_global(module, name))(m.pop(), m.pop()),
    b"Q": lambda m: m.persistent(),
    b"R": lambda m: m.reduce(),
    b"s": lambda m: (lambda value, key: m.set_items([key, value]))(m.pop(), m.pop()),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"b": lambda m: m.build(),
}


def _are_sizes(sizes: tuple) -> bool:
    return len(sizes) <= MAX_RANK and all(map(is_size, sizes))


class TorchFile(DataFile):
    """The tensors of one torch zip file as entries that point into it."""

    def __init__(self, path: Path):
        super().__init__(path)
        if self.read_bytes(min(self.size, len(LEGACY)), 0) == LEGACY:
            raise self.fail(
                "saved by torch before 1.6, which is no zip file: convert it where torch is installed: "
                "torch.save(torch.load(old, weights_only=True), new)"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                members = {info.filename: info for info in archive.infolist()}
                program_name = next((name for name in members if name.endswith("/data.pkl")), None)
                if program_name is None:
                    raise self.fail("no data.pkl inside: expected a file saved by torch >= 1.6")
                info = members[program_name]
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > MAX_PROGRAM_BYTES:
                    raise self.fail(
                        f"data.pkl: {info.file_size} bytes, expected at most {MAX_PROGRAM_BYTES}, not compressed"
                    )
                program = archive.read(program_name)
        except CheckpointError:
            raise
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error) as error:
            raise self.fail(f"not a torch zip file: {error}") from error
        self.prefix = program_name.removesuffix("data.pkl")
        self.members = members
        try:
            table = Machine(program, self.fail).run()
        except CheckpointError:
            raise
        except (ValueError, RuntimeError, struct.error) as error:
            raise self.fail(f"data.pkl is malformed: {error}") from error
        if isinstance(table, dict) and set(table) & {"state_dict"}:
            table = table["state_dict"]
        if not isinstance(table, dict):
            raise self.fail("expected a dictionary of tensors")
        self.entries = {name: self.entry(name, t) for name, t in table.items() if isinstance(t, Tensor)}

    def data_offset(self, name: str, storage: Storage) -> tuple[int, int]:
        """Where a storage's bytes begin in the file, and how many there are."""
        info = self.members.get(f"{self.prefix}data/{storage.key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise self.fail(f"{name}: its storage {storage.key!r} is missing or compressed")
        local = self.read_bytes(30, info.header_offset)
        if local[:4] != b"PK\x03\x04":
            raise self.fail(f"{name}: its storage {storage.key!r} has no local header")
        names, extra = struct.unpack("<HH", local[26:30])
        begin = info.header_offset + 30 + names + extra
        if begin + info.file_size > self.size:
            raise self.fail(f"{name}: its storage ends past the file: truncated")
        return begin, info.file_size

    def entry(self, name: str, tensor: Tensor) -> Entry:
        if len(tensor.shape) != len(tensor.stride):
            raise self.fail(f"{name}: shape {tensor.shape}, stride {tensor.stride}: expected as many sizes")
        begin, length = self.data_offset(name, tensor.storage)
        itemsize = np.dtype(DTYPES[tensor.storage.dtype]).itemsize
        entry = Entry(self, tensor.storage.dtype, tensor.shape, begin + tensor.offset * itemsize)
        if (tensor.offset + math.prod(tensor.shape)) * itemsize > length:
            raise self.fail(f"{name}: shape {list(tensor.shape)} needs more than its storage's {length} bytes")
        expected = [math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
        if any(n > 1 and have != want for n, have, want in zip(tensor.shape, tensor.stride, expected, strict=True)):
            raise self.fail(f"{name}: stride {list(tensor.stride)}: expected a contiguous tensor {expected}")
        return entry
