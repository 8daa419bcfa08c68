"""Log-mel features of sounds, equal to those of transformers' feature extractors. Each family's is in its own file.

    mel filters: triangles between points that lie evenly in mels, over the bins of a transform
    htk      m = 2595 log10(1 + f / 700)
    slaney   m = 3 f / 200 up to 1 kHz, then logarithmic (27 steps for a factor of 6.4); each triangle of area 1
    kaldi    m = 1127 ln(1 + f / 700), the triangles straight in mels, not in hertz

The spectra themselves are the core's (csrc/audio).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np

from .. import _C
from ..config import Config
from ..errors import AudioError, ConfigError
from ..families.registry import families, processing_of
from ..folder import Folder
from ..hub import open_folder
from ..outputs import BatchFeature, check_count, from_numpy, is_torch, thread_count, to_numpy
from .audio import load_audio
from .fields import JsonFields
from .items import is_bare, is_sound_and_rate

__all__ = [
    "DB",
    "AutoFeatureExtractor",
    "FeatureExtractor",
    "extractor_class",
    "extractor_config",
    "hann",
    "mel_filters",
]

DB = 10 / np.log(10)
MOST_MELS = 1 << 10
MOST_WINDOW = 1 << 14  # samples of a transform
MOST_SAMPLES = 1 << 28  # of a sound filled up to its length
MOST_FEATURES = 1 << 27  # of a sound


def to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    hertz = np.asarray(hertz, np.float64)
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    if scale == "kaldi":
        return 1127 * np.log(1 + hertz / 700)
    return np.where(hertz < 1000, 3 * hertz / 200, 15 + np.log(np.maximum(hertz, 1) / 1000) * (27 / np.log(6.4)))


def to_hertz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))


def mel_filters(bins: int, count: int, low: float, high: float, rate: int, scale: str) -> np.ndarray:
    """Weights (bins, count) float64 of `count` filters from `low` to `high` hertz over the bins of a transform; `scale`
    is "htk", "slaney" (of unit area) or "kaldi"."""
    points = np.linspace(to_mel(low, scale), to_mel(high, scale), count + 2)
    if scale == "kaldi":
        at = to_mel(rate / (2 * (bins - 1)) * np.arange(bins), scale)
    else:
        points, at = to_hertz(points, scale), np.linspace(0, rate // 2, bins)
    rising = (at[:, None] - points[:-2]) / np.diff(points)[:-1]
    falling = (points[2:] - at[:, None]) / np.diff(points)[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return np.ascontiguousarray(triangles * (2 / (points[2:] - points[:-2])) if scale == "slaney" else triangles)


class FeatureExtractor(JsonFields):
    """Sounds -> the input of a model; the base of those below. Thread-safe.

    A sound is what `load_audio` takes: a path, bytes, (array, rate), or an array [n] beside `sampling_rate=`; an array
    (B, n) or a list is several. Sounds of another rate than the model's are resampled.
    """

    part: ClassVar[str] = "feature_extractor"  # what it is of a processor
    input_name: ClassVar[str] = "input_features"
    other_names: ClassVar[tuple[str, ...]] = ()  # of inputs beside it
    defaults: ClassVar[dict[str, Any]] = {}
    # fields that every extractor of transformers has; these change nothing, or what `pad` does
    common: ClassVar[dict[str, Any]] = {"padding_value": 0.0, "padding_side": "right", "return_attention_mask": False}

    def __init__(self, num_threads: int | None = None, **fields: Any):
        known = self.common | self.defaults
        if unknown := sorted(set(fields) - set(known)):
            raise TypeError(f"{type(self).__name__}() got unexpected arguments: {', '.join(unknown)}")
        values = known | {name: value for name, value in fields.items() if value is not None}
        for name, value in values.items():
            if type(known[name]) is bool and type(value) is not bool:
                raise ConfigError(f"preprocessor_config.json: {name}: found {value!r}, expected true or false")
            setattr(self, name, value)
        self.num_threads, self.others = thread_count(num_threads), {}
        self._prepare(Config(values, "preprocessor_config.json"))

    def _prepare(self, config: Config) -> None:
        """Checks the fields and makes the filters."""
        raise NotImplementedError

    @property
    def model_input_names(self) -> list[str]:
        """What it makes."""
        return [self.input_name, *self.other_names]

    @classmethod
    def from_dict(cls, feature_extractor_dict: Mapping[str, Any], **overrides: Any) -> FeatureExtractor:
        """From the fields of preprocessor_config.json; unknown ones change nothing and are kept."""
        known, fields = cls.common | cls.defaults, dict(feature_extractor_dict)
        made = cls(**({name: fields.pop(name) for name in known if name in fields} | overrides))
        made.others = {name: value for name, value in fields.items() if not name.startswith("_")}
        return made

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> FeatureExtractor:
        """Of a folder or a hub id; keyword arguments override the file's fields.

        Raises ConfigError when preprocessor_config.json is missing or malformed.
        """
        folder = open_folder(pretrained_model_name_or_path, kwargs)
        return cls.of_folder(folder, **kwargs)

    @classmethod
    def of_folder(cls, folder: Folder, **overrides: Any) -> FeatureExtractor:
        """From the files of a folder: its class is the one they name, else the one its model goes with."""
        config = extractor_config(folder)
        if config is None:
            raise ConfigError(f"{folder}: no feature_extractor_type in preprocessor_config.json, expected one")
        chosen = extractor_class(_extractor_kind(folder, config)) if cls is FeatureExtractor else cls
        return chosen.from_dict(config.to_dict(), **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as preprocessor_config.json holds them."""
        fields = self.others | {name: getattr(self, name) for name in self.common | self.defaults}
        return fields | {"feature_extractor_type": type(self).__name__}

    @property
    def mel_filters(self) -> np.ndarray:
        """Weights (bins, mels) of the filters."""
        return self.filters

    def sounds(self, raw_speech: Any, sampling_rate: int | None) -> list[np.ndarray]:
        """Samples of one sound or a list, at the model's rate. ValueError names the place of one that has none."""
        items = as_sounds(raw_speech)
        if not items:
            raise ValueError("audio: the list is empty, expected at least one sound")
        if sampling_rate is None and any(map(is_bare, items)):
            warnings.warn(
                f"sampling_rate: not given beside an array, which is taken to be at {self.sampling_rate} a second",
                stacklevel=3,
            )
            sampling_rate = self.sampling_rate

        def load(place: int) -> np.ndarray:
            try:
                return load_audio(items[place], self.sampling_rate, sampling_rate)
            except AudioError as error:
                raise AudioError(f"sound {place}: {error}") from error

        workers = min(self.num_threads, len(items))
        with ThreadPoolExecutor(workers) if workers > 1 else contextlib.nullcontext() as pool:
            return list((pool.map if pool else map)(load, range(len(items))))

    def pad(
        self,
        processed_features: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Rows ({name: [...]} by the extractor's input name, or a list of such) cut at `max_length` and filled up with
        `padding_value` to one length, as transformers' extractors do; float32. ValueError where a length is missing."""
        if isinstance(processed_features, list | tuple):
            processed_features = {name: [row[name] for row in processed_features] for name in processed_features[0]}
        if self.input_name not in processed_features:
            raise ValueError(f"processed_features: found {', '.join(processed_features)}, expected {self.input_name}")
        padding = getattr(padding, "value", padding)
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding: found {padding!r}, expected True, False, 'longest' or 'max_length'")
        if max_length is None and (padding == "max_length" or truncation):
            raise ValueError("max_length: not given, expected a length to cut at or to fill up to")
        rows = [to_numpy(row, self.input_name) for row in processed_features[self.input_name]]
        torch = any(map(is_torch, processed_features[self.input_name]))
        step = pad_to_multiple_of or 1
        most = None if max_length is None else -(-max_length // step) * step
        rows = [row[:most] for row in rows] if truncation else rows
        width = most if padding == "max_length" else max(map(len, rows), default=0)
        width = 0 if padding in (False, "do_not_pad") else -(-width // step) * step
        masks = [np.ones(len(row), np.int32) for row in rows]
        filled = {self.input_name: [self._filled(row, width, self.padding_value) for row in rows]}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            filled["attention_mask"] = [self._filled(mask, width, 0) for mask in masks]
        kind = return_tensors or ("pt" if torch else "np")
        if len({row.shape for row in filled[self.input_name]}) > 1:
            if return_tensors == "pt":
                raise ValueError(
                    f"{self.input_name}: rows of different lengths do not make a tensor: pass padding=True"
                )
            return BatchFeature(filled)
        return BatchFeature({name: from_numpy(np.stack(rows), kind) for name, rows in filled.items()})

    def _filled(self, row: np.ndarray, width: int, value: float) -> np.ndarray:
        row = row.astype(np.float32) if row.dtype == np.float64 else row
        gap = max(0, width - len(row))
        ends = (0, gap) if self.padding_side == "right" else (gap, 0)
        return np.pad(row, (ends, *[(0, 0)] * (row.ndim - 1)), constant_values=value)

    def _samples(self, value: int | None, default: int) -> int:
        """A call's `max_length` in samples."""
        if value is None:
            return default
        check_count("max_length", value, " of samples")
        self._check_size("max_length", int(value), self.feature_size)
        return int(value)

    def _check_size(self, name: str, samples: int, mels: int) -> None:
        """ConfigError where a sound of that length, or its features, would be absurd."""
        frames = samples // self.hop_length + 1
        if samples > MOST_SAMPLES or frames * mels > MOST_FEATURES:
            raise ConfigError(
                f"{name}: found {samples} samples, {frames} x {mels} features, expected at most {MOST_SAMPLES} samples "
                f"and {MOST_FEATURES} features"
            )

    def _log_mel(
        self, sound: np.ndarray, filters: np.ndarray, scale: float, mels_first: bool = False, kaldi: bool = False,
        amplitudes: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """scale * log of the energies, (frames, mels) or (mels, frames) float32. `kaldi`: frames begin with the sound,
        their mean is taken off, and high frequencies are raised. `amplitudes`: the log of their sums and `mel_floor`,
        frames begin with the sound."""
        length = 2 * (len(filters) - 1)
        emphasis, floor = (0.97, float(np.finfo(np.float32).eps)) if kaldi else (0.0, 1e-10)
        if amplitudes:
            emphasis, floor = self.preemphasis, self.mel_floor
        return _C.log_mel(np.ascontiguousarray(sound), self.window, filters, length, self.hop_length,
                          not (kaldi or amplitudes), mels_first, kaldi, amplitudes, emphasis, floor, scale,
                          self.num_threads)  # fmt: skip

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self.defaults)})"


def hann(length: int, periodic: bool = True) -> np.ndarray:
    return np.hanning(length + 1)[:-1] if periodic else np.hanning(length)


def as_sounds(raw: Any) -> list[Any]:
    """A list of sounds, of one or several: a list of numbers is one, an array (B, n) several."""
    if is_sound_and_rate(raw) or not isinstance(raw, list | tuple):
        if getattr(raw, "ndim", 0) == 2 and raw.shape[0] > raw.shape[1]:
            raise AudioError(f"array of shape {tuple(raw.shape)}: expected (B, n), more samples than sounds; "
                             "one sound of several channels is (array, rate)")  # fmt: skip
        return list(raw) if getattr(raw, "ndim", 0) == 2 else [raw]
    return [np.asarray(raw)] if len(raw) and isinstance(raw[0], int | float | np.number) else list(raw)


def extractor_config(folder: Folder) -> Config | None:
    """The fields of a folder's feature extractor, or None where it has none."""
    nested = folder.config("processor_config.json")
    for config in (nested.section("feature_extractor"), nested, folder.config("preprocessor_config.json")):
        if _extractor_kind(folder, config):
            return config
    return None


def _extractor_kind(folder: Folder, config: Config) -> str | None:
    """The class of sounds' extractor that a file of fields names; None for one of pictures under its older name."""
    kind = config.get("feature_extractor_type")
    if not kind or config.get("image_processor_type"):
        return None
    way = processing_of(folder)
    if kind in way.feature_extractors:
        return kind
    return (
        None if way.image_processor or str(kind).replace("FeatureExtractor", "ImageProcessor") in _pictures() else kind
    )


def _pictures() -> set[str]:
    """Image processors of all families by name."""
    return {name for family in families().values() for way in family.ways for name in way.image_processors}


def extractor_class(name: Any) -> type[FeatureExtractor]:
    """The class of that name, for example ClapFeatureExtractor; ConfigError for one that is not known here."""
    classes = {n: c for family in families().values() for way in family.ways for n, c in way.feature_extractors.items()}
    if name not in classes:
        raise ConfigError(f"feature_extractor_type: found {name!r}, expected one of {', '.join(sorted(classes))}")
    return classes[name]


class AutoFeatureExtractor:
    """`AutoFeatureExtractor.from_pretrained(name)` gives the extractor its preprocessor_config.json names."""

    from_pretrained = FeatureExtractor.from_pretrained
