"""MobileCLIP's picture towers of OpenCLIP's format, which are timm's FastViT (Vasu et al., 2023, 2024).

A stem of three convolutions; stages of layers that mix neighbours by a convolution of each channel, the last ones by
attention; between stages a large convolution of each channel, which makes two of it, halves the sides. All
convolutions are sums of several as they were trained, folded into one when they are read. Which norm stands before
attention, and whether channels are weighed by what all of them hold, differs by the size.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..maps import ConvFeedForward, Depthwise, Pointwise, SqueezeExcite
from ..spec import (
    BatchNormConv,
    BatchNormInput,
    Block,
    Branches,
    Encoder,
    Linear,
    Norm,
    Normalize,
    Pool,
    Project,
    Spec,
    Step,
    ref,
)
from ..stems import PatchStem
from .blocks import linear, norm

EPS, HEAD = 1e-5, 32
IMAGE = 256
# layers of each stage, channels of the first, inner columns to one, whether by the second design: channels double from
# each stage to the next, the last two attend, layer norms, nothing weighs channels
SIZES = {
    "fastvit_mci0": ((2, 6, 10, 2), 64, 3, False),
    "fastvit_mci1": ((4, 12, 20, 4), 64, 3, False),
    "fastvit_mci2": ((4, 12, 24, 4), 80, 3, False),
    "fastvit_mci3": ((2, 12, 24, 4, 2), 96, 4, True),
    "fastvit_mci4": ((2, 12, 24, 4, 4), 128, 4, True),
}


def conv(name: str, *shape: int) -> BatchNormConv:
    """A convolution and its batch norm, as timm names them."""
    return BatchNormConv(ref(f"{name}.conv.weight", *shape), f"{name}.bn", EPS)


def same(name: str) -> BatchNormConv:
    """The batch norm of what is there."""
    return BatchNormConv(None, name, EPS)


def mobile_one(name: str, *shape: int, scaled: bool, identity: bool) -> Branches:
    """MobileOne's block: a convolution, one of single pixels where it is `scaled`, and what is there."""
    branches = [conv(f"{name}.conv_kxk.0", *shape)]
    branches += [conv(f"{name}.conv_scale", *shape[:2], 1, 1)] if scaled else []
    branches += [same(f"{name}.identity")] if identity else []
    return Branches(shape, tuple(branches))


def mixed(name: str, channels: int, size: tuple[int, int]) -> Depthwise:
    """RepMixer: x + scale (mixer(x) - norm(x)), a convolution of each channel."""
    mixer = mobile_one(f"{name}.mixer", channels, 1, 3, 3, scaled=True, identity=True)
    scale = ref(f"{name}.layer_scale.gamma", channels)
    less = same(f"{name}.norm.identity")
    return Depthwise(Branches(mixer.shape, mixer.branches, less=less, scale=scale, skip=True), size)


def feed_forward(name: str, scale: str, channels: int, inner: int, size: tuple[int, int]) -> ConvFeedForward:
    return ConvFeedForward(
        Depthwise(conv(f"{name}.conv", channels, 1, 7, 7), size),
        linear(f"{name}.fc1", inner, channels),
        linear(f"{name}.fc2", channels, inner, scaled_by=scale),
        "gelu",
    )


def attending(name: str, channels: int, layer_norm: bool) -> Block:
    """Attention over all pixels, after a norm of each pixel, or of each channel, which is folded into its product."""
    qkv = linear(f"{name}.token_mixer.qkv", 3 * channels, channels, bias=False)
    first: Norm | None = norm(f"{name}.norm", channels, EPS) if layer_norm else None
    return Block(
        qkv=qkv if layer_norm else BatchNormInput(same(f"{name}.norm"), qkv),
        out=linear(f"{name}.token_mixer.proj", channels, channels, scaled_by=f"{name}.layer_scale_1.gamma"),
        norm1=first,
        ffn=None,
        num_attention_heads=channels // HEAD,
        activation="gelu",
    )


def weigh(name: str, channels: int, inner: int) -> SqueezeExcite:
    fc1, fc2 = linear(f"{name}.fc1", inner, channels), linear(f"{name}.fc2", channels, inner)
    return SqueezeExcite(fc1, fc2, "gelu")


