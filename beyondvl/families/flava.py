"""FLAVA: a text encoder, a picture encoder, and one that fuses both in a single stream (Singh et al., 2022).

All three are vision transformers in their layers. Traps: the fused stream takes hidden states before the final norm;
its class token is its own; contrastive embeddings are projections of the class tokens; the checkpoint of
FlavaForPreTraining keeps the model under "flava." and its codebook beside it.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..spec import (
    Block,
    CFormer,
    Encoder,
    JoinStem,
    Norm,
    Normalize,
    PatchStem,
    Pool,
    Project,
    Step,
    TokenStem,
    ref,
)
from .blocks import ACTIVATIONS, linear, norm, square_picture, vit_block
from .registry import Family, Head, strip_prefixes


def sizes(section: Config) -> tuple[int, float]:
    return section.integer("hidden_size", 768, 1, 1 << 16), section.number("layer_norm_eps", 1e-12, 0.0, 1.0)


def layers(section: Config, prefix: str, count: int) -> tuple[Block, ...]:
    hidden, eps = sizes(section)
    intermediate = section.integer("intermediate_size", 3072, 1, 1 << 18)
    heads, activation = section.heads(hidden, 768, 12), section.choice("hidden_act", "gelu", ACTIVATIONS)
    if not section.boolean("qkv_bias", True):
        raise ConfigError("qkv_bias: found false, expected true")
    number = section.integer("num_hidden_layers", count, 1, 1024)
    return tuple(
        vit_block(f"{prefix}.encoder.layer.{i}", hidden, intermediate, heads, activation, eps) for i in range(number)
    )


def steps(config: Config, name: str, hidden: int, final: Norm) -> tuple[Step, ...]:
    """Of the text or image tower: what goes into the fused stream, hidden states, pooled and contrastive embeddings."""
    fused = config.section("multimodal_config").integer("hidden_size", 768, 1, 1 << 16)
    projection = config.integer("projection_dim", 768, 1, 1 << 16)
    return (
        Step("features", "hidden", Project(linear(f"{name}_to_mm_projection", fused, hidden))),
        Step("last_hidden_state", "hidden", final),
        Step("class_token", "last_hidden_state", Pool("first")),
        Step("pooler_output", "class_token", Project(linear(f"{name}_model.pooler.dense", hidden, hidden), "tanh")),
        Step("projected", "last_hidden_state", Project(linear(f"{name}_projection", projection, hidden))),
        Step("embeds", "projected", Pool("first")),
        Step("unit_embeds", "embeds", Normalize()),
    )


def image(config: Config) -> Encoder:
    section = config.section("image_config")
    hidden, eps = sizes(section)
    size, patch = square_picture(section, 224, 16, "image_config")
    embeddings = "image_model.embeddings"
    return Encoder(
        hidden_size=hidden,
        stem=PatchStem(
            weight=ref(f"{embeddings}.patch_embeddings.projection.weight", hidden, 3, patch, patch),
            bias=ref(f"{embeddings}.patch_embeddings.projection.bias", hidden),
            class_token=ref(f"{embeddings}.cls_token", hidden),
            position=ref(f"{embeddings}.position_embeddings", (size // patch) ** 2 + 1, hidden),
            size=(size, size),
            stride=patch,
        ),
        layers=layers(section, "image_model", 12),
        steps=steps(config, "image", hidden, norm("image_model.layernorm", hidden, eps)),
    )


def text(config: Config) -> Encoder:
    section = config.section("text_config")
    hidden, eps = sizes(section)
    embeddings = "text_model.embeddings"

    def table(name: str, field: str, default: int):
        return ref(f"{embeddings}.{name}_embeddings.weight", section.integer(field, default, 1, 1 << 22), hidden)

    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=table("word", "vocab_size", 30522),
            position=table("position", "max_position_embeddings", 512),
            type=table("token_type", "type_vocab_size", 2),
        ),
        stem_norm=norm(f"{embeddings}.LayerNorm", hidden, eps),
        layers=layers(section, "text_model", 12),
        steps=steps(config, "text", hidden, norm("text_model.layernorm", hidden, eps)),
    )


def fusion(config: Config, matching: bool = False) -> CFormer:
    section = config.section("multimodal_config")
    hidden, eps = sizes(section)
    prefix = "multimodal_model"
    token = ref(f"{prefix}.cls_token", hidden) if section.boolean("use_cls_token", True) else None
    found = [
        Step("last_hidden_state", "hidden", norm(f"{prefix}.layernorm", hidden, eps)),
        Step("class_token", "last_hidden_state", Pool("first")),
        Step("pooler_output", "class_token", Project(linear(f"{prefix}.pooler.dense", hidden, hidden), "tanh")),
    ]
    if matching:
        found += [
            Step("matched", "class_token", Project(linear("itm_head.pooler.dense", hidden, hidden), "tanh")),
            Step("itm_score", "matched", Project(linear("itm_head.seq_relationship", 2, hidden))),
        ]
    return CFormer(
        hidden_size=hidden,
        stem=JoinStem(class_token=token),
        layers=layers(section, prefix, 6),
        steps=tuple(found),
    )


FAMILY = Family(
    model_type="flava",
    towers={},
    classes={},
    heads={
        "FlavaModel": Head("joint", {"vision": image, "text": text, "fusion": fusion}),
        "FlavaForPreTraining": Head(
            "joint", {"vision": image, "text": text, "fusion": lambda config: fusion(config, matching=True)}
        ),
    },
    rename=strip_prefixes("flava."),
    ignored=("image_model.embeddings.mask_token", "image_codebook.", "mim_head.", "mlm_head.", "mmm_", "itm_head.",
             "global_contrastive_head.", "logit_scale"),
)  # fmt: skip
