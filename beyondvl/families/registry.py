"""What a family is, and which one a config belongs to.

Adding a family: a file here with a `Family`, its module's name in MODULES, a row in tests/families.py, a line in
docs/MODELS.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..spec import Encoder, Spec

__all__ = ["Family", "families", "find_family", "strip_prefixes"]

MODULES = (
    "beyond_vl",
    "clip",
    "siglip",
    "chinese_clip",
    "bert",
    "efficientnet_lite",
    "open_clip",
    "blip",
    "blip_2",
    "instructblip",
    "flava",
    "clap",
    "whisper",
    "audio_spectrogram",
    "x_clip",
)

# buffers that older versions of the libraries stored: recomputed, never read
IGNORED_SUFFIXES = ("position_ids", "inv_freq", "num_batches_tracked", "token_type_ids", "relative_position_index")
NONE: Mapping[str, Any] = MappingProxyType({})  # a default that nobody can fill


def keep(key: str) -> str:
    """The rename of a family whose stored keys need none."""
    return key


def strip_prefixes(*prefixes: str) -> Callable[[str], str]:
    """A rename that drops the first of the prefixes a key begins with."""

    def rename(key: str) -> str:
        for prefix in prefixes:
            if key.startswith(prefix):
                return key[len(prefix) :]
        return key

    return rename


class Head(Spec):
    """A class of a family whose towers are its own.

    `task` names what it does (a key of TASK_MODELS in tasks/), `towers` its programs in the
    order they are built (None: a config has no use for one), `tokens` the ids that generation begins, ends and pads
    with, `prompt` what it continues: (config, ids or None, mask or None, batch) -> (ids, mask or None); `prefixed` puts
    the placeholders of a picture before the ids and mask of a text; `question` is the form a question is put in;
    `scaled` tells that it reads the family's scale.
    """

    task: str
    towers: Mapping[str, Callable[[Config], Encoder | None]]
    tokens: Callable[[Config], dict[str, int]] | None = None
    prompt: Callable[..., tuple[Any, Any]] | None = None
    prefixed: Callable[[Config, dict[str, Any]], dict[str, Any]] | None = None
    question: str = "{}"
    scaled: bool = False


class Family(Spec):
    """One kind of checkpoint.

    `towers` gives the encoders of a config by modality ("text", "vision", "audio"), in the order they are built.
    `rename` maps a stored key to the name the encoders use, undoing the prefixes of library versions. `classes` maps a
    public class name to the modalities that class loads; `heads` holds the classes that have towers of their own.
    `scale` and `bias` name the parameters of logits = cos * exp(scale) + bias (`text_scale` that of logits_per_text
    where it is another one), and `sigmoid` tells how scores become probabilities. `unit_features`: get_*_features are
    normalised.
    """

    model_type: str
    towers: Mapping[str, Callable[[Config], Encoder]]
    classes: Mapping[str, tuple[str, ...]]
    rename: Callable[[str], str] = keep
    ignored: tuple[str, ...] = ()
    heads: Mapping[str, Head] = NONE
    scale: str | None = None
    bias: str | None = None
    text_scale: str | None = None
    sigmoid: bool = False
    unit_features: bool = False
    weight_files: tuple[str, ...] = ()  # names looked for before the usual ones
    aliases: tuple[str, ...] = ()  # further model_type values, for example of one tower's config
    base: str | None = None  # the class of a whole config that names none
    older_sections: bool = False  # whole configs may hold a "text_config_dict"
    bare: frozenset[str] = frozenset()  # classes that stop before the projection
    prefixes: Mapping[str, tuple[str, ...]] = NONE  # keys of each modality, for one-tower classes

    def is_ignored(self, key: str) -> bool:
        return key.endswith(IGNORED_SUFFIXES) or key.startswith(self.ignored)

    def belongs_elsewhere(self, key: str, modalities: tuple[str, ...]) -> bool:
        """Whether a key is of a tower that a one-tower class leaves out."""
        others = [p for name, prefixes in self.prefixes.items() if name not in modalities for p in prefixes]
        return key in (self.scale, self.bias, self.text_scale) or key.startswith(tuple(others))


@cache
def families() -> dict[str, Family]:
    """All families by model_type, aliases included."""
    table: dict[str, Family] = {}
    for module in MODULES:
        family = importlib.import_module(f".{module}", __package__).FAMILY
        for model_type in (family.model_type, *family.aliases):
            table[model_type] = family
    return table


def find_family(config: Config) -> Family:
    """The family of a config. ConfigError lists the known ones when its model_type is none of them."""
    model_type = config.get("model_type")
    name = model_type.replace("-", "_") if isinstance(model_type, str) else ""
    if name in MODULES:  # spares the import of all others
        family = importlib.import_module(f".{name}", __package__).FAMILY
        if model_type in (family.model_type, *family.aliases):
            return family
    family = families().get(model_type) if name else None
    if family is None:
        known = ", ".join(sorted(families()))
        raise ConfigError(f"config.json: model_type: found {model_type!r}, expected one of {known}")
    return family
