"""SigLIP, and SigLIP 2 at fixed resolution (Zhai et al., 2023; Tschannen et al., 2025).

No class token, no pre-norm of the stem, bidirectional text. Vision pools by a learned probe (MAP head), text by its
last position, padding or not: texts must be padded to the length of training. logits = cos exp(scale) + bias, read
through a sigmoid. Published fixed-resolution SigLIP 2 checkpoints have model_type siglip; `siglip2` (NaFlex) takes
pictures of any size as patches, and its positions are resized to each.
"""

from __future__ import annotations

import math

from ..config import Config
from ..errors import ConfigError
from ..spec import AttentionPool, Encoder, Linear, Normalize, Pool, Project, Step, ref
from ..stems import PatchRowsStem, PatchStem, TokenStem
from .blocks import ACTIVATIONS, linear, norm, packed_rows, pre_norm_block, probe_pool
from .clip import patch_stem, tower_config
from .pictures import SIGLIP, SIGLIP2
from .registry import Family, Processing, ProcessorKind
from .tokens import SIGLIP_LENGTH


def sizes(section: Config) -> tuple[int, int, int, int, str, float]:
    """hidden_size, intermediate_size, num_hidden_layers, heads, activation, eps."""
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    return (
        hidden,
        section.integer("intermediate_size", 3072, 1, 1 << 18),
        section.integer("num_hidden_layers", 12, 1, 1024),
        section.heads(hidden, 768, 12),
        section.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS),
        section.number("layer_norm_eps", 1e-6, 0.0, 1.0),
    )


def text(config: Config) -> Encoder:
    section = tower_config(config, "text")
    hidden, intermediate, layers, heads, activation, eps = sizes(section)
    vocab = section.integer("vocab_size", 32000, 1, 1 << 22)
    positions = section.integer("max_position_embeddings", 64, 1, 1 << 16)
    projection = section.integer("projection_size", hidden, 1, 1 << 16)
    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref("text_model.embeddings.token_embedding.weight", vocab, hidden),
            position=ref("text_model.embeddings.position_embedding.weight", positions, hidden),
        ),
        layers=tuple(
            pre_norm_block(f"text_model.encoder.layers.{i}", hidden, intermediate, heads, activation, eps)
            for i in range(layers)
        ),
        steps=(
            Step("last_hidden_state", "hidden", norm("text_model.final_layer_norm", hidden, eps)),
            Step("last_token", "last_hidden_state", Pool("last")),
            Step("pooler_output", "last_token", Project(linear("text_model.head", projection, hidden))),
            Step("unit_embeds", "pooler_output", Normalize()),
        ),
    )


def map_head(prefix: str, hidden: int, intermediate: int, heads: int, activation: str, eps: float) -> AttentionPool:
    """The probe's attention, its q, k, v packed in one parameter as torch's MultiheadAttention stores them."""
    weight, bias = f"{prefix}.attention.in_proj_weight", f"{prefix}.attention.in_proj_bias"
    query = Linear(packed_rows(weight, hidden, 0, 1, hidden), packed_rows(bias, hidden, 0, 1))
    kv = Linear(packed_rows(weight, hidden, 1, 2, hidden), packed_rows(bias, hidden, 1, 2))
    names = ("probe", "attention.out_proj", "layernorm")
    return probe_pool(prefix, names, query, kv, hidden, intermediate, heads, activation, eps)


def stem(config: Config, section: Config, hidden: int) -> PatchStem | PatchRowsStem:
    prefix = "vision_model.embeddings"
    if "siglip2" not in str(config.get("model_type")):
        return patch_stem(
            section.updated(Config({"patch_size": section.get("patch_size", 16)})),
            hidden,
            prefix,
            bias=True,
            class_token=False,
        )
    patches, patch = section.integer("num_patches", 256, 1, 1 << 16), section.integer("patch_size", 16, 1, 256)
    side = math.isqrt(patches)
    if side * side != patches:
        raise ConfigError(f"vision_config: num_patches: found {patches}, expected a square number")
    embedding = linear(f"{prefix}.patch_embedding", hidden, section.integer("num_channels", 3, 3, 3) * patch * patch)
    position = ref(f"{prefix}.position_embedding.weight", patches, hidden)
    return PatchRowsStem(embedding.weight, embedding.bias, position=position, grid=(side, side))


def vision(config: Config) -> Encoder:
    section = tower_config(config, "vision")
    hidden, intermediate, layers, heads, activation, eps = sizes(section)
    steps = [Step("last_hidden_state", "hidden", norm("vision_model.post_layernorm", hidden, eps))]
    if section.boolean("vision_use_head", True):
        head = map_head("vision_model.head", hidden, intermediate, heads, activation, eps)
        steps += [Step("pooler_output", "last_hidden_state", head), Step("unit_embeds", "pooler_output", Normalize())]
    return Encoder(
        hidden_size=hidden,
        stem=stem(config, section, hidden),
        layers=tuple(
            pre_norm_block(f"vision_model.encoder.layers.{i}", hidden, intermediate, heads, activation, eps)
            for i in range(layers)
        ),
        steps=tuple(steps),
    )


PICTURES = {"SiglipImageProcessor": SIGLIP, "Siglip2ImageProcessor": SIGLIP2}
FAMILY = Family(
    model_type="siglip",
    processing=Processing(
        processor="SiglipProcessor",
        tokenizer="SiglipTokenizer",
        image_processor="SiglipImageProcessor",
        image_processors=PICTURES,
    ),
    variants={
        "siglip2": Processing(
            processor="Siglip2Processor",
            tokenizer="Siglip2Tokenizer",
            image_processor="Siglip2ImageProcessor",
            image_processors=PICTURES,
            kind=ProcessorKind({"padding": "max_length", "truncation": True, "max_length": SIGLIP_LENGTH}),
        )
    },
    aliases=("siglip_text_model", "siglip_vision_model", "siglip2", "siglip2_text_model", "siglip2_vision_model"),
    towers={"text": text, "vision": vision},
    classes={
        "SiglipModel": ("text", "vision"),
        "SiglipTextModel": ("text",),
        "SiglipVisionModel": ("vision",),
        "Siglip2Model": ("text", "vision"),
        "Siglip2TextModel": ("text",),
        "Siglip2VisionModel": ("vision",),
    },
    prefixes={"text": ("text_model.",), "vision": ("vision_model.",)},
    scale="logit_scale",
    bias="logit_bias",
    sigmoid=True,
)
