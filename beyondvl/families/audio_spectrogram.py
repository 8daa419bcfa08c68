"""AST, the audio spectrogram transformer (Gong et al., 2021): a vision transformer over overlapping patches of Kaldi
filter banks, with two class tokens, whose mean is the embedding.

The picture has mels for lines and frames for columns, where input_values (B, frames, mels) have it the other way.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..spec import Encoder, FirstRows, PatchStem, Pool, Project, Step, ref
from .blocks import ACTIVATIONS, linear, norm, vit_block
from .registry import Family, Head, strip_prefixes


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
    return Encoder(encoder.stem, encoder.layers, encoder.steps + steps, hidden)


FAMILY = Family(
    model_type="audio-spectrogram-transformer",
    towers={"audio": audio},
    classes={"ASTModel": ("audio",)},
    heads={"ASTForAudioClassification": Head("classifying", {"audio": classifier})},
    rename=strip_prefixes("audio_spectrogram_transformer."),
)
