"""Models: `from_pretrained`, calling, features. What a family's towers compute is in families/, how in the core."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from . import _C
from .compile import Compiled, Reader, compile_encoder
from .config import Config, read_json
from .encode import EncodeMixin
from .errors import CheckpointError, ConfigError, MissingWeightError
from .families.registry import Family, families, find_family
from .hub import refuse_remote_code, resolve
from .outputs import (
    Features,
    ModelOutput,
    check_allowed,
    check_device,
    device_and_dtype,
    from_numpy,
    kind_of,
    thread_count,
    to_numpy,
)
from .packed import is_packed, load_packed
from .sentences import sentence_settings
from .spec import Encoder, Ref, ref, refs
from .weights import Checkpoint, open_checkpoint

__all__ = ["AutoModel", "PreTrainedModel", "model_class"]

DTYPES = (*_C.PRECISIONS, "fastest", "auto")
INPUTS = {
    "text": ("input_ids", "attention_mask", "token_type_ids"),
    "vision": ("pixel_values",),
    "audio": ("input_features", "input_values", "is_longer"),
}
MOST_SCALE = 80.0
NAMES = {"text": "text", "vision": "image", "audio": "audio"}  # of each modality in outputs
# what transformers' models of these towers take without a name, in this order
ORDERS = {
    ("text",): INPUTS["text"],
    ("vision",): INPUTS["vision"],
    ("audio",): ("input_features", "is_longer"),
    ("text", "vision"): ("input_ids", "pixel_values", "attention_mask", "token_type_ids"),
    ("text", "audio"): ("input_ids", "input_features", "is_longer", "attention_mask"),
}
# accepted for the sake of callers of transformers, at the values that change nothing
NEUTRAL = {
    "return_dict": (None, True),
    "return_loss": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "interpolate_pos_encoding": (None, False),
    "position_ids": (None,),
}


class Tower:
    """One compiled encoder; `outputs` maps the names of its outputs to slots of its program, `sizes` to columns."""

    def __init__(self, encoder: Encoder, compiled: Compiled):
        self.encoder, self.compiled = encoder, compiled
        self.program, self.outputs, self.sizes = compiled.program, compiled.outputs, compiled.sizes

    def check_outputs(self, wanted: list[str]) -> None:
        """ValueError for an output there is none of."""
        if unknown := [name for name in wanted if name not in self.outputs]:
            raise ValueError(f"wanted: found {unknown[0]!r}, expected some of {', '.join(self.outputs)}")

    def run(self, inputs: dict[str, np.ndarray], wanted: list[str], num_threads: int) -> dict[str, np.ndarray]:
        padding = getattr(self.encoder.stem, "padding", None)
        if spectrogram := {"input_features", "input_values"} & set(inputs):
            inputs = dict(inputs)
            inputs["pixel_values"] = self._picture(name := spectrogram.pop(), inputs.pop(name))
        elif isinstance(padding, int) and "input_ids" in inputs:
            kept = inputs["input_ids"] != padding
            inputs = inputs | {"position_ids": kept.cumsum(1) * kept + padding}
        found = self.program.run(inputs, [self.outputs[name] for name in wanted], num_threads)
        found = {name: found[self.outputs[name]] for name in wanted}
        if self.encoder.grid and "last_hidden_state" in found:
            parts, bins, frames = self.encoder.grid
            rows = found["last_hidden_state"].reshape(-1, parts, bins, frames, self.encoder.hidden_size)
            rows = rows.transpose(0, 4, 2, 1, 3).reshape(len(rows), self.encoder.hidden_size, bins, parts * frames)
            found["last_hidden_state"] = np.ascontiguousarray(rows)
        return found

    def _picture(self, name: str, array: np.ndarray) -> np.ndarray:
        """A spectrogram as the core takes it: a picture of its channels; without channels its axes change places."""
        channels, height, width = self.program.info()["image"]
        if array.ndim == 4:
            return array
        if channels > 1 or array.ndim != 3 or array.shape[1:] != (width, height):
            raise ValueError(f"{name}: found shape {array.shape}, expected (B, {width}, {height})")
        return np.ascontiguousarray(array.transpose(0, 2, 1))[:, None]

    @property
    def max_positions(self) -> int:
        """Tokens of the longest text."""
        padding = getattr(self.encoder.stem, "padding", None)
        return self.program.info()["max_positions"] - (0 if padding is None else padding + 1)


class PreTrainedModel(EncodeMixin):
    """A model with a text tower, a vision or an audio tower, or two. Made by `from_pretrained`; immutable, thread-safe.

    `model(**inputs)` takes what a processor returns: `input_ids` (B, L) integers, `attention_mask` (B, L),
    `pixel_values` (B, 3, H, W) float32, `input_features` (B, C, frames, mels) float32. NumPy in gives NumPy out, torch
    tensors in give torch tensors out.
    """

    family: ClassVar[Family | None] = None
    modalities: ClassVar[tuple[str, ...]] = ()
    builders: ClassVar[Mapping[str, Callable[[Config], Encoder]]] = {}  # of each modality
    scaled: ClassVar[bool] = False  # whether it reads the family's scale and bias

    def __init__(
        self,
        config: Config,
        family: Family,
        towers: dict[str, Tower],
        scales: list[float],
        folder: Path,
        num_threads: int,
        dtype: str,
    ):
        self.config, self.towers, self.folder = config, towers, folder
        self.logit_scale, self.logit_bias, self.text_scale = scales
        self.num_threads, self.dtype = num_threads, dtype
        self.isa = _C.config()["isa"]
        self._family = family
        self._processor = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        dtype: Any = None,
        num_threads: int | None = None,
        strict: bool = False,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> PreTrainedModel:
        """Loads a checkpoint as published.

        Args:
            pretrained_model_name_or_path: a folder, a hub id, or "beyond-vl-model".
            dtype: what products compute in: "float32" (the default; of a folder written by `save_packed`, its own);
                "bfloat16"; "int8" (weights with one scale per output, activations with one per token); "fastest"
                (int8, or float32 below AVX2); "bfloat16x3" (float32 as sums of two bfloat16, on AMX alone: within
                2e-5 of float32); or "auto" (bfloat16 where the config says so, else float32; float16
                computes in float32). torch.float32 and torch.bfloat16 are taken too. Results are float32 in every case.
            num_threads: threads of one call; default: the processors this process may use.
            strict: raise instead of warning when the checkpoint holds weights the model does not use.

        Raises:
            ConfigError: the config is malformed or of an unknown family.
            CheckpointError: weights are missing, malformed or of another shape than the config says.
            MemoryError: the packed weights do not fit.
        """
        dtype, num_threads = _check_options(dtype, kwargs), thread_count(num_threads)
        options = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        folder = resolve(pretrained_model_name_or_path, **options)
        config = load_config(folder)
        if is_packed(folder):
            return load_packed(cls, folder, config, dtype, num_threads)
        family = find_family(config)
        if cls is PreTrainedModel:
            cls = _class_for(config, family)
        if cls.family is not family:
            raise ConfigError(f"{cls.__name__} cannot load model_type {config.get('model_type')!r}; use AutoModel")
        return cls._load(config, folder, num_threads, strict, _precision(dtype, config))

    @classmethod
    def _load(cls, config: Config, folder: Path, num_threads: int, strict: bool, precision: str) -> PreTrainedModel:
        family = cls.family
        try:
            encoders = cls.encoders(config)
        except ConfigError as error:
            with contextlib.suppress(CheckpointError):
                error = ConfigError(f"{error}{_advice(open_checkpoint(folder, family.weight_files), config, cls)}")
            raise error from None
        stored = open_checkpoint(folder, family.weight_files)
        checkpoint = _named(stored, cls)
        reader = Reader(checkpoint)
        gemm = os.environ.get("BEYONDVL_GEMM") or "own"
        try:
            towers = {
                name: Tower(encoder, compile_encoder(encoder, reader, num_threads, gemm, precision))
                for name, encoder in encoders.items()
            }
            two = cls.__name__ in family.classes and len(towers) == 2
            sizes = {tower.sizes.get("unit_embeds") for tower in towers.values()} if two else {0}
            if len(sizes) > 1:
                raise ConfigError(f"config.json: the towers' embeddings differ in size: {sorted(sizes, key=str)}")
            scale = float(np.exp(_scalar(reader, family.scale, cls.scaled)))
            other = float(np.exp(_scalar(reader, family.text_scale, cls.scaled))) if family.text_scale else scale
            scales = [scale, _scalar(reader, family.bias, cls.scaled), other]
        except MissingWeightError as error:
            raise MissingWeightError(f"{error}{_advice(stored, config, cls)}") from None
        finally:
            for source in {entry.source for entry in checkpoint.entries.values()}:
                source.close()
            _C.trim()  # the widened tensors of the checkpoint leave holes as large as the packed weights
        _report_surplus(checkpoint, reader, config, cls, strict)
        return cls(config, family, towers, scales, folder, num_threads, precision)

    @classmethod
    def encoders(cls, config: Config) -> dict[str, Encoder]:
        """What each tower of this class is made of."""
        if cls.family.older_sections and len(cls.modalities) > 1:  # a lone tower reads its section alone
            config = config.with_older_sections()
        built = {name: cls.builders[name](config) for name in cls.modalities}
        found = {name: encoder for name, encoder in built.items() if encoder is not None}
        if cls.__name__ in cls.family.bare:
            found = {name: encoder.without_projection() for name, encoder in found.items()}
        return found

    def save_packed(self, folder: str | os.PathLike) -> None:
        """Writes the packed weights, as this machine's instruction set reads them, and the checkpoint's other files.

        `from_pretrained(folder)` then maps them read-only: nothing is converted, and processes share one copy in
        memory. Another instruction set or a damaged file is refused when it is loaded.

        Raises ValueError when the folder is the checkpoint's own.
        """
        from .packed import save

        save(self, Path(folder))

    def eval(self) -> PreTrainedModel:
        """Nothing to switch: models only ever infer."""
        return self

    def to(self, device: Any = None, dtype: Any = None, **kwargs: Any) -> PreTrainedModel:
        """Stays on the CPU, in the precision it was loaded in. Raises ValueError for any other device or dtype."""
        device, dtype = device_and_dtype(device, dtype)
        check_device(device)
        if dtype not in (None, "float32", self.dtype):  # results are float32 in every case
            raise ValueError(
                f"dtype: found {dtype}, expected {self.dtype}: load the model with dtype={dtype!r} instead"
            )
        return self

    def __copy__(self) -> PreTrainedModel:
        """The model itself: it never changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PreTrainedModel:
        """The model itself: it never changes."""
        return self

    def __reduce__(self) -> tuple:
        """Pickled as where it was loaded from: another process loads it anew (packed weights share their memory)."""
        return _reloaded, (type(self).__name__, str(self.folder), self.dtype, self.num_threads)

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two models interchangeable: class, checkpoint, precision, instruction set."""
        return type(self).__name__, str(self.folder.resolve()), self.dtype, self.isa

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def sigmoid(self) -> bool:
        """Whether scores are read through a sigmoid (SigLIP) instead of a softmax."""
        return self._family.sigmoid

    def tower(self, modality: str) -> Tower:
        """The "text", "vision" or "audio" tower; ValueError names what the model has when it lacks that one."""
        if modality not in self.towers:
            raise ValueError(f"{type(self).__name__} has no {modality} tower; it has {', '.join(self.towers)}")
        return self.towers[modality]

    def run_tower(
        self, modality: str, inputs: dict[str, Any], wanted: list[str], num_threads: int | None = None
    ) -> dict[str, np.ndarray]:
        """Named outputs of one tower ("text", "vision", "audio") for prepared inputs, as float32 arrays; num_threads:
        the model's where it is not given."""
        arrays = {name: prepared(name, value) for name, value in inputs.items() if value is not None}
        tower = self.tower(modality)
        tower.check_outputs(wanted)
        return tower.run(arrays, wanted, num_threads or self.num_threads)

    def _features(self, modality: str, inputs: dict[str, Any]) -> Any:
        names = ("unit_embeds" if self._family.unit_features else "embeds", "pooler_output")
        output = next((name for name in names if name in self.tower(modality).outputs), None)
        if output is None:
            raise ValueError(f"{type(self).__name__} makes no embeddings, expected a model that does")
        torch = kind_of(*inputs.values()) == "pt"
        found = self.run_tower(modality, inputs, [output] if torch else [output, "last_hidden_state"])
        if torch:
            features = from_numpy(found[output], "pt")
            features.pooler_output = features.detach()  # the same memory
            return features
        features = found[output].view(Features)
        features.last_hidden_state = found["last_hidden_state"]
        return features

    def get_text_features(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, **kwargs: Any
    ) -> Any:
        """Projected text embeddings (B, D), not normalised (CLAP's are): an array that also has `.pooler_output`; a
        torch tensor where the inputs are torch tensors."""
        check_neutral(kwargs)
        return self._features(
            "text", {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        )

    def get_image_features(self, pixel_values: Any, **kwargs: Any) -> Any:
        """Projected image embeddings (B, D), not normalised: an array that also has `.pooler_output`; a torch tensor
        where the inputs are torch tensors."""
        check_neutral(kwargs)
        return self._features("vision", {"pixel_values": pixel_values})

    def get_audio_features(self, input_features: Any, is_longer: Any = None, **kwargs: Any) -> Any:
        """Projected embeddings (B, D) of sounds, unit norm: an array that also has `.pooler_output`; a torch tensor
        where the inputs are torch tensors."""
        check_neutral(kwargs)
        return self._features("audio", {"input_features": input_features, "is_longer": is_longer})

    def __call__(
        self,
        *args: Any,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        input_features: Any = None,
        input_values: Any = None,
        is_longer: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Runs the towers whose inputs are given, by name or in the order of transformers' class.

        Returns a ModelOutput. With both: `logits_per_image` (Bi, Bt), `logits_per_text` (Bt, Bi), `text_embeds`,
        `image_embeds` (unit norm), `text_model_output`, `vision_model_output`; of sounds `logits_per_audio`,
        `audio_embeds`, `audio_model_output` in their place. With one: its embeds, `last_hidden_state`, `pooler_output`.

        Raises ValueError naming the input, what was found and what was expected.
        """
        named = {"input_ids": input_ids, "pixel_values": pixel_values, "attention_mask": attention_mask,
                 "token_type_ids": token_type_ids, "input_features": input_features, "input_values": input_values,
                 "is_longer": is_longer}  # fmt: skip
        named |= self._in_order(args, named)
        check_neutral(kwargs)
        sides = [tuple(named[name] for name in names) for names in INPUTS.values()]
        given = given_inputs(sides[0], sides[1][0], sides[2])
        found = {modality: self.run_tower(modality, given[modality], self._wanted(modality)) for modality in given}
        return self._output(found, kind_of(*named.values()))

    def _in_order(self, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """Inputs without a name by their names. TypeError where there are too many, or one is given twice."""
        order = ORDERS[tuple(sorted(self.modalities, key=list(INPUTS).index))]
        if len(args) > len(order):
            raise TypeError(
                f"found {len(args)} inputs without a name, expected at most {len(order)}: {', '.join(order)}"
            )
        placed = {name: value for name, value in zip(order, args, strict=False) if value is not None}
        if twice := [name for name in placed if named[name] is not None]:
            raise TypeError(f"{twice[0]}: found twice, expected once")
        return placed

    def _wanted(self, modality: str) -> list[str]:
        outputs = self.tower(modality).outputs
        names = ["last_hidden_state", "pooler_output", "unit_embeds" if len(self.towers) == 2 else "embeds"]
        return [name for name in names if name in outputs]

    def _output(self, found: dict[str, dict[str, np.ndarray]], kind: str) -> ModelOutput:
        output = ModelOutput()
        if len(found) == 2:
            seen = next(modality for modality in found if modality != "text")
            cosines = found["text"]["unit_embeds"] @ found[seen]["unit_embeds"].T
            logits = cosines * np.float32(self.text_scale) + np.float32(self.logit_bias)
            if self.text_scale != self.logit_scale:
                cosines = cosines * np.float32(self.logit_scale) + np.float32(self.logit_bias)
            else:
                cosines = logits
            output[f"logits_per_{NAMES[seen]}"] = from_numpy(np.ascontiguousarray(cosines.T), kind)
            output["logits_per_text"] = from_numpy(logits, kind)
        for modality, arrays in found.items():
            embeds = arrays.get("unit_embeds", arrays.get("embeds"))
            if embeds is not None:
                output[f"{NAMES[modality]}_embeds"] = from_numpy(embeds, kind)
        for modality, arrays in found.items():
            states = {n: from_numpy(a, kind) for n, a in arrays.items() if n in ("last_hidden_state", "pooler_output")}
            if len(self.towers) == 2:
                output[f"{modality}_model_output"] = ModelOutput(states)
            else:
                output.update(states)
        return output

    def __repr__(self) -> str:
        towers = ", ".join(
            f"{name}: {len(t.encoder.layers)} layers of {t.encoder.hidden_size}" for name, t in self.towers.items()
        )
        size = f"{self.packed_bytes / 1e6:.0f} MB packed"
        return f"{type(self).__name__}({towers}; {self.dtype}, {size}, {self.num_threads} threads)"

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return sum(tower.program.info()["packed_bytes"] for tower in self.towers.values())


def given_inputs(
    text: tuple[Any, ...], pixel_values: Any, audio: tuple[Any, ...] = (None, None, None)
) -> dict[str, dict[str, Any]]:
    """Inputs by modality of those that were given, in the order of INPUTS. ValueError when there are none."""
    sides = {"text": text, "vision": (pixel_values,), "audio": audio}
    values = {modality: dict(zip(INPUTS[modality], side, strict=True)) for modality, side in sides.items()}
    main = {"text": ["input_ids"], "vision": ["pixel_values"], "audio": ["input_features", "input_values"]}
    given = {m: inputs for m, inputs in values.items() if any(inputs[name] is not None for name in main[m])}
    if not given:
        raise ValueError("found neither input_ids nor pixel_values nor input_features, expected at least one of them")
    return given


def load_config(folder: Path) -> Config:
    """config.json of a folder, or OpenCLIP's own file when that is what it holds."""
    if not (folder / "config.json").exists() and (folder / "open_clip_config.json").exists():
        return Config({**read_json(folder / "open_clip_config.json"), "model_type": "open_clip"})
    config = Config(read_json(folder / "config.json"))
    if "model_type" not in config and (folder / "open_clip_config.json").exists():  # beside a config of timm's
        return Config({**read_json(folder / "open_clip_config.json"), "model_type": "open_clip"})
    return (
        config.updated(Config({"sentence_transformers": sentence_settings(folder)}))
        if (folder / "modules.json").exists()
        else config
    )


def _named(checkpoint: Checkpoint, cls: type[PreTrainedModel]) -> Checkpoint:
    """The checkpoint under the names the encoders use. One-tower checkpoints saved by transformers 5 lack the tower's
    prefix, which is put back."""
    checkpoint = checkpoint.renamed(cls.family.rename)
    if len(cls.modalities) != 1 or not cls.family.prefixes:
        return checkpoint
    tower, *rest = cls.family.prefixes[cls.modalities[0]]
    if any(name.startswith(tower) for name in checkpoint.names()):
        return checkpoint
    return checkpoint.renamed(lambda name: name if name.startswith(tuple(rest)) else tower + name)


def _parameters(cls: type[PreTrainedModel], config: Config) -> list[Ref]:
    """What a class reads."""
    family, encoders = cls.family, cls.encoders(config).values()
    scalars = [ref(name) for name in (family.scale, family.bias, family.text_scale) if name and cls.scaled]
    return [r for encoder in encoders for r in refs(encoder) if isinstance(r, Ref)] + scalars


def _head_parameters(family: Family, config: Config) -> dict[str, list[Ref]]:
    """What each class with towers of its own reads; those the config does not fit are left out."""
    found = {}
    for name in family.heads:
        with contextlib.suppress(ConfigError):
            found[name] = _parameters(model_class(name, family), config)
    return found


def _advice(stored: Checkpoint, config: Config, cls: type[PreTrainedModel]) -> str:
    """What to say of another class of the family that the checkpoint has everything for, when there is one."""
    classes = sorted(cls.family.classes, key=lambda name: -len(cls.family.classes[name]))
    for other in (model_class(name, cls.family) for name in (*cls.family.heads, *classes) if name != cls.__name__):
        with contextlib.suppress(ConfigError, CheckpointError):
            wanted = _parameters(other, config)
            checkpoint = _named(stored, other)
            reader = Reader(checkpoint)
            if all(reader.stored(r, n) in checkpoint for r in wanted if reader.has(r) for n in r.names if n):
                return f"; the checkpoint has all that {other.__name__} needs: use {other.__name__}"
    return ""


def _check_options(dtype: Any, kwargs: dict[str, Any]) -> str:
    """The dtype's name; every other option is checked."""
    older = kwargs.pop("torch_dtype", None)  # transformers 4's name
    dtype = older if dtype is None else dtype
    name = str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")
    if dtype is None:
        name = "default"
    elif name not in DTYPES:
        raise ValueError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    refuse_remote_code(kwargs.pop("trust_remote_code", False))
    check_device(kwargs.pop("device_map", None) or "cpu")
    for ignored in ("attn_implementation", "use_safetensors", "low_cpu_mem_usage"):
        kwargs.pop(ignored, None)
    if kwargs:
        raise TypeError(f"from_pretrained() got unexpected arguments: {', '.join(kwargs)}")
    return name


def _precision(dtype: str, config: Config) -> str:
    """One of _C.PRECISIONS for a dtype's name."""
    if dtype == "default":
        return "float32"
    if dtype == "fastest":
        return "float32" if _C.config()["isa"] == "base" else "int8"
    if dtype == "auto":
        stored = config.get("dtype") or config.get("torch_dtype")
        return "bfloat16" if stored == "bfloat16" else "float32"
    return dtype


def check_neutral(kwargs: dict[str, Any]) -> None:
    for name, value in kwargs.items():
        if name not in NEUTRAL:
            known = [n for names in INPUTS.values() for n in names]
            raise TypeError(f"unexpected input {name!r}, expected some of {', '.join(known)}")
        check_allowed(name, value, NEUTRAL[name])


def prepared(name: str, value: Any) -> np.ndarray:
    """The array the core borrows: contiguous float32 pixels as they are, other floats converted; contiguous int64
    ids and masks."""
    array = to_numpy(value, name)
    if name in ("pixel_values", "input_features", "input_values"):
        if array.dtype.kind != "f":
            raise ValueError(f"{name}: found dtype {array.dtype}, expected floats")
        return np.ascontiguousarray(array, np.float32)
    if name.endswith("mask") and array.dtype.kind == "f" and np.isin(array, (0, 1)).all():
        array = array != 0
    if array.size and array.dtype.kind not in "iub":
        raise ValueError(f"{name}: found dtype {array.dtype}, expected integers")
    if array.ndim != 2:
        raise ValueError(f"{name}: found shape {array.shape}, expected (B, L)")
    return np.ascontiguousarray(array, np.int64)  # the core takes a copy of its own, and checks that


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


def _report_surplus(
    checkpoint: Checkpoint, reader: Reader, config: Config, cls: type[PreTrainedModel], strict: bool
) -> None:
    """Warns once about weights nobody used; those of a tower the class leaves out do not count."""
    family, modalities = cls.family, cls.modalities
    used = reader.used | checkpoint.companions(reader.used)
    surplus = [name for name in checkpoint.names() if name not in used and not family.is_ignored(name)]
    if surplus:  # what another class of the family reads is no surprise
        others = {name for wanted in _head_parameters(family, config).values() for r in wanted for name in r.names}
        surplus = [name for name in surplus if name not in others]
    if len(modalities) < len(family.towers):
        surplus = [name for name in surplus if not family.belongs_elsewhere(name, modalities)]
    if not surplus:
        return
    message = f"{checkpoint.source}: {len(surplus)} weights are not used by the model: {', '.join(surplus[:5])}"
    if strict:
        raise CheckpointError(message)
    warnings.warn(message, stacklevel=4)


def _class_for(config: Config, family: Family) -> type[PreTrainedModel]:
    """The class a config's `architectures` names, else the one with the most towers."""
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if isinstance(name, str) and (name in family.classes or name in family.heads):
            return model_class(name, family)
    model_type = str(config.get("model_type"))
    for name, modalities in family.classes.items():
        if len(modalities) == 1 and model_type.endswith((f"{modalities[0]}_model", f"{NAMES[modalities[0]]}_model")):
            return model_class(name, family)
    if family.base and model_type == family.model_type:
        return model_class(family.base, family)
    if not family.classes or family.base:
        raise ConfigError(
            f"config.json: architectures: found {architectures!r}, expected one of {', '.join(family.heads)}"
        )
    return model_class(max(family.classes, key=lambda name: len(family.classes[name])), family)


def _reloaded(name: str, folder: str, dtype: str, num_threads: int) -> PreTrainedModel:
    return model_class(name).from_pretrained(folder, dtype=dtype, num_threads=num_threads)


_CLASSES: dict[str, type[PreTrainedModel]] = {}


def model_class(name: str, family: Family | None = None) -> type[PreTrainedModel]:
    """The public class of that name, for example CLIPModel, looked for in one family or in all, which imports them;
    KeyError when none has it."""
    if name not in _CLASSES:
        known = (family,) if family else families().values()
        family = next((f for f in known if name in f.classes or name in f.heads), None)
        if family is None:
            raise KeyError(name)
        if name in family.heads:
            return _task_class(name, family)
        doc = f"{name} of transformers: a {family.model_type} checkpoint's {' and '.join(family.classes[name])} tower."
        modalities = family.classes[name]
        members = {"family": family, "modalities": modalities, "builders": family.towers, "scaled": len(modalities) > 1}
        _CLASSES[name] = type(name, (PreTrainedModel,), {**members, "__doc__": doc, "__module__": "beyondvl"})
    return _CLASSES[name]


def _task_class(name: str, family: Family) -> type[PreTrainedModel]:
    """A class whose towers are its own."""
    from .tasks import TASK_MODELS

    head = family.heads[name]
    base = TASK_MODELS[head.task]
    members = {"family": family, "head": head, "modalities": tuple(head.towers), "builders": head.towers,
               "scaled": head.scaled}  # fmt: skip
    doc = f"{name} of transformers. {base.__doc__}"
    _CLASSES[name] = type(name, (base,), {**members, "__doc__": doc, "__module__": "beyondvl"})
    return _CLASSES[name]


class AutoModel:
    """Loads a checkpoint of any family: `AutoModel.from_pretrained(name)`."""

    def __init__(self):
        raise TypeError("AutoModel is made by AutoModel.from_pretrained(name)")

    from_pretrained = PreTrainedModel.from_pretrained
