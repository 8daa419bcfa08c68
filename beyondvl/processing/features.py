"""Log-mel features of sounds, equal to transformers' feature extractors: CLAP's, Whisper's, AST's.

    mel filters: triangles between points that lie evenly in mels, over the bins of a transform
    htk      m = 2595 log10(1 + f / 700)
    slaney   m = 3 f / 200 up to 1 kHz, then logarithmic (27 steps for a factor of 6.4); each triangle of area 1
    kaldi    m = 1127 ln(1 + f / 700), the triangles straight in mels, not in hertz

The spectra themselves are the core's (csrc/audio). CLAP's published extractor crops long sounds at random; here the
crop is the middle one, the same every time, unless a seed asks for transformers' draws.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .. import _C
from ..config import Config, read_json
from ..errors import AudioError, ConfigError
from ..hub import hub_options, resolve
from ..outputs import BatchFeature, check_count, from_numpy, thread_count
from .audio import is_sound_and_rate, load_audio

__all__ = [
    "ASTFeatureExtractor",
    "AutoFeatureExtractor",
    "ClapFeatureExtractor",
    "FeatureExtractor",
    "WhisperFeatureExtractor",
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
    found = np.maximum(0, np.minimum(rising, falling))
    return np.ascontiguousarray(found * (2 / (points[2:] - points[:-2])) if scale == "slaney" else found)


class FeatureExtractor:
    """Sounds -> the input of a model; the base of those below. Thread-safe.

    A sound is what `load_audio` takes: a path, bytes, (array, rate), or an array [n] beside `sampling_rate=`; an array
    (B, n) or a list is several. Sounds of another rate than the model's are resampled.
    """

    part: ClassVar[str] = "feature_extractor"  # what it is of a processor
    kind: ClassVar[str] = ""
    input_name: ClassVar[str] = "input_features"
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, num_threads: int | None = None, **fields: Any):
        unknown = sorted(set(fields) - set(self.defaults))
        if unknown:
            raise TypeError(f"{type(self).__name__}() got unexpected arguments: {', '.join(unknown)}")
        values = self.defaults | {name: value for name, value in fields.items() if value is not None}
        for name, value in values.items():
            if type(self.defaults[name]) is bool and type(value) is not bool:
                raise ConfigError(f"preprocessor_config.json: {name}: found {value!r}, expected true or false")
            setattr(self, name, value)
        self.num_threads = thread_count(num_threads)
        self._prepare(Config(values, "preprocessor_config.json"))

    def _prepare(self, config: Config) -> None:
        """Checks the fields and makes the filters."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Config, **overrides: Any) -> FeatureExtractor:
        """From the fields of preprocessor_config.json; unknown ones are ignored, as transformers does."""
        kind = str(config.get("feature_extractor_type", "")).removesuffix("FeatureExtractor")
        kinds = {known.kind: known for known in (ClapFeatureExtractor, WhisperFeatureExtractor, ASTFeatureExtractor)}
        if kind not in kinds:
            raise ConfigError(f"feature_extractor_type: found {kind!r}, expected one of {', '.join(kinds)}")
        chosen = kinds[kind]
        return chosen(**({name: config.get(name) for name in chosen.defaults if name in config} | overrides))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> FeatureExtractor:
        """Of a folder or a hub id; keyword arguments override the file's fields.

        Raises ConfigError when preprocessor_config.json is missing or malformed.
        """
        hub = hub_options(kwargs)
        config = extractor_config(resolve(name, weights=False, **hub))
        if config is None:
            raise ConfigError(f"{name}: no feature_extractor_type in preprocessor_config.json, expected one")
        return cls.from_config(config, **kwargs)

    def sounds(self, raw_speech: Any, sampling_rate: int | None) -> list[np.ndarray]:
        """Samples of one sound or a list, at the model's rate. ValueError names the place of one that has none."""
        items = as_sounds(raw_speech)
        if not items:
            raise ValueError("audio: the list is empty, expected at least one sound")

        def load(place: int) -> np.ndarray:
            try:
                return load_audio(items[place], self.sampling_rate, sampling_rate)
            except AudioError as error:
                raise AudioError(f"sound {place}: {error}") from error

        workers = min(self.num_threads, len(items))
        with ThreadPoolExecutor(workers) if workers > 1 else contextlib.nullcontext() as pool:
            return list((pool.map if pool else map)(load, range(len(items))))

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
        self, sound: np.ndarray, filters: np.ndarray, scale: float, mels_first: bool = False, kaldi: bool = False
    ) -> np.ndarray:
        """scale * log of the energies, (frames, mels) or (mels, frames) float32. `kaldi`: frames begin with the sound,
        their mean is taken off, and high frequencies are raised."""
        length = 2 * (len(filters) - 1)
        emphasis, floor = (0.97, float(np.finfo(np.float32).eps)) if kaldi else (0.0, 1e-10)
        return _C.log_mel(np.ascontiguousarray(sound), self.window, filters, length, self.hop_length, not kaldi,
                          mels_first, kaldi, emphasis, floor, scale, self.num_threads)  # fmt: skip

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self.defaults)})"


