"""`PreTrainedModel`: what every model does with prepared inputs. What a family's towers compute is in families/, how in
the core."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .. import _C
from ..config import Config
from ..encode import EncodeMixin
from ..errors import ConfigError
from ..families.registry import Family, find_family, load_config
from ..folder import Folder
from ..hub import open_folder
from ..modalities import INPUTS, MODALITIES, TEXT, of_tower, positional
from ..outputs import (
    CPU,
    Device,
    ModelOutput,
    check_allowed,
    check_device,
    device_and_dtype,
    features_of,
    from_numpy,
    kind_of,
    thread_count,
)
from ..sentences import Sentences, read_sentences
from .classes import ModelClass, check_options, class_named, precision_of, public_class
from .packed import is_packed, read_packed, save
from .tower import Tower, prepared

__all__ = ["PreTrainedModel", "check_neutral", "open_model", "tower_class"]

# accepted for the sake of callers of transformers, at the values that change nothing
NEUTRAL = {
    "return_dict": (None, True),
    "return_loss": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "interpolate_pos_encoding": (None, False),
    "position_ids": (None,),
    "use_cache": (None, True, False),
    "logits_to_keep": (None, 0),
    **dict.fromkeys(
        ("labels", "inputs_embeds", "encoder_hidden_states", "encoder_attention_mask", "past_key_values",
         "num_items_in_batch", "output_router_logits", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
         "is_causal", "seq_idx"), (None,)),
}  # fmt: skip
STATES = ("last_hidden_state", "pooler_output")


class PreTrainedModel(EncodeMixin):
    """A model with one tower or several, each of a modality. Made by `from_pretrained`; thread-safe, and it never
    changes, but for the options of `encode` that are named in EmbeddingOptions.

    `model(**inputs)` takes what a processor returns: `input_ids` (B, L) integers, `attention_mask` (B, L),
    `pixel_values` (B, 3, H, W) float32, or of pictures of any size their patches (B, N, numbers of a patch) with
    `spatial_shapes` (B, 2) and `pixel_attention_mask` (B, N), `input_features` (B, C, frames, mels) float32. NumPy in
    gives NumPy out, torch tensors in give torch tensors out.
    """

    spec: ClassVar[ModelClass | None] = None

    def __init__(
        self,
        config: Config,
        towers: dict[str, Tower],
        scales: list[float],
        folder: Folder,
        sentences: Sentences | None,
        num_threads: int,
        dtype: str,
    ):
        self.config, self.towers, self.files = config, towers, folder
        self.logit_scale, self.logit_bias, self.text_scale = scales
        self.num_threads, self.dtype = num_threads, dtype
        self.isa = _C.config()["isa"]
        self.sentences = sentences
        self._processor = None
        self._set_options(sentences)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        dtype: Any = None,
        num_threads: int | None = None,
        strict: bool = False,
        subfolder: str = "",
        **options: Any,
    ) -> PreTrainedModel:
        """Loads a checkpoint as published.

        Args:
            pretrained_model_name_or_path: a folder, a hub id, or "beyond-vl-model".
            dtype: what products compute in: "float32" (the default; of a folder written by `save_packed`, its own);
                "bfloat16"; "int8" (weights with one scale per output, activations with one per token); "fastest"
                (int8, or float32 below AVX2); "bfloat16x3" (float32 as sums of two bfloat16, on AMX alone: within
                2e-5 of float32); or "auto" (bfloat16 where the config says so, else float32). torch.float32 and
                torch.bfloat16 are taken too; torch.float16 computes in float32. Results are float32 in every case.
            num_threads: threads of one call; default: the processors this process may use.
            strict: raise instead of warning when the checkpoint holds weights the model does not use.
            subfolder: where in the folder or repository the checkpoint lies.
            options: revision, cache_dir, local_files_only, token: of a hub id.

        Raises:
            ConfigError: the config is malformed or of an unknown family.
            CheckpointError: weights are missing, malformed or of another shape than the config says.
            MemoryError: the packed weights do not fit.
        """
        if cls.spec is None:
            raise TypeError(
                f"{cls.__name__} is no checkpoint's class: AutoModel.from_pretrained(name) finds the one it is of"
            )
        folder, sentences, config = open_model(pretrained_model_name_or_path, subfolder, options)
        dtype = check_options(dtype, options)
        return cls.of_folder(folder, sentences, config, dtype, thread_count(num_threads), strict)

    @classmethod
    def of_folder(
        cls,
        folder: Folder,
        sentences: Sentences | None,
        config: Config,
        dtype: str,
        num_threads: int,
        strict: bool = False,
    ) -> PreTrainedModel:
        """From the files of a folder, `dtype` as `check_options` has it."""
        if is_packed(folder.path):
            loaded = read_packed(cls.spec, folder.path, config, dtype, num_threads)
            return cls(config, loaded.towers, loaded.scales, folder, sentences, num_threads, loaded.dtype)
        from .load import load_towers  # packed weights do not wait for it

        if cls.spec.family is not find_family(config):
            raise ConfigError(f"{cls.__name__} cannot load model_type {config.get('model_type')!r}; use AutoModel")
        precision = precision_of(dtype, config)
        model = sentences.model if sentences else folder
        towers, scales = load_towers(cls.spec, config, model, sentences, num_threads, strict, precision)
        return cls(config, towers, scales, folder, sentences, num_threads, precision)

    def save_pretrained(self, save_directory: str | os.PathLike, **settings: Any) -> None:
        """Writes the checkpoint again: its files as they were read, its weights copied from where they lie, and the
        options of `encode` as they are now; whatever it is loaded in, nothing of the weights is converted.

        Raises FileNotFoundError where the weights are gone, ValueError for the checkpoint's own folder, for one with
        other weights in it and for a setting of transformers that would change something.
        """
        from .saving import copy_checkpoint  # loading a model does not wait for it

        copy_checkpoint(self, Path(save_directory), settings)

    save = save_pretrained

    def save_packed(self, folder: str | os.PathLike) -> None:
        """Writes the packed weights, as this machine's instruction set reads them, and the checkpoint's other files.

        `from_pretrained(folder)` then maps them read-only: nothing is converted, and processes share one copy in
        memory. Another instruction set or a damaged file is refused when it is loaded.

        Raises ValueError when the folder is the checkpoint's own.
        """
        save(self, Path(folder))

    def unload(self) -> None:
        """Lets go of the weights, and gives their memory back to the system where nothing else holds them (a copy, a
        model of one of its towers, a call that still runs). RuntimeError for every use of the model afterwards."""
        self.towers, self._processor = Unloaded(), None
        _C.trim()

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
        """The same weights, options of its own."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, prompts=dict(self.prompts))
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> PreTrainedModel:
        """As a copy: the weights never change."""
        return self.__copy__()

    def __reduce__(self) -> tuple:
        """Pickled as where it was loaded from: another process loads it anew (packed weights share their memory)."""
        return _reloaded, (type(self), str(self.folder), self.dtype, self.num_threads), self.options

    @property
    def folder(self) -> Path:
        """Where it was loaded from, an absolute path; nothing is read there any more."""
        return self.files.path

    @property
    def name_or_path(self) -> str:
        """`folder` as text."""
        return str(self.folder)

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two models interchangeable: class, checkpoint, precision, instruction set."""
        return type(self).__name__, str(self.folder.resolve()), self.dtype, self.isa

    @property
    def device(self) -> Device:
        """The CPU."""
        return CPU

    @property
    def family(self) -> Family:
        """The family it is of."""
        return self.spec.family

    @property
    def sigmoid(self) -> bool:
        """Whether scores are read through a sigmoid (SigLIP) instead of a softmax."""
        return self.family.sigmoid and self.family.bias_of(self.config) is not None

    @property
    def modalities(self) -> list[str]:
        """What it takes, in the order of the table: "text", "image", "video", "audio"."""
        return [modality.name for modality in MODALITIES if modality.tower in self.towers]

    def supports(self, modality: str) -> bool:
        """Whether it takes that."""
        return modality in self.modalities

    @property
    def text_model(self) -> PreTrainedModel:
        """The text tower as a model of its own, without its projection, sharing its weights: transformers' attribute.
        AttributeError where there is none."""
        return self._alone("text")

    @property
    def vision_model(self) -> PreTrainedModel:
        """As `text_model`."""
        return self._alone("vision")

    @property
    def audio_model(self) -> PreTrainedModel:
        """As `text_model`."""
        return self._alone("audio")

    def _alone(self, tower: str) -> PreTrainedModel:
        names = [name for name, towers in self.family.classes.items() if towers == (tower,)]
        if tower not in self.towers or not names:
            raise AttributeError(f"{type(self).__name__} has no {tower}_model")
        cls = tower_class(class_named(min(names, key=lambda name: name not in self.family.bare), self.family))
        scales = [self.logit_scale, self.logit_bias, self.text_scale]
        towers = {tower: self.towers[tower]}
        return cls(self.config, towers, scales, self.files, self.sentences, self.num_threads, self.dtype)

    def tower(self, name: str) -> Tower:
        """The "text", "vision", "video" or "audio" tower, or one of a task's own; ValueError names what the model has
        when it lacks that one."""
        if name not in self.towers:
            raise ValueError(f"{type(self).__name__} has no {name} tower; it has {', '.join(self.towers)}")
        return self.towers[name]

    def run_tower(
        self, name: str, inputs: dict[str, Any], wanted: list[str], num_threads: int | None = None
    ) -> dict[str, np.ndarray]:
        """Named outputs of one tower ("text", "vision", ...) for prepared inputs, as float32 arrays; num_threads: the
        model's where it is not given."""
        arrays = {field: prepared(field, value) for field, value in inputs.items() if value is not None}
        tower = self.tower(name)
        tower.check_outputs(wanted)
        return tower.run(arrays, wanted, num_threads or self.num_threads)

    def _features(self, tower: str, inputs: dict[str, Any]) -> Any:
        names = ("unit_embeds" if self.family.unit_features else "embeds", "pooler_output")
        output = next((name for name in names if name in self.tower(tower).outputs), None)
        if output is None:
            raise ValueError(f"{type(self).__name__} makes no embeddings, expected a model that does")
        kind = kind_of(*inputs.values())
        arrays = self.run_tower(tower, inputs, [output] if kind == "pt" else [output, "last_hidden_state"])
        features = features_of(arrays[output], kind)
        if kind != "pt":
            features.last_hidden_state = arrays["last_hidden_state"]
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

    def get_image_features(
        self, pixel_values: Any, *, pixel_attention_mask: Any = None, spatial_shapes: Any = None, **kwargs: Any
    ) -> Any:
        """Projected image embeddings (B, D), not normalised: an array that also has `.pooler_output`; a torch tensor
        where the inputs are torch tensors. `spatial_shapes` and `pixel_attention_mask` come with pictures of any size.
        """
        check_neutral(kwargs)
        inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        return self._features("vision", {"pixel_values": pixel_values} | inputs)

    def get_audio_features(self, input_features: Any, is_longer: Any = None, **kwargs: Any) -> Any:
        """Projected embeddings (B, D) of sounds, unit norm: an array that also has `.pooler_output`; a torch tensor
        where the inputs are torch tensors."""
        check_neutral(kwargs)
        return self._features("audio", {"input_features": input_features, "is_longer": is_longer})

    def get_video_features(self, pixel_values_videos: Any, **kwargs: Any) -> Any:
        """As `get_image_features`, of a model with a tower for clips: pixel_values_videos (B, frames, 3, H, W)."""
        check_neutral(kwargs)
        return self._features("video", {"pixel_values_videos": pixel_values_videos})

    def __call__(self, *args: Any, **inputs: Any) -> ModelOutput:
        """Runs the towers whose inputs are there, by name or in the order of transformers' class.

        Returns a ModelOutput. With a text and others: `logits_per_image` (Bi, Bt) and the like of each other modality,
        and of one alone `logits_per_text` (Bt, Bi); `text_embeds`, `image_embeds`, ... (unit norm),
        `text_model_output`, `vision_model_output`, ... Of a model with one tower: its embeds, `last_hidden_state`,
        `pooler_output`. With `output_hidden_states=True` each tower's has `hidden_states` too: what stands before its
        first block and after each of them, (B, rows, hidden_size).

        Raises ValueError naming the input, what was found and what was expected.
        """
        inputs = self._in_order(args, inputs)
        states = inputs.pop("output_hidden_states", None)
        check_neutral({name: value for name, value in inputs.items() if name not in INPUTS})
        sides = split_inputs({name: inputs.get(name) for name in INPUTS}, self.spec.towers)
        outputs = {}
        for name, side in sides.items():
            self.tower(name).check_inputs(side, of_tower(name).by_name)
            outputs[name] = self.run_tower(name, side, self._wanted(name) + self._states(name, states))
        return self._output(outputs, kind_of(*inputs.values()), bool(states))

    def _states(self, tower: str, value: Any) -> list[str]:
        """The names of a tower's hidden states, where they are asked for. ValueError where it has none to show."""
        if value not in (None, True, False):
            raise ValueError(f"output_hidden_states: found {value!r}, expected True or False")
        states = list(self.tower(tower).states) if value else []
        if value and not states:
            raise ValueError(f"output_hidden_states: found True, and layers of the {tower} tower differ in their rows")
        return states

    def _in_order(self, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """All inputs by their names. TypeError where there are too many, or one is there twice."""
        order = positional(self.spec.towers)
        if len(args) > len(order):
            raise TypeError(
                f"found {len(args)} inputs without a name, expected at most {len(order)}: {', '.join(order)}"
            )
        placed = {name: value for name, value in zip(order, args, strict=False) if value is not None}
        if twice := [name for name in placed if named.get(name) is not None]:
            raise TypeError(f"{twice[0]}: found twice, expected once")
        return named | placed

    def _wanted(self, tower: str) -> list[str]:
        projected = "unit_embeds" if len(self.towers) > 1 else "embeds"
        names = STATES if self.spec.name in self.family.bare else (*STATES, projected)
        if self._pools_projected:
            names = (*names, "embeds")
        return [name for name in names if name in self.tower(tower).outputs]

    @property
    def _pools_projected(self) -> bool:
        """Whether pooler_output within the output of each tower is what its projection made, as in transformers."""
        return self.family.projected_pooler and len(self.towers) > 1

    def _output(self, outputs: dict[str, dict[str, np.ndarray]], kind: str, with_states: bool) -> ModelOutput:
        output = ModelOutput()
        sides = {of_tower(tower): arrays for tower, arrays in outputs.items()}
        if TEXT in sides:
            others = [modality for modality in sides if modality is not TEXT]
            for modality in others:
                logits, transposed = self._logits_of(sides[modality]["unit_embeds"], sides[TEXT]["unit_embeds"])
                output[f"logits_per_{modality.name}"] = from_numpy(logits, kind)
                if len(others) == 1:
                    output["logits_per_text"] = from_numpy(transposed, kind)
        for modality, arrays in sides.items():
            embeds = arrays.get("unit_embeds", arrays.get("embeds"))
            if embeds is not None:
                output[f"{modality.name}_embeds"] = from_numpy(embeds, kind)
        for modality, arrays in sides.items():
            states = self._states_of(modality.tower, arrays, kind, with_states)
            if len(self.towers) > 1:
                output[f"{modality.tower}_model_output"] = states
            else:
                output.update(states)
        return output

    def _states_of(self, tower: str, arrays: dict[str, np.ndarray], kind: str, with_states: bool) -> ModelOutput:
        """The output of a tower by itself: its last state, what it pools, and the states of its layers."""
        states: dict[str, Any] = {name: from_numpy(arrays[name], kind) for name in STATES if name in arrays}
        if self._pools_projected:
            states["pooler_output"] = from_numpy(arrays["embeds"], kind)
        if with_states:
            names = self.tower(tower).states
            if self.tower(tower).encoder.states_end_in_output:
                names = (*names[:-1], "last_hidden_state")
            states["hidden_states"] = tuple(from_numpy(arrays[name], kind) for name in names)
        return ModelOutput(states)

    def _logits_of(self, seen: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scaled cosines (n, texts) and (texts, n) of unit embeddings; the latter may have a scale of their own."""
        cosines = texts @ seen.T
        by_text = cosines * np.float32(self.text_scale) + np.float32(self.logit_bias)
        if self.text_scale != self.logit_scale:
            cosines = cosines * np.float32(self.logit_scale) + np.float32(self.logit_bias)
        else:
            cosines = by_text
        return np.ascontiguousarray(cosines.T), by_text

    def __repr__(self) -> str:
        if isinstance(self.towers, Unloaded):
            return f"{type(self).__name__}(unloaded)"
        towers = ", ".join(
            f"{name}: {len(t.encoder.layers)} layers of {t.encoder.hidden_size}" for name, t in self.towers.items()
        )
        size = f"{self.packed_bytes / 1e6:.0f} MB packed"
        return f"{type(self).__name__}({towers}; {self.dtype}, {size}, {self.num_threads} threads)"

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return sum(tower.program.info()["packed_bytes"] for tower in self.towers.values())


class Unloaded(dict):
    """The towers of a model that was unloaded."""

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("the model was unloaded: from_pretrained loads it again")

    __getitem__ = __contains__ = __iter__ = __len__ = keys = values = items = get = _refuse


def tower_class(spec: ModelClass) -> type[PreTrainedModel]:
    """The public class of towers alone."""
    doc = f"{spec.name}: a {spec.family.model_type} checkpoint's {' and '.join(spec.towers)} tower."
    return public_class(spec, PreTrainedModel, doc)


def split_inputs(inputs: dict[str, Any], towers: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Inputs by tower, of those modalities whose main input is there. ValueError when there are none, which names those
    of the `towers`, or all that could have been there."""
    sides = {
        modality.tower: {name: inputs.get(name) for name in modality.inputs}
        for modality in MODALITIES
        if any(inputs.get(name) is not None for name in modality.main)
    }
    if not sides:
        mains = [name for m in MODALITIES if not towers or m.tower in towers for name in m.main[:1] if name in inputs]
        raise ValueError(f"found neither {' nor '.join(mains)}, expected one of them at least")
    return sides


def open_model(
    name: str | os.PathLike, subfolder: str, options: dict[str, Any]
) -> tuple[Folder, Sentences | None, Config]:
    """The files of a checkpoint, held, what sentence-transformers' say, and its config; what is of the hub is taken out
    of the options."""
    options["subfolder"] = subfolder
    folder = open_folder(name, options, weights=True).hold()
    sentences = read_sentences(folder)
    config = load_config(sentences.model if sentences else folder)
    if not config.to_dict():
        raise ConfigError(f"config.json is missing from {sentences.model if sentences else folder}")
    if sentences and sentences.pooling is not None:
        config = config.updated(Config({"sentence_transformers": sentences.settings}))
    return folder, sentences, config


def check_neutral(kwargs: dict[str, Any]) -> None:
    """TypeError for an input that is not known, ValueError for one of transformers' at a value that would change
    something."""
    for name, value in kwargs.items():
        if name not in NEUTRAL:
            raise TypeError(f"unexpected input {name!r}, expected some of {', '.join(INPUTS)}")
        check_allowed(name, value, NEUTRAL[name])


def _reloaded(cls: type[PreTrainedModel], folder: str, dtype: str, num_threads: int) -> PreTrainedModel:
    return cls.from_pretrained(folder, dtype=dtype, num_threads=num_threads)
