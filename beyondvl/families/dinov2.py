"""DINOv2 (Oquab et al., 2023): a vision transformer that learned without texts.

Pictures of any size: positions of the class token and of a square grid, which is resized, by torch's bicubic without
antialiasing. Each sub-layer's result is scaled by a vector (`layer_scale`), folded into the weights that make it.
"""

from __future__ import annotations

from ..config import Config
from ..spec import Block, Encoder, FeedForward, Pool, Ref, Step, ref
from ..stems import PatchRowsStem
from .blocks import ACTIVATIONS, linear, norm, square_picture, stacked
from .pictures import BIT
from .registry import Family, Processing, strip_prefixes


def block(config: Config, prefix: str, hidden: int, intermediate: int, heads: int, eps: float) -> Block:
    attention = f"{prefix}.attention"
    separate = [f"{attention}.attention.{name}" for name in ("query", "key", "value")]
    gated = config.boolean("use_swiglu_ffn", False)
    if gated:  # two thirds of the width, up to a multiple of 8
        intermediate = (intermediate * 2 // 3 + 7) // 8 * 8
    first, second = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    return Block(
        qkv=stacked(separate, hidden, hidden, bias=config.boolean("qkv_bias", True)),
        out=linear(f"{attention}.output.dense", hidden, hidden, scaled_by=f"{prefix}.layer_scale1.lambda1"),
        norm1=norm(f"{prefix}.norm1", hidden, eps),
        ffn=FeedForward(
            linear(f"{prefix}.mlp.{first}", (2 if gated else 1) * intermediate, hidden),
            linear(f"{prefix}.mlp.{second}", hidden, intermediate, scaled_by=f"{prefix}.layer_scale2.lambda1"),
            norm(f"{prefix}.norm2", hidden, eps),
            gated,
        ),
        num_attention_heads=heads,
        activation="silu" if gated else config.choice("hidden_act", "gelu", ACTIVATIONS),
    )


def tower(config: Config, patch: int, registers: int, filter: str) -> Encoder:
    """The tower whose patches are `patch` pixels wide where the config says nothing else."""
    hidden = config.integer("hidden_size", 768, 1, 1 << 16)
    heads, intermediate = config.heads(hidden, 768, 12), hidden * config.integer("mlp_ratio", 4, 1, 64)
    eps = config.number("layer_norm_eps", 1e-6, 0.0, 1.0)
    image, patch = square_picture(config, 224, patch, "config.json")
    side, embeddings = image // patch, "embeddings.patch_embeddings.projection"
    return Encoder(
        hidden_size=hidden,
        stem=PatchRowsStem(
            weight=ref(f"{embeddings}.weight", hidden, config.integer("num_channels", 3, 3, 3), patch, patch),
            bias=ref(f"{embeddings}.bias", hidden),
            class_token=class_tokens(registers, hidden),
            position=ref("embeddings.position_embeddings", side * side + 1, hidden),
            grid=(side, side),
            class_position=True,
            filter=filter,
        ),
        layers=tuple(
            block(config, f"encoder.layer.{i}", hidden, intermediate, heads, eps)
            for i in range(config.integer("num_hidden_layers", 12, 1, 1024))
        ),
        steps=(
            Step("last_hidden_state", "hidden", norm("layernorm", hidden, eps)),
            Step("pooler_output", "last_hidden_state", Pool("first")),
        ),
    )


def class_tokens(registers: int, hidden: int) -> Ref:
    """The class token, and the registers after it."""
    if not registers:
        return ref("embeddings.cls_token", 1, hidden)
    names = ("embeddings.cls_token", "embeddings.register_tokens")
    return ref(names, 1 + registers, hidden, row_counts=(1, registers))


FAMILY = Family(
    model_type="dinov2",
    processing=Processing(image_processor="BitImageProcessor", image_processors={"BitImageProcessor": BIT}),
    towers={"vision": lambda config: tower(config, 14, 0, "bicubic_point")},
    classes={"Dinov2Model": ("vision",)},
    rename=strip_prefixes("dinov2."),
    ignored=("embeddings.mask_token", "classifier."),
)