def hann(length: int, periodic: bool = True) -> np.ndarray:
    return np.hanning(length + 1)[:-1] if periodic else np.hanning(length)


class ClapFeatureExtractor(FeatureExtractor):
    """`input_features` (B, C, frames, 64) in decibels and `is_longer` (B, 1), C 4 where truncation is "fusion", else 1.

    Shorter sounds are repeated and filled up with zeros ("repeatpad"; or "repeat", "pad"). Of longer ones "rand_trunc"
    takes one crop, "fusion" the whole shrunk to a crop's length and a crop of each third. Crops are the middle ones;
    with `seed` those that transformers draws after np.random.seed(seed).

    In transformers a fusing extractor whose sounds are all short marks one of them, by chance, as longer; here all are
    marked, which is what it does to a sound alone, so that none depends on its neighbours.
    """

    kind = "Clap"
    defaults: ClassVar[dict[str, Any]] = {
        "feature_size": 64, "sampling_rate": 48_000, "hop_length": 480, "max_length_s": 10, "fft_window_size": 1024,
        "frequency_min": 0, "frequency_max": 14_000, "truncation": "fusion", "padding": "repeatpad",
    }  # fmt: skip

    def _prepare(self, config: Config) -> None:
        size = config.integer("fft_window_size", 1024, 2, MOST_WINDOW)
        mels = config.integer("feature_size", 64, 1, MOST_MELS)
        rate = config.integer("sampling_rate", 48_000, 1_000, 768_000)
        config.integer("hop_length", 480, 1, 1 << 16)
        self._check_size("max_length_s", config.integer("max_length_s", 10, 1, 3600) * rate, mels)
        low = config.number("frequency_min", 0, 0, rate)
        high = config.number("frequency_max", 14_000, low + 1, rate)
        self._check(self.truncation, self.padding)
        self.window = hann(size)
        names = {"fusion": "htk", "rand_trunc": "slaney"}
        self.banks = {n: mel_filters(size // 2 + 1, mels, low, high, rate, scale) for n, scale in names.items()}

    def _check(self, truncation: Any, padding: Any) -> None:
        for name, value, known in (("truncation", truncation, ("fusion", "rand_trunc")),
                                   ("padding", padding, ("repeatpad", "repeat", "pad"))):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(known)}")

    def __call__(
        self,
        raw_speech: Any,
        truncation: str | None = None,
        padding: bool | str | None = None,
        max_length: int | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        seed: int | None = None,
    ) -> BatchFeature:
        """`raw_speech`: one sound or a list; `max_length` in samples. Raises AudioError, ValueError."""
        truncation = truncation or self.truncation
        padding = self.padding if padding in (True, None) else padding
        self._check(truncation, padding)
        rng = None if seed is None else np.random.RandomState(seed)
        length = self._samples(max_length, self.max_length_s * self.sampling_rate)
        found = [self._input(s, length, truncation, padding, rng) for s in self.sounds(raw_speech, sampling_rate)]
        longer = np.array([[longer] for _, longer in found])
        if truncation == "fusion":
            longer[:] = True
        features = [mel for mel, _ in found]
        return BatchFeature(
            input_features=from_numpy(np.stack(features), return_tensors) if return_tensors else features,
            is_longer=from_numpy(longer, return_tensors) if return_tensors else longer.tolist(),
        )

    def _input(self, sound: np.ndarray, length: int, truncation: str, padding: str, rng: Any) -> tuple:
        """(C, frames, mels) and whether the sound was cut."""
        if len(sound) < length:
            if padding != "pad":
                whole = length // len(sound) + (padding == "repeat")
                sound = np.tile(sound, whole)[:length]
            sound = np.pad(sound, (0, length - len(sound)))
        elif len(sound) > length and truncation == "rand_trunc":
            spare = len(sound) - length
            start = spare // 2 if rng is None else rng.randint(0, spare + 1)
            return self._log_mel(sound[start : start + length], self.banks[truncation], DB)[None], True
        mel = self._log_mel(sound, self.banks[truncation], DB)
        if truncation == "rand_trunc":
            return mel[None], False
        frames = length // self.hop_length + 1
        if len(mel) == frames:
            return np.stack([mel] * 4), False
        return self._fusion(mel, frames, rng), True

    def _fusion(self, mel: np.ndarray, frames: int, rng: Any) -> np.ndarray:
        """The whole shrunk to `frames`, and a crop of each third."""
        thirds = [
            part if len(part) else np.zeros(1, int) for part in np.array_split(np.arange(len(mel) - frames + 1), 3)
        ]
        starts = [part[len(part) // 2] if rng is None else rng.choice(part) for part in thirds]
        return np.stack([shrunk(mel, frames), *(mel[start : start + frames] for start in starts)])


def shrunk(mel: np.ndarray, frames: int) -> np.ndarray:
    """Linear interpolation between frames whose centres lie evenly over the same span, in float32 as torch has it."""
    step = np.float32(len(mel)) / np.float32(frames)
    at = np.maximum(step * (np.arange(frames, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, len(mel) - 1)
    share = (at - low.astype(np.float32))[:, None]
    return (1 - share) * mel[low] + share * mel[high]


class WhisperFeatureExtractor(FeatureExtractor):
    """`input_features` (B, mels, 3000) of 30 seconds at 16 kHz, filled up with silence or cut; with
    `return_attention_mask` also `attention_mask` (B, 3000)."""

    kind = "Whisper"
    defaults: ClassVar[dict[str, Any]] = {
        "feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30, "n_fft": 400,
        "dither": 0.0, "padding_value": 0.0, "return_attention_mask": False,
    }  # fmt: skip

    def _prepare(self, config: Config) -> None:
        size = config.integer("n_fft", 400, 2, MOST_WINDOW)
        mels = config.integer("feature_size", 80, 1, MOST_MELS)
        rate = config.integer("sampling_rate", 16_000, 1_000, 768_000)
        config.integer("hop_length", 160, 1, 1 << 16)
        self.n_samples = config.integer("chunk_length", 30, 1, 3600) * rate
        self._check_size("chunk_length", self.n_samples, mels)
        if self.dither or self.padding_value:
            raise ConfigError("preprocessor_config.json: expected neither dither nor a padding_value other than 0")
        self.window, self.filters = hann(size), mel_filters(size // 2 + 1, mels, 0, 8000, rate, "slaney")

    def __call__(
        self,
        raw_speech: Any,
        truncation: bool = True,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        padding: str = "max_length",
        max_length: int | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """`raw_speech`: one sound or a list; `padding` "max_length" (30 s, or `max_length` samples) or "longest".
        Raises AudioError, ValueError."""
        sounds = self.sounds(raw_speech, sampling_rate)
        most = self._samples(max_length, self.n_samples)
        if truncation:
            sounds = [sound[:most] for sound in sounds]
        if padding not in ("max_length", "longest", True):
            raise ValueError(f"padding: found {padding!r}, expected 'max_length' or 'longest'")
        longest = max(self.hop_length, *map(len, sounds))  # a frame at least
        length = max(most, longest) if padding == "max_length" else longest
        features = np.stack([self._features(np.pad(sound, (0, length - len(sound)))) for sound in sounds])
        found = BatchFeature(input_features=from_numpy(features, return_tensors) if return_tensors else list(features))
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            mask = np.stack([(np.arange(length) < len(sound)).astype(np.int32) for sound in sounds])
            mask = mask[:, :: self.hop_length][:, : features.shape[2]]
            found["attention_mask"] = from_numpy(mask, return_tensors) if return_tensors else list(mask)
        return found

    def _features(self, sound: np.ndarray) -> np.ndarray:
        """log10 of the energies, at most 8 below the loudest, brought to about -1 to 1."""
        mel = self._log_mel(sound, self.filters, 1 / np.log(10), mels_first=True)[:, :-1]
        mel = np.maximum(mel, mel.max() - np.float32(8))
        mel += np.float32(4)
        mel *= np.float32(0.25)
        return mel


class ASTFeatureExtractor(FeatureExtractor):
    """`input_values` (B, max_length, 128): Kaldi's filter banks of 25 ms every 10, cut or filled up, normalised."""

    kind = "AST"
    input_name = "input_values"
    defaults: ClassVar[dict[str, Any]] = {
        "feature_size": 1, "sampling_rate": 16_000, "num_mel_bins": 128, "max_length": 1024, "do_normalize": True,
        "mean": -4.2677393, "std": 4.5689974,
    }  # fmt: skip

    def _prepare(self, config: Config) -> None:
        rate = config.integer("sampling_rate", 16_000, 1_000, 768_000)
        mels = config.integer("num_mel_bins", 128, 1, MOST_MELS)
        config.integer("max_length", 1024, 1, MOST_FEATURES // mels)
        config.number("mean", 0, -1e6, 1e6)
        if abs(std := config.number("std", 1, -1e6, 1e6)) < 1e-12:
            raise ConfigError(f"preprocessor_config.json: std: found {std}, expected a number that is not near 0")
        self.hop_length, self.window = 160, hann(400, periodic=False)
        self.filters = mel_filters(257, mels, 20, rate // 2, rate, "kaldi")

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: str | None = None
    ) -> BatchFeature:
        """`raw_speech`: one sound or a list. Raises AudioError, ValueError."""
        features = []
        for sound in self.sounds(raw_speech, sampling_rate):
            sound = np.pad(sound, (0, max(0, len(self.window) - len(sound))))
            mel = self._log_mel(sound, self.filters, 1.0, kaldi=True)
            mel = np.pad(mel[: self.max_length], ((0, max(0, self.max_length - len(mel))), (0, 0)))
            features.append((mel - np.float32(self.mean)) / np.float32(2 * self.std) if self.do_normalize else mel)
        return BatchFeature(input_values=from_numpy(np.stack(features), return_tensors) if return_tensors else features)


def as_sounds(raw: Any) -> list[Any]:
    """A list of sounds, of one or several: a list of numbers is one, an array (B, n) several."""
    if is_sound_and_rate(raw) or not isinstance(raw, list | tuple):
        if getattr(raw, "ndim", 0) == 2 and raw.shape[0] > raw.shape[1]:
            raise AudioError(f"array of shape {tuple(raw.shape)}: expected (B, n), more samples than sounds; "
                             "one sound of several channels is (array, rate)")  # fmt: skip
        return list(raw) if getattr(raw, "ndim", 0) == 2 else [raw]
    return [np.asarray(raw)] if len(raw) and isinstance(raw[0], int | float | np.number) else list(raw)


def extractor_config(folder: Path) -> Config | None:
    """The fields of a folder's feature extractor, or None where it has none."""
    for file, nested in (("processor_config.json", "feature_extractor"), ("preprocessor_config.json", None)):
        if not (folder / file).exists():
            continue
        config = Config(read_json(folder / file), file)
        config = config.section(nested) if nested else config
        if config.get("feature_extractor_type"):
            return config
    return None


class AutoFeatureExtractor:
    """`AutoFeatureExtractor.from_pretrained(name)` gives the extractor its preprocessor_config.json names."""

    from_pretrained = FeatureExtractor.from_pretrained
