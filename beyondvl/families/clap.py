"""CLAP: a RoBERTa and HTS-AT, a Swin transformer over spectrograms (Wu et al., 2023; Chen et al., 2022; Liu et al.,
2021).

A log-mel spectrogram, normed by mel and stretched to 1024 frames, is cut in four that lie one above the other: a
picture of 256 x 256. Its patches attend within windows of 8 x 8, which every second block shifts by half; four patches
become one between stages. Traps: logits_per_audio and logits_per_text have a scale each; get_*_features are normalised
where `*_embeds` of the one-tower classes are not; a stage no larger than a window does not shift; four neighbours are
merged column by column; the published extractor crops long sounds at random, so that one file gives many embeddings:
here the crop is the middle one, the same every time, unless a seed asks for transformers' draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..outputs import BatchFeature, from_numpy
from ..processing.features import DB, MOST_MELS, MOST_WINDOW, FeatureExtractor, hann, mel_filters
from ..spec import (
    BatchNormConv,
    Block,
    Encoder,
    Linear,
    MergeRows,
    Normalize,
    Pool,
    Project,
    RelativeBias,
    Step,
    Windows,
    ref,
    replace,
)
from ..stems import CropFusion, PatchStem, SpectrogramStem
from .bert import bert_encoder
from .blocks import ACTIVATIONS, as_picture, counted_positions, linear, norm, squares, vit_block
from .clip import tower_config
from .registry import Family, Processing

EPS = 1e-5  # of norms that the config does not speak of
TEXT_DEFAULTS = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}


def projection(name: str, hidden: int, config: Config, section: Config) -> tuple[Step, ...]:
    """Two linears with an activation in between, then the unit vector."""
    source = config if "projection_dim" in config else section
    size = source.integer("projection_dim", 512, 1, 1 << 16)
    source = config if "projection_hidden_act" in config else section
    activation = source.choice("projection_hidden_act", "relu", ACTIVATIONS)
    return (
        Step("embeds_inner", "pooler_output", Project(linear(f"{name}.linear1", size, hidden), activation)),
        Step("embeds", "embeds_inner", Project(linear(f"{name}.linear2", size, size))),
        Step("unit_embeds", "embeds", Normalize()),
    )


def text(config: Config) -> Encoder:
    section = Config(TEXT_DEFAULTS, "config.json: text_config").updated(tower_config(config, "text"))
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    steps = (
        Step("first_token", "hidden", Pool("first")),
        Step("pooler_output", "first_token", Project(linear("text_model.pooler.dense", hidden, hidden), "tanh")),
        *projection("text_projection", hidden, config, section),
    )
    padding = section.integer("pad_token_id", 1, 0, 1 << 20)
    return bert_encoder(section, "text_model.", steps, prepare=counted_positions(padding), first_position=padding + 1)


def pair(section: Config, name: str, default: int) -> tuple[int, int]:
    """A size given as one number or two."""
    value = section.get(name, default)
    sizes = list(value) if isinstance(value, list) else [value, value]
    if len(sizes) != 2 or not all(type(n) is int and 1 <= n <= 1 << 10 for n in sizes):
        raise ConfigError(f"audio_config: {name}: found {value!r}, expected one or two whole numbers from 1 to 1024")
    return tuple(sizes)


def numbers(section: Config, name: str, default: list[int]) -> list[int]:
    value = section.get(name, default)
    if not isinstance(value, list) or not value or not all(type(n) is int and 1 <= n <= 1024 for n in value):
        raise ConfigError(f"audio_config: {name}: found {value!r}, expected whole numbers from 1 to 1024")
    return value


@cache
def windows(height: int, width: int, size: int, shift: int) -> Windows:
    """The rows of a grid window by window after a turn by `shift` lines and columns; what comes together from both ends
    of the grid is of different regions."""
    rows, regions = [], []
    for top in range(0, height, size):
        for left in range(0, width, size):
            for y in range(top, top + size):
                for x in range(left, left + size):
                    rows.append((y + shift) % height * width + (x + shift) % width)
                    ends = [(at >= n - size) + (at >= n - shift) for at, n in ((y, height), (x, width))]
                    regions.append(3 * ends[0] + ends[1] if shift else 0)
    return Windows(size * size, tuple(rows), tuple(regions))


def window_bias(name: str, size: int, heads: int) -> RelativeBias:
    """One bias for each of the (2 size - 1)^2 ways two places of a window lie to each other."""
    span = 2 * size - 1
    return RelativeBias(ref(name, span * span, heads), pairs(size))


@cache
def pairs(size: int) -> tuple[int, ...]:
    """Which of those ways each pair of places, row by row, lies to each other."""
    span, places = 2 * size - 1, [(y, x) for y in range(size) for x in range(size)]
    return tuple((y - v + size - 1) * span + x - u + size - 1 for y, x in places for v, u in places)


def block(prefix: str, hidden: int, heads: int, grid: tuple[int, int], size: int, shift: int, section: Config) -> Block:
    wide = int(section.number("mlp_ratio", 4.0, 0.1, 64.0) * hidden)
    activation = section.choice("hidden_act", "gelu", ACTIVATIONS)
    eps, bias = section.number("layer_norm_eps", EPS, 0.0, 1.0), section.boolean("qkv_bias", True)
    return replace(
        vit_block(prefix, hidden, wide, heads, activation, eps, part="self", bias=bias),
        relative=window_bias(f"{prefix}.attention.self.relative_position_bias_table", size, heads),
        windows=windows(*grid, size, shift),
    )


def merge(prefix: str, hidden: int, grid: tuple[int, int]) -> MergeRows:
    """Two by two neighbours, column by column, to one of twice the width."""
    reduction = linear(f"{prefix}.reduction", 2 * hidden, 4 * hidden, bias=False)
    return MergeRows(norm(f"{prefix}.norm", 4 * hidden, EPS), reduction, squares(*grid, 2, by_columns=True))


def stages(section: Config, prefix: str, hidden: int, grid: tuple[int, int]) -> tuple[Block | MergeRows, ...]:
    """Blocks of each stage, and what merges rows between them."""
    depths, heads = numbers(section, "depths", [2, 2, 6, 2]), numbers(section, "num_attention_heads", [4, 8, 16, 32])
    size = section.integer("window_size", 8, 1, 16)
    if len(heads) != len(depths) or sum(depths) > 256:
        raise ConfigError(
            f"audio_config: found {len(depths)} depths and {len(heads)} numbers of heads, expected as many, "
            "and at most 256 blocks"
        )
    layers: list[Block | MergeRows] = []
    for stage, depth in enumerate(depths):
        name = f"{prefix}layers.{stage}"
        if grid[0] % size or grid[1] % size or hidden % heads[stage]:
            raise ConfigError(f"audio_config: stage {stage}: {grid[0]} x {grid[1]} patches, {hidden} columns, expected "
                              f"multiples of the window of {size} and of {heads[stage]} heads")  # fmt: skip
        for i in range(depth):
            shift = size // 2 if i % 2 and min(grid) > size else 0
            layers.append(block(f"{name}.blocks.{i}", hidden, heads[stage], grid, size, shift, section))
        if stage < len(depths) - 1:
            layers.append(merge(f"{name}.downsample", hidden, grid))
            grid, hidden = (grid[0] // 2, grid[1] // 2), 2 * hidden
    return tuple(layers)


def fusion(prefix: str, hidden: int, patch: tuple[int, int], stride: tuple[int, int], section: Config) -> CropFusion:
    """Crops are cut three times as wide, so that the three of them are as wide as the whole."""
    narrow = hidden // section.integer("aff_block_r", 4, 1, hidden)

    def squeeze(name: str, first: int) -> tuple[BatchNormConv, BatchNormConv]:
        def conv(at: int, out: int, inner: int) -> BatchNormConv:
            layers = f"{prefix}.fusion_model.{name}"
            weight, bias = ref(f"{layers}.{at}.weight", out, inner, 1, 1), ref(f"{layers}.{at}.bias", out)
            return BatchNormConv(weight, f"{layers}.{at + 1}", EPS, bias)

        return conv(first, narrow, hidden), conv(first + 3, hidden, narrow)

    return CropFusion(
        crop=Linear(ref(f"{prefix}.mel_conv2d.weight", hidden, 1, patch[0], 3 * patch[1]),
                    ref(f"{prefix}.mel_conv2d.bias", hidden)),
        stride=(stride[0], 3 * stride[1]),
        local=squeeze("local_att", 0),
        whole=squeeze("global_att", 1),
    )  # fmt: skip


def audio(config: Config) -> Encoder:
    section = tower_config(config, "audio")
    prefix = "audio_model.audio_encoder."
    fused = section.boolean("enable_fusion", False)
    if section.get("fusion_type") == "channel_map":
        raise ConfigError("audio_config: fusion_type: found 'channel_map', expected another one")
    side = section.integer("spec_size", 256, 1, 1 << 12)
    mels = section.integer("num_mel_bins", 64, 1, 1 << 10)
    patch, stride = pair(section, "patch_size", 4), pair(section, "patch_stride", 4)
    hidden = section.integer("patch_embeds_hidden_size", 96, 1, 1 << 14)
    count = len(numbers(section, "depths", [2, 2, 6, 2])) - 1
    last, fold = hidden << count, 2**count
    if side % mels or any(side % (n * fold) for n in stride) or section.integer("hidden_size", 768) != last:
        raise ConfigError(f"audio_config: spec_size {side}, {mels} mels, strides {stride}, expected a multiple of all, "
                          f"and hidden_size {last}")  # fmt: skip
    parts, grid = side // mels, tuple(side // n for n in stride)
    end = tuple(n // fold for n in grid)
    bins = end[0] // parts
    if bins < 1 or end[0] % bins:
        raise ConfigError(f"audio_config: {end[0]} lines of patches at the end, expected a multiple of {parts} parts")
    embed = f"{prefix}patch_embed"
    return Encoder(
        hidden_size=last,
        stem=PatchStem(
            weight=ref(f"{embed}.proj.weight", hidden, 1, *patch),
            bias=ref(f"{embed}.proj.bias", hidden),
            class_token=None,
            position=None,
            size=(side, side),
            stride=stride,
            channels=section.integer("patch_embed_input_channels", 1, 1, 1),
            padding=tuple((k - n) // 2 for k, n in zip(patch, stride, strict=True)),
            source=SpectrogramStem(f"{prefix}batch_norm", EPS, mels, parts, (side, side), 4 if fused else 1),
            fusion=fusion(embed, hidden, patch, stride, section) if fused else None,
        ),
        stem_norm=norm(f"{embed}.norm", hidden, EPS) if section.boolean("enable_patch_layer_norm", True) else None,
        layers=stages(section, prefix, hidden, grid),
        steps=(
            Step("last_hidden_state", "hidden", norm(f"{prefix}norm", last, EPS)),
            Step("pooler_output", "last_hidden_state", Pool("mean")),
            *projection("audio_projection", last, config, section),
        ),
        prepare=as_picture("input_features"),
        arrange=by_bins(end[0] // bins, bins, end[1], last),
    )


def by_bins(parts: int, bins: int, frames: int, hidden: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Rows of a spectrogram's parts as transformers gives them: (hidden_size, bins, parts * frames) an item."""

    def arrange(outputs: dict[str, Any]) -> dict[str, Any]:
        if "last_hidden_state" not in outputs:
            return outputs
        rows = outputs["last_hidden_state"].reshape(-1, parts, bins, frames, hidden)
        rows = rows.transpose(0, 4, 2, 1, 3).reshape(len(rows), hidden, bins, parts * frames)
        return outputs | {"last_hidden_state": np.ascontiguousarray(rows)}

    return arrange


