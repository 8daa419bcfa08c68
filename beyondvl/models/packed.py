"""Packed weights on disk: written once by `save_packed`, then mapped read-only and shared by all that load them.

packed.bin holds the blocks of each program in the order it took them, each at a multiple of 64 bytes; packed.json says
how the programs were built (operations, parameters, shapes), for which instruction set, and the checksum. A file that
is cut while it is mapped ends the process, as with any mapping: write a new folder instead of changing one in use.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _C
from ..compiled import Compiled
from ..config import Config, read_json
from ..errors import CheckpointError, ConfigError
from ..families.registry import Family
from ..files import open_regular, write_aside
from ..spec import Spec
from .classes import ModelClass
from .tower import Tower

__all__ = ["Packed", "is_packed", "packed_class", "read_packed", "save", "write_companions"]

FORMAT = 14  # of both files, the layouts in csrc/kernels/dot.h and the order of blocks (csrc/model/)
ALIGNMENT = 64
COMPANION = re.compile(r"([\w\-]+/)?[\w\-.]+\.(json|txt|model)")
PADDING = bytes(4 * ALIGNMENT)  # vector loads may read past the last block


def is_packed(folder: Path) -> bool:
    return (folder / "packed.json").exists()


def write_companions(files: Mapping[str, bytes], target: Path) -> list[str]:
    """Writes a checkpoint's configuration, tokenizer and processor files; their names."""
    for name, data in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return sorted(files)


def save(model: Any, folder: Path) -> None:
    """See `PreTrainedModel.save_packed`."""
    if any(tower.compiled.gemm != "own" for tower in model.towers.values()):
        raise ValueError(
            "save_packed: found a model loaded with BEYONDVL_GEMM=openblas, expected beyondvl's own products"
        )
    if folder.resolve() == model.folder.resolve():
        raise ValueError(f"{folder}: the checkpoint's own folder, expected another one")
    weights = sorted(
        p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin") and p.name != "packed.bin"
    )
    if weights and not is_packed(folder):
        raise ValueError(f"{folder}: found another checkpoint's {weights[0]}, expected a new folder or a packed one")
    with write_aside(folder, ("packed.bin", "packed.json"), _earlier_files(folder)) as aside:
        record = _write_blocks(model, aside / "packed.bin")
        record |= {"config": _digest(model.config), "files": write_companions(model.files.files, aside)}
        (aside / "packed.json").write_text(json.dumps(record))


def _earlier_files(folder: Path) -> list[Path]:
    """The companions that an earlier call put into a folder, and none that lie elsewhere."""
    names = None
    with contextlib.suppress(ConfigError):  # none, or a damaged one, which is replaced
        names = read_json(folder / "packed.json").get("files")
    names = names if isinstance(names, list) else []
    return [Path(name) for name in names if isinstance(name, str) and COMPANION.fullmatch(name)]


def _write_blocks(model: Any, path: Path) -> dict[str, Any]:
    """Writes the packed weights; what packed.json says of them."""
    towers: dict[str, dict[str, Any]] = {}
    with open(path, "wb") as file:
        for name, tower in model.towers.items():
            begin = file.tell()
            for block in tower.program.blocks():
                file.write(block.data)
                file.write(bytes(-len(block) % ALIGNMENT))
            built = {field: getattr(tower.compiled, field) for field in ("outputs", "sizes", "slots", "records")}
            towers[name] = {"begin": begin, "bytes": file.tell() - begin, **built}
        file.write(PADDING)
    return {
        "format": FORMAT,
        "isa": model.isa,
        "dtype": model.dtype,
        "class": type(model).__name__,
        "logit_scale": model.logit_scale,
        "logit_bias": model.logit_bias,
        "text_scale": model.text_scale,
        "bytes": path.stat().st_size,
        "checksum": _checksum(_map(path), model.num_threads),
        "towers": towers,
    }


def _digest(config: Config) -> str:
    """Of all that says what the programs are of."""
    text = json.dumps(config.to_dict(), sort_keys=True).encode()
    return _checksum(text + bytes(-len(text) % ALIGNMENT), 1)


def _checksum(data: bytes | mmap.mmap, num_threads: int) -> str:
    return f"{_C.checksum(data, num_threads):016x}"


def _map(path: Path) -> mmap.mmap:
    """The whole file, read-only; its pages are shared by all processes that map it."""
    with open(open_regular(path), "rb") as file:
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)


