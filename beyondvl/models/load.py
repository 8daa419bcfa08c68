"""From a checkpoint to programs: the weights of each encoder read once and compiled."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import Any

import numpy as np

from .. import _C
from ..compile import compile_encoder
from ..config import Config
from ..errors import CheckpointError, ConfigError, MissingWeightError
from ..families.registry import Family
from ..folder import Folder
from ..hub import SHIPPED, shipped_folder
from ..reader import Reader
from ..sentences import Sentences
from ..spec import Ref
from ..weights import Checkpoint, open_checkpoint
from .classes import ModelClass, class_named
from .tower import Tower

__all__ = ["load_towers", "open_stored"]

MOST_SCALE = 80.0


def load_towers(
    cls: ModelClass, config: Config, folder: Folder, sentences: Sentences | None, num_threads: int, strict: bool,
    precision: str,
) -> tuple[dict[str, Tower], list[float]]:  # fmt: skip
    """The towers of a class, compiled, and its scale, bias and scale of texts."""
    family = cls.family
    try:
        encoders = cls.encoders(config)
    except ConfigError as error:
        with contextlib.suppress(CheckpointError):
            error = ConfigError(f"{error}{_advice(_stored(folder, family, config), config, cls)}")
        raise error from None
    stored = _stored(folder, family, config)
    checkpoint = _named(stored, cls)
    if sentences:
        checkpoint = sentences.joined(checkpoint)
    reader = Reader(checkpoint)
    gemm = os.environ.get("BEYONDVL_GEMM") or "own"
    try:
        towers = {
            name: Tower(encoder, compile_encoder(encoder, reader, num_threads, gemm, precision))
            for name, encoder in encoders.items()
        }
        _check_sizes(cls, towers)
        scale = float(np.exp(_scalar(reader, family.scale, cls.scaled)))
        other = float(np.exp(_scalar(reader, family.text_scale, cls.scaled))) if family.text_scale else scale
        scales = [scale, _scalar(reader, family.bias_of(config), cls.scaled), other]
    except MissingWeightError as error:
        raise MissingWeightError(f"{error}{_advice(stored, config, cls)}") from None
    finally:
        for source in {entry.source for entry in checkpoint.entries.values()}:
            source.close()
        _C.trim()  # the widened tensors of the checkpoint leave holes as large as the packed weights
    _report_surplus(checkpoint, reader, config, cls, strict)
    return towers, scales


def open_stored(model: Any) -> tuple[Checkpoint, Checkpoint]:
    """A loaded model's weights as they are stored now, under their own names and under those its encoders use."""
    stored = _stored(model.files, model.family, model.config)
    return stored, _named(stored, model.spec)


def _stored(folder: Folder, family: Family, config: Config) -> Checkpoint:
    """The weights of a folder, over those of the model that its config.json names as `base_model_name_or_path` (peft's
    name) where the package holds that one."""
    stored = open_checkpoint(folder.path, family.weight_files)
    base = config.get("base_model_name_or_path")
    return stored.over(open_checkpoint(shipped_folder(base))) if base in SHIPPED else stored


def _check_sizes(cls: ModelClass, towers: dict[str, Tower]) -> None:
    """ConfigError where towers that are compared make embeddings of different sizes."""
    if cls.head is not None or len(towers) < 2:
        return
    sizes = {tower.sizes.get("unit_embeds") for tower in towers.values()}
    if len(sizes) > 1:
        raise ConfigError(f"config.json: the towers' embeddings differ in size: {sorted(sizes, key=str)}")


def _named(checkpoint: Checkpoint, cls: ModelClass) -> Checkpoint:
    """The checkpoint under the names the encoders use. One-tower checkpoints saved by transformers 5 lack the tower's
    prefix, which is put back."""
    checkpoint = checkpoint.renamed(cls.family.rename)
    if len(cls.towers) != 1 or not cls.family.prefixes:
        return checkpoint
    tower, *rest = cls.family.prefixes[cls.towers[0]]
    if any(name.startswith(tower) for name in checkpoint.names()):
        return checkpoint
    return checkpoint.renamed(lambda name: name if name.startswith(tuple(rest)) else tower + name)


def _head_parameters(family: Family, config: Config) -> dict[str, list[Ref]]:
    """What each class with towers of its own reads; those the config does not fit are left out."""
    parameters = {}
    for name in family.heads:
        with contextlib.suppress(ConfigError):
            parameters[name] = class_named(name, family).parameters(config)
    return parameters


def _advice(stored: Checkpoint, config: Config, cls: ModelClass) -> str:
    """What to say of another class of the family that the checkpoint has everything for, when there is one."""
    family = cls.family
    classes = sorted(family.classes, key=lambda name: -len(family.classes[name]))
    for other in (class_named(name, family) for name in (*family.heads, *classes) if name != cls.name):
        with contextlib.suppress(ConfigError, CheckpointError):
            wanted = other.parameters(config)
            checkpoint = _named(stored, other)
            reader = Reader(checkpoint)
            if all(reader.stored(r, n) in checkpoint for r in wanted if reader.has(r) for n in r.names if n):
                return f"; the checkpoint has all that {other.name} needs: use {other.name}"
    return ""


def _scalar(reader: Reader, name: str | None, required: bool) -> float:
    if name is None or not required:
        return 0.0
    value = float(reader.checkpoint.read(name, ()))
    reader.used.add(name)
    if not abs(value) <= MOST_SCALE:  # of an exponent, too
        raise CheckpointError(
            f"{reader.checkpoint.source}: {name}: found {value}, expected a number within {MOST_SCALE}"
        )
    return value


def _report_surplus(checkpoint: Checkpoint, reader: Reader, config: Config, cls: ModelClass, strict: bool) -> None:
    """Warns once about weights nobody used; those of a tower the class leaves out do not count."""
    family = cls.family
    used = reader.used | checkpoint.companions(reader.used)
    own = (name for name, entry in checkpoint.entries.items() if not entry.lent)
    surplus = [name for name in own if name not in used and not family.is_ignored(name)]
    if surplus:  # what another class of the family reads is no surprise
        others = {name for wanted in _head_parameters(family, config).values() for r in wanted for name in r.names}
        surplus = [name for name in surplus if name not in others | checkpoint.companions(others)]
    if len(cls.towers) < len(family.towers):
        surplus = [name for name in surplus if not family.belongs_elsewhere(name, cls.towers)]
    if not surplus:
        return
    message = f"{checkpoint.source}: {len(surplus)} weights are not used by the model: {', '.join(surplus[:5])}"
    if strict:
        raise CheckpointError(message)
    warnings.warn(message, stacklevel=5)