class ClapFeatureExtractor(FeatureExtractor):
    """`input_features` (B, C, frames, 64) in decibels and `is_longer` (B, 1), C 4 where truncation is "fusion", else 1.

    Shorter sounds are repeated and filled up with zeros ("repeatpad"; or "repeat", "pad"). Of longer ones "rand_trunc"
    takes one crop, "fusion" the whole shrunk to a crop's length and a crop of each third. Crops are the middle ones;
    with `seed` those that transformers draws after np.random.seed(seed).

    In transformers a fusing extractor whose sounds are all short marks one of them, by chance, as longer; here all are
    marked, which is what it does to a sound alone, so that none depends on its neighbours.
    """

    other_names = ("is_longer",)
    defaults: ClassVar[dict[str, Any]] = {
        "feature_size": 64, "sampling_rate": 48_000, "hop_length": 480, "max_length_s": 10, "fft_window_size": 1024,
        "frequency_min": 0, "frequency_max": 14_000, "top_db": None, "truncation": "fusion", "padding": "repeatpad",
    }  # fmt: skip

    def _prepare(self, config: Config) -> None:
        size = config.integer("fft_window_size", 1024, 2, MOST_WINDOW)
        mels = config.integer("feature_size", 64, 1, MOST_MELS)
        rate = config.integer("sampling_rate", 48_000, 1_000, 768_000)
        config.integer("hop_length", 480, 1, 1 << 16)
        self._check_size("max_length_s", config.integer("max_length_s", 10, 1, 3600) * rate, mels)
        low = config.number("frequency_min", 0, 0, rate)
        high = config.number("frequency_max", 14_000, low + 1, 768_000)
        self._check(self.truncation, self.padding)
        if self.top_db is not None:
            raise ConfigError(f"preprocessor_config.json: top_db: found {self.top_db!r}, expected none")
        self.window = hann(size)
        names = {"fusion": "htk", "rand_trunc": "slaney"}
        self.banks = {n: mel_filters(size // 2 + 1, mels, low, high, rate, scale) for n, scale in names.items()}

    def _check(self, truncation: Any, padding: Any) -> None:
        for name, value, known in (("truncation", truncation, ("fusion", "rand_trunc")),
                                   ("padding", padding, ("repeatpad", "repeat", "pad", "max_length"))):  # fmt: skip
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
        truncation = self.truncation if truncation is None else truncation
        padding = self.padding if padding in (True, None) else padding
        self._check(truncation, padding)
        rng = None if seed is None else np.random.RandomState(seed)
        length = self._samples(max_length, self.max_length_s * self.sampling_rate)
        inputs = [self._input(s, length, truncation, padding, rng) for s in self.sounds(raw_speech, sampling_rate)]
        longer = np.array([[longer] for _, longer in inputs])
        if truncation == "fusion":
            longer[:] = True
        features = [mel for mel, _ in inputs]
        return BatchFeature(
            input_features=from_numpy(np.stack(features), return_tensors) if return_tensors else features,
            is_longer=from_numpy(longer, return_tensors) if return_tensors else longer.tolist(),
        )

    def _input(self, sound: np.ndarray, length: int, truncation: str, padding: str, rng: Any) -> tuple:
        """(C, frames, mels) and whether the sound was cut."""
        if len(sound) < length:
            if padding in ("repeat", "repeatpad"):
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


FAMILY = Family(
    model_type="clap",
    processing=Processing(
        processor="ClapProcessor",
        tokenizer="RobertaTokenizer",
        feature_extractor="ClapFeatureExtractor",
        feature_extractors={"ClapFeatureExtractor": ClapFeatureExtractor},
    ),
    aliases=("clap_text_model", "clap_audio_model"),
    towers={"text": text, "audio": audio},
    classes={
        "ClapModel": ("text", "audio"),
        "ClapTextModelWithProjection": ("text",),
        "ClapAudioModelWithProjection": ("audio",),
        "ClapTextModel": ("text",),
        "ClapAudioModel": ("audio",),
    },
    bare=frozenset({"ClapTextModel", "ClapAudioModel"}),
    prefixes={"text": ("text_model.", "text_projection."), "audio": ("audio_model.", "audio_projection.")},
    scale="logit_scale_a",
    text_scale="logit_scale_t",
    unit_features=True,
)
