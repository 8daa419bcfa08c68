"""DINOv3 (Simeoni et al., 2025): DINOv2's transformer whose positions are angles, by which queries and keys are turned.

A head's angles are half of the way down, half of the way across, both from -1 to 1 over the picture; the class token
and the registers are not turned. Keys have no bias unless the config says so.
"""

from __future__ import annotations

import math

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Encoder, FeedForward, Pool, Step, ref
from ..stems import PatchRowsStem
from .blocks import ACTIVATIONS, linear, norm, square_picture, stacked
from .dinov2 import class_tokens
from .pictures import DINOV3
from .registry import Family, Processing, strip_prefixes


def block(config: Config, prefix: str, hidden: int, heads: int, eps: float) -> Block:
    intermediate = config.integer("intermediate_size", 1536, 1, 1 << 18)
    gated, bias = config.boolean("use_gated_mlp", False), config.boolean("mlp_bias", True)
    attention, mlp = f"{prefix}.attention", f"{prefix}.mlp"
    separate, inner = [f"{attention}.{part}_proj" for part in "qkv"], ["gate_proj", "up_proj"][not gated :]
    biases = [config.boolean(f"{part}_bias", part != "key") for part in ("query", "key", "value")]
    out_bias, scales = config.boolean("proj_bias", True), [f"{prefix}.layer_scale{i}.lambda1" for i in (1, 2)]
    return Block(
        qkv=stacked(separate, hidden, hidden, bias=biases),
        out=linear(f"{attention}.o_proj", hidden, hidden, bias=out_bias, scaled_by=scales[0]),
        norm1=norm(f"{prefix}.norm1", hidden, eps),
        ffn=FeedForward(
            stacked([f"{mlp}.{name}" for name in inner], intermediate, hidden, bias=bias),
            linear(f"{mlp}.down_proj", hidden, intermediate, bias=bias, scaled_by=scales[1]),
            norm(f"{prefix}.norm2", hidden, eps),
            gated,
        ),
        num_attention_heads=heads,
        activation=config.choice("hidden_act", "gelu", ACTIVATIONS),
        rotary=1,
    )


def vision(config: Config) -> Encoder:
    hidden = config.integer("hidden_size", 384, 1, 1 << 16)
    heads, eps = config.heads(hidden, 384, 6), config.number("layer_norm_eps", 1e-5, 0.0, 1.0)
    _, patch = square_picture(config, 224, 16, "config.json")
    quarter, theta = hidden // heads // 4, config.number("rope_theta", 100.0, 1e-3, 1e12)
    if hidden // heads % 4:
        raise ConfigError(f"config.json: heads of {hidden // heads}, expected a multiple of 4")
    angles = tuple(2 * math.pi / theta ** (i / quarter) for i in range(quarter))
    still, patches = (0.0,) * quarter, "embeddings.patch_embeddings"
    return Encoder(
        hidden_size=hidden,
        stem=PatchRowsStem(
            weight=ref(f"{patches}.weight", hidden, config.integer("num_channels", 3, 3, 3), patch, patch),
            bias=ref(f"{patches}.bias", hidden),
            class_token=class_tokens(config.integer("num_register_tokens", 0, 0, 1 << 10), hidden),
            frequencies=(angles + still, still + angles),
            centred=True,
        ),
        layers=tuple(
            block(config, f"layer.{i}", hidden, heads, eps)
            for i in range(config.integer("num_hidden_layers", 12, 1, 1024))
        ),
        steps=(
            Step("last_hidden_state", "hidden", norm("norm", hidden, eps)),
            Step("pooler_output", "last_hidden_state", Pool("first")),
        ),
    )


FAMILY = Family(
    model_type="dinov3_vit",
    processing=Processing(
        image_processor="DINOv3ViTImageProcessor", image_processors={"DINOv3ViTImageProcessor": DINOV3}
    ),
    towers={"vision": vision},
    classes={"DINOv3ViTModel": ("vision",)},
    rename=strip_prefixes("model."),
    ignored=("embeddings.mask_token", "embeddings.register_tokens"),  # of which there may be none
)