def _checked(record: Config, config: Config, path: Path, dtype: str, num_threads: int) -> mmap.mmap:
    """The mapping of packed.bin, after everything that packed.json says of it was compared."""
    active = _C.config()["isa"]
    if record.get("format") != FORMAT:
        raise CheckpointError(f"packed.json: format {record.get('format')!r}, expected {FORMAT}: save it again")
    if record.get("isa") != active:
        raise CheckpointError(
            f"packed.json: packed for instruction set {record.get('isa')}, this process runs {active}: load the "
            "checkpoint it was made of, or set BEYONDVL_ISA"
        )
    if dtype not in ("default", "auto", "fastest", record.get("dtype")):
        raise CheckpointError(f"packed.json: packed as {record.get('dtype')}, found dtype {dtype!r}")
    size = path.stat().st_size if path.exists() else 0
    if size != record.get("bytes") or size < len(PADDING):
        raise CheckpointError(f"packed.bin: {size} bytes, expected {record.get('bytes')}: truncated or replaced")
    if _digest(config) != record.get("config"):
        raise CheckpointError(
            "config.json: another one than these weights were packed with (or other modules of a sentence encoder): "
            "save them again"
        )
    mapping = _map(path)
    checksum = _checksum(mapping, num_threads)
    if checksum != record.get("checksum"):
        raise CheckpointError(
            f"packed.bin: checksum {checksum}, expected {record.get('checksum')}: the file is damaged"
        )
    return mapping


def _program(section: Config, mapping: mmap.mmap, precision: str, num_threads: int) -> Compiled:
    begin, size = section.integer("begin", 0, 0, 1 << 48), section.integer("bytes", 0, 0, 1 << 48)
    if begin % ALIGNMENT or begin + size + len(PADDING) > len(mapping):
        raise CheckpointError(f"packed.json: bytes {begin} to {begin + size} of a file of {len(mapping)}")
    program = _C.Program(precision=precision)
    if size:
        program.map(memoryview(mapping)[begin : begin + size])
    fields = section.to_dict()
    for name, rows, cols, kind in fields["slots"]:
        program.slot(name, rows, cols, kind)
    for op, src, dst, params, shapes in fields["records"]:
        program.add(op, src, dst, params, shapes, num_threads)
    known = {name: cols for name, _, cols, _ in fields["slots"]} | dict.fromkeys(("context", "padded_context"))
    for name, slot in section.section("outputs").to_dict().items():
        if slot not in known or fields["sizes"].get(name) != known[slot]:
            raise CheckpointError(f"packed.json: output {name}: found slot {slot!r}, expected one of the program's")
    return Compiled(program, fields["outputs"], fields["sizes"], fields["slots"], fields["records"])


class Packed(Spec):
    """What packed files hold of a model."""

    towers: dict[str, Tower]
    scales: list[float]
    dtype: str


def packed_class(folder: Path, family: Family) -> str:
    """The class of a packed model. CheckpointError where the family has none of that name."""
    name = str(read_json(folder / "packed.json").get("class"))
    if name not in family.classes and name not in family.heads:
        raise CheckpointError(f"packed.json: class: found {name!r}, which config.json's family does not have")
    return name


def read_packed(cls: ModelClass, folder: Path, config: Config, dtype: str, num_threads: int) -> Packed:
    """What `save` wrote, its weights mapped. Raises CheckpointError when it does not fit this process."""
    record = Config(read_json(folder / "packed.json"), "packed.json")
    if (name := str(record.get("class"))) != cls.name:
        raise ConfigError(f"{cls.name} cannot load a packed {name}; use AutoModel")
    try:
        mapping = _checked(record, config, folder / "packed.bin", dtype, num_threads)
        precision = record.choice("dtype", "float32", _C.PRECISIONS)
        sections = record.section("towers")
        towers = {
            tower: Tower(encoder, _program(sections.section(tower), mapping, precision, num_threads))
            for tower, encoder in cls.encoders(config).items()
        }
        scales = [record.number(n, 0.0, -1e30, 1e30) for n in ("logit_scale", "logit_bias", "text_scale")]
    except (CheckpointError, ConfigError):
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"packed.json: the programs cannot be built: {error}") from error
    return Packed(towers, scales, precision)