def down(name: str, channels: int, size: tuple[int, int], weighed: bool) -> tuple[Spec, ...]:
    """From a stage to the next: half the sides, twice the channels."""
    large, wide = f"{name}.proj.0", 2 * channels
    branches = (conv(f"{large}.large_conv", wide, 1, 7, 7), conv(f"{large}.small_conv", wide, 1, 3, 3))
    first = Depthwise(Branches((wide, 1, 7, 7), branches), size, 2, "none" if weighed else "gelu")
    inner = max(8, (wide // 4 + 4) // 8 * 8)
    last = Pointwise(mobile_one(f"{name}.proj.1", wide, wide, 1, 1, scaled=False, identity=True), "gelu")
    return (first, weigh(f"{large}.se", wide, inner), last) if weighed else (first, last)


def stage(name: str, at: int, count: int, channels: int, size: tuple[int, int], ratio: int, second: bool) -> list[Spec]:
    layers: list[Spec] = []
    attends = at >= 3
    if attends:
        place = f"{name}.pos_emb.pos_enc"
        weight = Linear(ref(f"{place}.weight", channels, 1, 7, 7), ref(f"{place}.bias", channels))
        layers.append(Depthwise(Branches((channels, 1, 7, 7), (weight,), skip=True), size))
    for i in range(count):
        block = f"{name}.blocks.{i}"
        mix = attending(block, channels, second) if attends else mixed(f"{block}.token_mixer", channels, size)
        scale = f"{block}.layer_scale{'_2' if attends else ''}.gamma"
        layers += [mix, feed_forward(f"{block}.mlp", scale, channels, ratio * channels, size)]
    return layers


def head_size(config: Config, section: Config, pool: str) -> int:
    """Outputs of a tower whose own last linear is the projection, after a pooling of that name."""
    section.choice("timm_pool", "avg", (pool,))
    if section.get("timm_proj", "linear") is not None:
        raise ConfigError(f"open_clip_config.json: timm_proj: found {section.get('timm_proj')!r}, expected null")
    return config.section("model_cfg").integer("embed_dim", None, 1, 1 << 16)


def mobile_trunk(config: Config, section: Config, name: str, prefix: str = "visual.trunk.") -> Encoder:
    """The tower of a name of SIZES. ConfigError where the config goes on otherwise."""
    depths, channels, ratio, second = SIZES[name]
    image = section.integer("image_size", IMAGE, 1, 1 << 11)
    deepest = 4 << (len(depths) - 1)
    if image % deepest:
        raise ConfigError(f"open_clip_config.json: image_size: found {image}, expected a multiple of {deepest}")
    embed, side = head_size(config, section, "avg"), image // 2
    layers: list[Spec] = [
        Depthwise(
            mobile_one(f"{prefix}stem.1", channels, 1, 3, 3, scaled=not second, identity=False), (side, side), 2, "gelu"
        ),
        Pointwise(mobile_one(f"{prefix}stem.2", channels, channels, 1, 1, scaled=False, identity=True), "gelu"),
    ]
    first, side = channels, side // 2
    for at, count in enumerate(depths):
        part = f"{prefix}stages.{at}"
        if at:
            layers += down(f"{part}.downsample", channels, (side, side), not second and at >= 2)
            channels, side = 2 * channels, side // 2
        layers += stage(part, at, count, channels, (side, side), ratio, second)
    final = mobile_one(f"{prefix}final_conv", 2 * channels, 1, 3, 3, scaled=True, identity=False)
    layers += [Depthwise(final, (side, side)), weigh(f"{prefix}final_conv.se", 2 * channels, 2 * channels // 16)]
    return Encoder(
        hidden_size=2 * channels,
        stem=PatchStem(
            weight=mobile_one(f"{prefix}stem.0", first, 3, 3, 3, scaled=not second, identity=False),
            bias=None,
            class_token=None,
            position=None,
            size=(image, image),
            stride=2,
            padding=(1, 1),
            activation="gelu",
        ),
        layers=tuple(layers),
        steps=(
            Step("pooler_output", "hidden", Pool("mean")),
            Step("embeds", "pooler_output", Project(linear(f"{prefix}head.fc", embed, 2 * channels))),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )
