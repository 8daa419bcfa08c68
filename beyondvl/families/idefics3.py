"""Idefics3 and SmolVLM: a picture's tiles, and last the whole of it, in the text of a Llama (Laurençon et al., 2024;
Marafioti et al., 2025). Granite Docling is one, too.

Each tile is a picture of SigLIP's tower; squares of scale_factor patches a side lie side by side and become one row of
the text. Traps: whether the last product shares the table of words is said beside text_config, not in it; what ends an
answer is in generation_config.json. Positions are those of the patches in a tile: transformers finds them by rounded
fractions, which for sides as 25 or 29, and no published one, lead some patches to their neighbours' positions.
"""

from __future__ import annotations

from collections.abc import Callable

from ..config import Config
from ..errors import ConfigError
from ..spec import Encoder, Linear, MergeRows, Step, replace
from . import language
from .blocks import ACTIVATIONS, linear, norm, pre_norm_block, squares
from .clip import patch_stem
from .pictures import IDEFICS3
from .registry import Family, Head, Processing, ProcessorKind

IMAGE_TOKEN = 128_257  # of the first checkpoint


def as_llama(config: Config) -> Config:
    """The config with what its text_config leaves to the class: it is a Llama."""
    text = config.section("text_config")
    text.choice("model_type", "llama", ("llama",))
    tied = {"tie_word_embeddings": config.boolean("tie_word_embeddings", False)}
    return config.updated(Config({"text_config": text.to_dict() | {"model_type": "llama"} | tied}))


def image_token(config: Config) -> int:
    most = config.section("text_config").integer("vocab_size", 32_000, 1, 1 << 22) - 1
    return config.integer("image_token_id", IMAGE_TOKEN, 0, most)


def tile_tower(
    config: Config, defaults: tuple[int, int, int], square: tuple[str, int], projection: Callable[[int], Linear]
) -> Encoder:
    """SigLIP's tower over tiles; squares of patches become one row each by a projection of so many columns. `defaults`
    of the vision_config's hidden_size, num_attention_heads and patch_size, `square` the field that holds the side of a
    square, and its default."""
    (width, count, patch), section = defaults, config.section("vision_config")
    section = section.updated(Config({"patch_size": section.get("patch_size", patch)}))
    hidden, scale = section.integer("hidden_size", width, 1, 1 << 16), config.integer(*square, 1, 64)
    intermediate, layers = (
        section.integer("intermediate_size", 3072, 1, 1 << 18),
        section.integer("num_hidden_layers", 12, 1, 1024),
    )
    heads = section.heads(hidden, width, count)
    activation = section.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS)
    eps = section.number("layer_norm_eps", 1e-6, 0.0, 1.0)
    stem = patch_stem(section, hidden, "vision_model.embeddings", bias=True, class_token=False)
    side = stem.grid[0]
    if side % scale:
        raise ConfigError(f"config.json: {square[0]}: found {scale}, expected a divisor of {side} patches a side")
    merged = MergeRows(None, projection(hidden * scale**2), squares(side, side, scale), scale**2)
    return Encoder(
        hidden_size=hidden,
        stem=stem,
        layers=tuple(
            pre_norm_block(f"vision_model.encoder.layers.{i}", hidden, intermediate, heads, activation, eps)
            for i in range(layers)
        ),
        steps=(
            Step("last_hidden_state", "hidden", norm("vision_model.post_layernorm", hidden, eps)),
            Step("features", "last_hidden_state", merged),
        ),
    )


def vision(config: Config) -> Encoder:
    words = language.hidden_size(as_llama(config))
    return tile_tower(
        config,
        (1152, 16, 32),
        ("scale_factor", 2),
        lambda columns: linear("connector.modality_projection.proj", words, columns, bias=False),
    )


def decoder(config: Config) -> Encoder:
    text = as_llama(config).section("text_config")
    encoder = language.llama(text, "language.", image_token(config))
    return replace(encoder, stem=replace(encoder.stem, flat_features=True))


def tokens(config: Config) -> dict[str, int]:
    return {**language.tokens(as_llama(config)), "image_token_id": image_token(config)}


def rename(key: str) -> str:
    """The language model under a prefix of its own, everything else without that of the whole."""
    key = key.removeprefix("model.")
    if key.startswith("text_model."):
        return f"language.model.{key.removeprefix('text_model.')}"
    return f"language.{key}" if key.startswith("lm_head.") else key


WRITING = Head("image_text_to_text", {"vision": vision, "decoder": decoder}, tokens)
KIND = ProcessorKind(image_seq_len=169)
FAMILY = Family(
    model_type="idefics3",
    processing=Processing(
        processor="Idefics3Processor",
        tokenizer="",  # whichever its files name
        image_processor="Idefics3ImageProcessor",
        image_processors={"Idefics3ImageProcessor": IDEFICS3},
        kind=KIND,
    ),
    variants={
        "smolvlm": Processing(
            processor="SmolVLMProcessor",
            image_processor="SmolVLMImageProcessor",
            image_processors={"SmolVLMImageProcessor": IDEFICS3},
            kind=KIND,
        )
    },
    aliases=("smolvlm",),
    towers={},
    classes={},
    heads={"Idefics3ForConditionalGeneration": WRITING, "SmolVLMForConditionalGeneration": WRITING},
    rename=rename,
)
