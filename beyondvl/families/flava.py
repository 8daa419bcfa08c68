"""FLAVA: a text encoder, a picture encoder, and one that fuses both in a single stream (Singh et al., 2022).

All three are vision transformers in their layers. Traps: the fused stream takes hidden states before the final norm;
its class token is its own; contrastive embeddings are projections of the class tokens; the checkpoint of
FlavaForPreTraining keeps the model under "flava." and its codebook, which is not read, beside it.
"""

from __future__ import annotations

from collections.abc import Callable

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, CFormer, Encoder, Norm, Normalize, Pool, Project, Step, ref, replace
from ..stems import JoinStem, PatchStem, TokenStem
from .blocks import ACTIVATIONS, linear, norm, prediction_head, square_picture, vit_block
from .clip import tower_config
from .pictures import FLAVA
from .registry import Family, Head, Processing, strip_prefixes


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


def predicted(name: str, section: Config, vocab: int, width: int) -> tuple[Step, ...]:
    """A head that tells masked tokens or patches (of `vocab`) from hidden states of that width."""
    hidden, eps = sizes(section)
    if hidden != width:
        raise ConfigError(f"config.json: {name} reads {hidden} columns, found hidden states of {width}")
    activation = section.choice("hidden_act", "gelu", ACTIVATIONS)
    return prediction_head(f"{name}_head", "last_hidden_state", f"{name}_logits", hidden, vocab, activation, eps)


def vocabulary(config: Config, name: str) -> tuple[Config, int]:
    """The text or image section, and how many tokens or kinds of patches it knows."""
    section = config.section(f"{name}_config")
    return section, section.integer("vocab_size", {"text": 30522, "image": 8192}[name], 1, 1 << 22)


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


def fusion(config: Config) -> CFormer:
    section = config.section("multimodal_config")
    hidden, eps = sizes(section)
    prefix = "multimodal_model"
    token = ref(f"{prefix}.cls_token", hidden) if section.boolean("use_cls_token", True) else None
    joined = [
        Step("last_hidden_state", "hidden", norm(f"{prefix}.layernorm", hidden, eps)),
        Step("class_token", "last_hidden_state", Pool("first")),
        Step("pooler_output", "class_token", Project(linear(f"{prefix}.pooler.dense", hidden, hidden), "tanh")),
    ]
    return CFormer(
        hidden_size=hidden,
        stem=JoinStem(class_token=token),
        layers=layers(section, prefix, 6),
        steps=tuple(joined),
    )


def pretraining_tower(build: Callable[[Config], Encoder], name: str, head: str) -> Callable[[Config], Encoder]:
    """The text or image tower with the head that it is trained with alone."""

    def encoder(config: Config) -> Encoder:
        tower, (section, vocab) = build(config), vocabulary(config, name)
        more = predicted(head, section, vocab, tower.hidden_size)
        return replace(tower, steps=tower.steps + more)

    return encoder


def pretraining_fusion(config: Config) -> Encoder:
    """The fused stream with its three heads: matching, and what is masked on either side."""
    tower = fusion(config)
    hidden = tower.hidden_size
    more = (
        Step("matched", "class_token", Project(linear("itm_head.pooler.dense", hidden, hidden), "tanh")),
        Step("itm_score", "matched", Project(linear("itm_head.seq_relationship", 2, hidden))),
        *predicted("mmm_text", *vocabulary(config, "text"), hidden),
        *predicted("mmm_image", *vocabulary(config, "image"), hidden),
    )
    return replace(tower, steps=tower.steps + more)


def alone(build: Callable[[Config], Encoder], name: str) -> Callable[[Config], Encoder]:
    """One of the three by itself, of the whole config or of its own."""

    def encoder(config: Config) -> Encoder:
        tower = build(Config({f"{name}_config": tower_config(config, name).to_dict()}))
        kept = ("last_hidden_state", "class_token", "pooler_output")
        return replace(tower, steps=tuple(step for step in tower.steps if step.dst in kept))

    return encoder


FAMILY = Family(
    model_type="flava",
    processing=Processing(
        processor="FlavaProcessor",
        tokenizer="BertTokenizer",
        image_processor="FlavaImageProcessor",
        image_processors={"FlavaImageProcessor": FLAVA},
    ),
    aliases=("flava_text_model", "flava_image_model", "flava_multimodal_model"),
    towers={"text": alone(text, "text"), "vision": alone(image, "image")},
    classes={"FlavaTextModel": ("text",), "FlavaImageModel": ("vision",)},
    base="FlavaModel",
    heads={
        "FlavaModel": Head("joint", {"vision": image, "text": text, "fusion": fusion}),
        "FlavaForPreTraining": Head(
            "pretraining",
            {
                "vision": pretraining_tower(image, "image", "mim"),
                "text": pretraining_tower(text, "text", "mlm"),
                "fusion": pretraining_fusion,
            },
            scaled=True,
        ),
        "FlavaMultimodalModel": Head("fused", {"fusion": alone(fusion, "multimodal")}),
    },
    rename=strip_prefixes("flava."),
    prefixes={
        "text": ("text_model.", "text_projection.", "text_to_mm_projection."),
        "vision": ("image_model.", "image_projection.", "image_to_mm_projection."),
        "fusion": ("multimodal_model.",),
    },
    ignored=(
        "image_model.embeddings.mask_token",
        "image_codebook.",
        "mim_head.",
        "mlm_head.",
        "mmm_",
        "itm_head.",
        "logit_scale",
    ),
    older_sections=True,
    scale="logit_scale",
)
