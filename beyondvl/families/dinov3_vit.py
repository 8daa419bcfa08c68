"""DINOv3 (Simeoni et al., 2025): DINOv2's transformer whose positions are angles, by which queries and keys are turned.

A head's angles are half of the way down, half of the way across, both from -1 to 1 over the picture; the class token
and the registers are not turned. Keys have no bias unless the config says so.
"""

from __future__ import annotations

import math

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Encoder, FeedForward, Linear, Pool, Ref, Step, ref
from ..stems import PatchRowsStem
from .blocks import ACTIVATIONS, norm, square_picture
from .dinov2 import class_tokens
from .pictures import DINOV3
from .registry import Family, Processing, strip_prefixes


def linears(
    prefix: str, parts: dict[str, bool], out_features: int, in_features: int, scale: str | None = None
) -> Linear:
    """Linears of one input as one, by name whether each has a bias; `scale` multiplies their outputs."""
    rows = len(parts) * out_features
    weight = ref(tuple(f"{prefix}.{name}.weight" for name in parts), rows, in_features, scaled_by=scale)
    if not any(parts.values()):
        return Linear(weight)
    names = tuple(f"{prefix}.{name}.bias" if has else "" for name, has in parts.items())
    return Linear(weight, Ref(names, (rows,), scaled_by=scale))


def block(config: Config, prefix: str, hidden: int, heads: int, eps: float) -> Block:
    intermediate = config.integer("intermediate_size", 1536, 1, 1 << 18)
    gated, bias = config.boolean("use_gated_mlp", False), config.boolean("mlp_bias", True)
    qkv = {f"{n[0]}_proj": config.boolean(f"{n}_bias", n != "key") for n in ("query", "key", "value")}
    output = {"o_proj": config.boolean("proj_bias", True)}
    inner = {"gate_proj": bias, "up_proj": bias} if gated else {"up_proj": bias}
    return Block(
        qkv=linears(f"{prefix}.attention", qkv, hidden, hidden),
        out=linears(f"{prefix}.attention", output, hidden, hidden, f"{prefix}.layer_scale1.lambda1"),
        norm1=norm(f"{prefix}.norm1", hidden, eps),
        ffn=FeedForward(
            linears(f"{prefix}.mlp", inner, intermediate, hidden),
            linears(f"{prefix}.mlp", {"down_proj": bias}, hidden, intermediate, f"{prefix}.layer_scale2.lambda1"),
            norm(f"{prefix}.norm2", hidden, eps),
            gated,
        ),
        num_attention_heads=heads,
        activation=config.choice("hidden_act", "gelu", ACTIVATIONS),
        rotary=True,
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
