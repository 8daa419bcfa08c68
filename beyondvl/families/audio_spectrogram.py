"""AST, the audio spectrogram transformer (Gong et al., 2021): a vision transformer over overlapping patches of Kaldi
filter banks, with two class tokens, whose mean is the embedding.

The picture has mels for lines and frames for columns, where input_values (B, frames, mels) have it the other way.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..outputs import BatchFeature, from_numpy
from ..processing.features import MOST_FEATURES, MOST_MELS, FeatureExtractor, hann, mel_filters
from ..spec import Encoder, FirstRows, Pool, Project, Step, ref, replace
from ..stems import PatchStem
from .blocks import ACTIVATIONS, as_picture, linear, norm, vit_block
from .registry import Family, Head, Processing, strip_prefixes


def audio(config: Config) -> Encoder:
    hidden = config.integer("hidden_size", 768, 1, 1 << 16)
    heads = config.heads(hidden, 768, 12)
    intermediate = config.integer("intermediate_size", 3072, 1, 1 << 18)
    eps, bias = config.number("layer_norm_eps", 1e-12, 0.0, 1.0), config.boolean("qkv_bias", True)
    activation = config.choice("hidden_act", "gelu", ACTIVATIONS)
    size = (config.integer("num_mel_bins", 128, 1, 1 << 12), config.integer("max_length", 1024, 1, 1 << 16))
    patch = config.integer("patch_size", 16, 1, 1 << 10)
    if patch > min(size):
        raise ConfigError(f"config.json: patch_size {patch} is larger than the spectrogram, {size[0]} x {size[1]}")
    stride = (config.integer("frequency_stride", 10, 1, 1 << 10), config.integer("time_stride", 10, 1, 1 << 10))
    grid = [(n - patch) // step + 1 for n, step in zip(size, stride, strict=True)]
    return Encoder(
        hidden_size=hidden,
        stem=PatchStem(
            weight=ref("embeddings.patch_embeddings.projection.weight", hidden, 1, patch, patch),
            bias=ref("embeddings.patch_embeddings.projection.bias", hidden),
            class_token=ref(("embeddings.cls_token", "embeddings.distillation_token"), 2, hidden),
            position=ref("embeddings.position_embeddings", grid[0] * grid[1] + 2, hidden),
            size=size,
            stride=stride,
            channels=1,
        ),
        layers=tuple(
            vit_block(f"encoder.layer.{i}", hidden, intermediate, heads, activation, eps, bias=bias)
            for i in range(config.integer("num_hidden_layers", 12, 1, 1024))
        ),
        steps=(
            Step("last_hidden_state", "hidden", norm("layernorm", hidden, eps)),
            Step("class_tokens", "last_hidden_state", FirstRows(2)),
            Step("pooler_output", "class_tokens", Pool("mean")),
        ),
        prepare=as_picture("input_values"),
    )


def classifier(config: Config) -> Encoder:
    encoder = audio(config)
    hidden, eps = encoder.hidden_size, config.number("layer_norm_eps", 1e-12, 0.0, 1.0)
    labels = config.section("id2label").to_dict()
    count = len(labels) if labels else config.integer("num_labels", 2, 1, 1 << 20)
    steps = (
        Step("normed", "pooler_output", norm("classifier.layernorm", hidden, eps)),
        Step("logits", "normed", Project(linear("classifier.dense", count, hidden))),
    )
    return replace(encoder, steps=encoder.steps + steps)


class ASTFeatureExtractor(FeatureExtractor):
    """`input_values` (B, max_length, 128): Kaldi's filter banks of 25 ms every 10, cut or filled up, normalised."""

    input_name, other_names = "input_values", ("attention_mask",)
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
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        padding: Any = None,
    ) -> BatchFeature:
        """`raw_speech`: one sound or a list; `padding` changes nothing: each has max_length frames. Raises AudioError,
        ValueError."""
        features = []
        for sound in self.sounds(raw_speech, sampling_rate):
            sound = np.pad(sound, (0, max(0, len(self.window) - len(sound))))
            mel = self._log_mel(sound, self.filters, 1.0, kaldi=True)
            mel = np.pad(mel[: self.max_length], ((0, max(0, self.max_length - len(mel))), (0, 0)))
            features.append((mel - np.float32(self.mean)) / np.float32(2 * self.std) if self.do_normalize else mel)
        return BatchFeature(input_values=from_numpy(np.stack(features), return_tensors) if return_tensors else features)


FAMILY = Family(
    model_type="audio-spectrogram-transformer",
    processing=Processing(
        feature_extractor="ASTFeatureExtractor", feature_extractors={"ASTFeatureExtractor": ASTFeatureExtractor}
    ),
    towers={"audio": audio},
    classes={"ASTModel": ("audio",)},
    heads={"ASTForAudioClassification": Head("classifying", {"audio": classifier})},
    rename=strip_prefixes("audio_spectrogram_transformer."),
)
