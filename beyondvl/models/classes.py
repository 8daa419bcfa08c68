"""The classes of models: which one a checkpoint is of, what it reads, the options it is loaded with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import _C
from ..config import Config
from ..errors import ConfigError
from ..families.registry import Family, Head
from ..modalities import of_tower
from ..outputs import check_device
from ..spec import Encoder, Ref, Spec, ref, refs

__all__ = ["DTYPES", "ModelClass", "check_options", "class_for", "class_named", "precision_of", "public_class"]

DTYPES = (*_C.PRECISIONS, "fastest", "auto")
# options of transformers' from_pretrained that change nothing here: how weights are read, where, and by which kernels
IGNORED = ("attn_implementation", "use_safetensors", "low_cpu_mem_usage", "max_memory", "offload_folder",
           "offload_state_dict", "weights_only")  # fmt: skip


class ModelClass(Spec):
    """A public class of a family: its towers in the order they are built, and how; `scaled` tells whether it reads the
    family's scale and bias, `head` what it does where that is a task."""

    name: str
    family: Family
    towers: tuple[str, ...]
    builders: Mapping[str, Callable[[Config], Encoder | None]]
    scaled: bool = False
    head: Head | None = None

    def encoders(self, config: Config) -> dict[str, Encoder]:
        """What each tower of this class is made of."""
        if self.family.older_sections and len(self.towers) > 1:  # a lone tower reads its section alone
            config = config.with_older_sections()
        built = {name: self.builders[name](config) for name in self.towers}
        encoders = {name: encoder for name, encoder in built.items() if encoder is not None}
        if self.name in self.family.bare:
            encoders = {name: encoder.without_projection() for name, encoder in encoders.items()}
        return encoders

    def parameters(self, config: Config) -> list[Ref]:
        """What the class reads."""
        family = self.family
        scalars = [
            ref(name) for name in (family.scale, family.bias_of(config), family.text_scale) if name and self.scaled
        ]
        encoders = self.encoders(config).values()
        return [r for encoder in encoders for r in refs(encoder) if isinstance(r, Ref)] + scalars


def class_named(name: str, family: Family) -> ModelClass:
    """A family's class of that name; KeyError where it has none."""
    if name in family.heads:
        head = family.heads[name]
        return ModelClass(name, family, tuple(head.towers), head.towers, head.scaled, head)
    towers = family.classes[name]
    return ModelClass(name, family, towers, family.towers, len(towers) > 1)


_PUBLIC: dict[str, type] = {}


def public_class(spec: ModelClass, base: type, doc: str) -> type:
    """The class that callers see, one of each name, derived from `base` when it is first asked for."""
    if spec.name not in _PUBLIC:
        _PUBLIC[spec.name] = type(spec.name, (base,), {"spec": spec, "__doc__": doc, "__module__": "beyondvl"})
    return _PUBLIC[spec.name]


def class_for(config: Config, family: Family) -> ModelClass:
    """The class a config's `architectures` names, else the one with the most towers."""
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if isinstance(name, str) and (name in family.classes or name in family.heads):
            return class_named(name, family)
    model_type = str(config.get("model_type"))
    for name, towers in family.classes.items():
        modality = of_tower(towers[0])
        if (
            len(towers) == 1
            and modality
            and model_type.endswith((f"{towers[0]}_model", f"{modality.name}_model", f"_{towers[0]}"))
        ):
            return class_named(name, family)
    if family.base and model_type == family.model_type:
        return class_named(family.base, family)
    if not family.classes or family.base:
        raise ConfigError(
            f"config.json: architectures: found {architectures!r}, expected one of {', '.join(family.heads)}"
        )
    return class_named(max(family.classes, key=lambda name: len(family.classes[name])), family)


def check_options(dtype: Any, options: dict[str, Any]) -> str:
    """The dtype's name; every other option is checked, and taken out."""
    older = options.pop("torch_dtype", None)  # transformers 4's name
    dtype = older if dtype is None else dtype
    name = str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")
    if dtype is None:
        name = "default"
    elif name == "float16":  # stored so, computed in what holds it
        name = "float32"
    elif name not in DTYPES:
        raise ValueError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    placed = options.pop("device_map", None)
    if placed not in (None, "auto", "balanced", "sequential") and placed != {"": "cpu"}:
        check_device(placed)
    for ignored in IGNORED:
        options.pop(ignored, None)
    if options:
        raise TypeError(f"from_pretrained() got unexpected arguments: {', '.join(options)}")
    return name


def precision_of(dtype: str, config: Config) -> str:
    """One of _C.PRECISIONS for a dtype's name."""
    if dtype == "default":
        return "float32"
    if dtype == "fastest":
        return "float32" if _C.config()["isa"] == "base" else "int8"
    if dtype == "auto":
        stored = config.get("dtype") or config.get("torch_dtype")
        return "bfloat16" if stored == "bfloat16" else "float32"
    return dtype
