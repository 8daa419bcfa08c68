"""Gemma 4's tower of sounds (Google, 2026; Zhang et al., 2023), which its relatives hear by, and its features.

Traps: spectrograms are of amplitudes, to whose logarithm a floor is added; frames begin half a frame before the sound.
Frames of filled up silence count as none, and four make a row. A layer is half a feed-forward, attention to a row and
the eleven before it, a convolution that looks back, half a feed-forward and a norm; feed-forwards are added by half,
and norms before and after. Scores have keys of distances besides, sines and cosines through a linear, and stay within
50; queries are multiplied by what softplus makes of a parameter, keys by a constant.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ..config import Config
from ..errors import AudioError, ConfigError
from ..outputs import BatchFeature, check_device, from_numpy
from ..processing.features import MOST_MELS, MOST_WINDOW, FeatureExtractor, hann, mel_filters
from ..spec import (
    Conformer,
    Encoder,
    FeedForward,
    LightConv,
    Linear,
    LocalAttention,
    Norm,
    Project,
    Ref,
    Step,
    ref,
    replace,
)
from ..stems import FramesStem
from .blocks import ACTIVATIONS, linear, rms_norm, stacked
from .gemma4_pictures import constant

MASK = "input_features_mask"


def zeros(size: int) -> Ref:
    return Ref(("",), (size,))


def distances(span: int, hidden: int) -> np.ndarray:
    """(span, hidden): sines, then cosines, of each distance from 0 on."""
    half = hidden // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000) / max(half - 1, 1)))
    angles = np.arange(span, dtype=np.float32)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


def feed_forward(name: str, hidden: int, clipped: bool, weight: float) -> FeedForward:
    post = Norm(ref(f"{name}.post_layer_norm.weight", hidden, scale=weight), None, 1e-6)
    return FeedForward(
        linear(f"{name}.ffw_layer_1", 4 * hidden, hidden, bias=False, clipped=clipped),
        linear(f"{name}.ffw_layer_2", hidden, 4 * hidden, bias=False, clipped=clipped),
        rms_norm(f"{name}.pre_layer_norm", hidden, 1e-6),
        post_norm=post,
    )


def attention(section: Config, prefix: str, hidden: int, clipped: bool) -> LocalAttention:
    heads = section.heads(hidden, 1024, 8)
    left, right = (section.integer(f"attention_context_{side}", default, 0, 1 << 10) for side, default in
                   (("left", 13), ("right", 0)))  # fmt: skip
    chunk, span = section.integer("attention_chunk_size", 12, 1, 1 << 10), left - 1  # a row, and those before it
    if right or span < 1 or chunk not in (left - 1, left):  # else transformers takes keys of other distances
        raise ConfigError(
            f"audio_config: attention_chunk_size, attention_context_left, _right: found {chunk}, {left}, {right}, "
            "expected n, n + 1 and 0"
        )
    size, name = hidden // heads, f"{prefix}.self_attn"
    keys = math.log(1 + math.e) / math.log(2)

    def derive(scale: np.ndarray, relative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gain = np.logaddexp(0, scale.astype(np.float64)) * size**-0.5 / math.log(2) * keys
        made = distances(span, hidden) @ relative.T / np.float32(keys)  # (span, heads * size)
        relative = made.reshape(span, heads, size).transpose(1, 0, 2)
        return gain.astype(np.float32), np.ascontiguousarray(relative, np.float32)

    return LocalAttention(
        qkv=stacked([f"{name}.{part}_proj" for part in "qkv"], hidden, hidden, False, clipped),
        out=linear(f"{name}.post", hidden, hidden, bias=False, clipped=clipped),
        norm=rms_norm(f"{prefix}.norm_pre_attn", hidden, 1e-6),
        post_norm=rms_norm(f"{prefix}.norm_post_attn", hidden, 1e-6),
        num_attention_heads=heads,
        span=span,
        cap=section.number("attention_logit_cap", 50.0, 1e-3, 1e6),
        parameters=(ref(f"{name}.per_dim_scale", size), ref(f"{name}.relative_k_proj.weight", hidden, hidden)),
        derive=derive,
    )


def halved(layer: Linear) -> Linear:
    """What gives half of it, bounds too: 2 a sigmoid(2 b) of the halves is a sigmoid(b) of the whole."""
    clip = layer.clip and replace(
        layer.clip,
        output_min=replace(layer.clip.output_min, scale=0.5),
        output_max=replace(layer.clip.output_max, scale=0.5),
    )
    return replace(layer, weight=replace(layer.weight, scale=0.5), clip=clip)


def layer(section: Config, prefix: str, hidden: int, eps: float) -> Conformer:
    clipped, weight = section.boolean("use_clipped_linears", True), section.number("residual_weight", 0.5, -1e3, 1e3)
    conv = f"{prefix}.lconv1d"
    return Conformer(
        ffn1=feed_forward(f"{prefix}.feed_forward1", hidden, clipped, weight),
        attention=attention(section, prefix, hidden, clipped),
        conv=LightConv(
            start=halved(linear(f"{conv}.linear_start", 2 * hidden, hidden, bias=False, clipped=clipped)),
            end=linear(f"{conv}.linear_end", hidden, hidden, bias=False, clipped=clipped),
            norm=rms_norm(f"{conv}.pre_layer_norm", hidden, eps),
            conv=ref(f"{conv}.depthwise_conv1d.weight", hidden, section.integer("conv_kernel_size", 5, 1, 64)),
            conv_norm=rms_norm(f"{conv}.conv_norm", hidden, eps),
        ),
        ffn2=feed_forward(f"{prefix}.feed_forward2", hidden, clipped, weight),
        norm=rms_norm(f"{prefix}.norm_out", hidden, 1e-6),
        activation=section.choice("hidden_act", "silu", ACTIVATIONS),
    )


def count_frames(inputs: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """How many frames each sound has: `input_features_mask` (B, N) keeps its first ones."""
    features, mask = inputs["input_features"], inputs[MASK]
    if mask.shape != features.shape[:2]:
        raise ValueError(f"{MASK}: found shape {mask.shape}, expected {features.shape[:2]}, that of input_features")
    counts = (mask != 0).sum(1)
    if ((mask != 0) != (np.arange(mask.shape[1]) < counts[:, None])).any() or not counts.all():
        raise ValueError(f"{MASK}: expected the first frames of each sound, one at least, and none of the others")
    return {"input_features": features, "num_frames": counts.astype(np.int64)}


def audio(config: Config, text_size: int) -> Encoder:
    """A sound's rows among those of a text (soft tokens)."""
    section, tower = config.section("audio_config"), "audio_tower"
    if section.number("gradient_clipping", 1e10, 0.0, 1e38) < 1e9:
        raise ConfigError(
            f"audio_config: gradient_clipping: found {section.get('gradient_clipping')!r}, expected at least 1e9: none"
        )
    hidden, eps = section.integer("hidden_size", 1024, 2, 1 << 16), section.number("rms_norm_eps", 1e-6, 0.0, 1.0)
    stated = section.get("subsampling_conv_channels", [128, 32])
    if (
        not isinstance(stated, list | tuple)
        or len(stated) != 2
        or not all(type(n) is int and 4 <= n <= 1 << 12 for n in stated)
    ):
        raise ConfigError(f"audio_config: subsampling_conv_channels: found {stated!r}, expected two numbers from 4 on")
    first, second = stated
    name, size = f"{tower}.subsample_conv_projection", section.integer("output_proj_dims", 1536, 1, 1 << 16)
    norms = [Norm(ref(f"{name}.layer{i}.norm.weight", n), zeros(n), eps) for i, n in enumerate(stated)]
    projection = ref("embed_audio.embedding_projection.weight", text_size, size)
    return Encoder(
        hidden_size=hidden,
        stem=FramesStem(
            first=ref(f"{name}.layer0.conv.weight", first, 1, 3, 3),
            second=ref(f"{name}.layer1.conv.weight", second, first, 3, 3),
            norm1=norms[0],
            norm2=norms[1],
            weight=ref(f"{name}.input_proj_linear.weight", hidden, first // 4 * second),
            mels=first // 4 * 4,
        ),
        layers=tuple(
            layer(section, f"{tower}.layers.{i}", hidden, eps)
            for i in range(section.integer("num_hidden_layers", 12, 1, 1024))
        ),
        steps=(
            Step("projected", "hidden", Project(linear(f"{tower}.output_proj", size, hidden))),
            Step("normed_rows", "projected", Norm(constant(1.0, size), None, eps)),
            Step("features", "normed_rows", Project(Linear(projection))),
        ),
        prepare=count_frames,
    )


class Gemma4AudioFeatureExtractor(FeatureExtractor):
    """`input_features` (B, frames, mels) of sounds at 16 kHz, the longest 30 seconds, and `input_features_mask` (B,
    frames), False of what was filled up."""

    other_names = (MASK,)
    defaults: ClassVar[dict[str, Any]] = {
        "feature_size": 128, "sampling_rate": 16_000, "frame_length_ms": 20.0, "hop_length_ms": 10.0,
        "min_frequency": 0.0, "max_frequency": 8000.0, "preemphasis": 0.0, "preemphasis_htk_flavor": True,
        "fft_overdrive": False, "dither": 0.0, "input_scale_factor": 1.0, "mel_floor": 1e-3, "per_bin_mean": None,
        "per_bin_stddev": None, "return_attention_mask": True,
    }  # fmt: skip

    def _prepare(self, config: Config) -> None:
        mels = config.integer("feature_size", 128, 1, MOST_MELS)
        rate = config.integer("sampling_rate", 16_000, 1_000, 768_000)
        self.frame_length, self.hop_length = (
            round(rate * config.number(f"{name}_length_ms", default, 1e-1, 1e4) / 1000)
            for name, default in (("frame", 20.0), ("hop", 10.0))
        )
        length = 2 ** math.ceil(math.log2(self.frame_length)) * (2 if self.fft_overdrive else 1)
        if self.frame_length < 2 or self.hop_length < 1 or length > MOST_WINDOW:
            raise ConfigError(f"frame_length_ms, hop_length_ms: expected frames of 2 to {MOST_WINDOW} samples")
        if self.dither or (self.preemphasis and not self.preemphasis_htk_flavor) or self.padding_value:
            raise ConfigError(
                "preprocessor_config.json: expected no dither, HTK's preemphasis and a padding_value of 0"
            )
        low, high = (config.number(f"{end}_frequency", value, 0.0, 1e6) for end, value in (("min", 0.0), ("max", 8e3)))
        self.filters = mel_filters(length // 2 + 1, mels, low, high, rate, "htk")
        self.window = hann(self.frame_length).astype(np.float32).astype(np.float64)
        self.means, self.spreads = self._per_bin("per_bin_mean", mels), self._per_bin("per_bin_stddev", mels)

    def _per_bin(self, name: str, mels: int) -> np.ndarray | None:
        value = getattr(self, name)
        if value is None:
            return None
        array = np.asarray(value, np.float64).reshape(-1)
        if len(array) != mels:
            raise ConfigError(f"{name}: found {len(array)} numbers, expected {mels}")
        return array

    def __call__(
        self,
        raw_speech: Any,
        padding: bool | str = "longest",
        max_length: int | None = 480_000,
        truncation: bool = True,
        pad_to_multiple_of: int | None = 128,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = True,
        sampling_rate: int | None = None,
        device: str | None = "cpu",
    ) -> BatchFeature:
        """`raw_speech`: one sound or a list, cut at `max_length` samples and filled up to one length, a multiple of
        `pad_to_multiple_of`. Raises AudioError, ValueError."""
        check_device(device or "cpu")
        sounds = self.sounds(raw_speech, sampling_rate)
        most = None if max_length is None else self._samples(max_length, 0)
        filled = self.pad(
            {self.input_name: sounds}, padding, most, truncation and most is not None, pad_to_multiple_of, True
        )
        pairs = zip(filled[self.input_name], filled["attention_mask"], strict=True)
        made = [self._features(place, *pair) for place, pair in enumerate(pairs)]
        arrays = dict(zip((self.input_name, MASK), zip(*made, strict=True), strict=True))
        if return_tensors and len({features.shape for features, _ in made}) > 1:
            raise ValueError("input_features: sounds of different lengths do not make a tensor: pass padding=True")
        return BatchFeature(
            {
                n: from_numpy(np.stack(part), return_tensors) if return_tensors else list(part)
                for n, part in arrays.items()
            }
        )

    def _features(self, place: int, sound: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-mel amplitudes (frames, mels), and which frames are the sound's."""
        lead = self.frame_length // 2
        count = (len(sound) + lead - self.frame_length - 1) // self.hop_length + 1
        kept = mask[np.arange(max(count, 0)) * self.hop_length + self.frame_length - lead].astype(bool)
        if not kept.any():
            least = self.frame_length - lead + 1
            raise AudioError(
                f"sound {place}: {int(mask.sum())} samples, expected {least} at least, of which a frame is made"
            )
        padded = np.pad(sound * np.float32(self.input_scale_factor), (lead, 0))
        mel = self._log_mel(padded, self.filters, 1.0, amplitudes=True)[:count]
        if self.means is not None:
            mel = mel - self.means
        if self.spreads is not None:
            mel = mel / self.spreads
        return (mel * kept[:, None]).astype(np.float32), kept
