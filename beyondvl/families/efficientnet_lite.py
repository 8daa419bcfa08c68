"""EfficientNet-Lite: a convnet of inverted residuals with ReLU6 and no squeeze-and-excitation (Tan and Le, 2019; the
Lite variants, 2020). Keys as in the efficientnet-lite-pytorch package; input (x - 127) / 128, "same" padding.
"""

from __future__ import annotations

import math

from ..config import Config
from ..maps import InvertedResidual
from ..spec import BatchNormConv, Encoder, Linear, Pool, Project, Step, ref
from ..stems import PatchStem
from .pictures import CLIP
from .registry import Family, Processing

EPS = 1e-3
# repeats, kernel, stride, expansion, input channels, output channels
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
# width coefficient, depth coefficient, image size
VARIANTS = {
    "efficientnet-lite0": (1.0, 1.0, 224),
    "efficientnet-lite1": (1.0, 1.1, 240),
    "efficientnet-lite2": (1.1, 1.2, 260),
    "efficientnet-lite3": (1.2, 1.4, 280),
    "efficientnet-lite4": (1.4, 1.8, 300),
}
HEAD_CHANNELS = 1280


def round_channels(channels: int, width: float) -> int:
    """The nearest multiple of 8, never more than 10 % below."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def conv(prefix: str, name: str, norm: str, out: int, inner: int, kernel: int) -> BatchNormConv:
    return BatchNormConv(ref(f"{prefix}{name}.weight", out, inner, kernel, kernel), f"{prefix}{norm}", EPS)


def blocks(width: float, depth: float, size: int, prefix: str) -> list[InvertedResidual]:
    """The layers; the first and last stage keep their depth, the stem and the head their width."""
    layers: list[InvertedResidual] = []
    channels = 32
    for number, (repeats, kernel, stride, expansion, _, out) in enumerate(STAGES):
        if number not in (0, len(STAGES) - 1):
            repeats = math.ceil(depth * repeats)
        out = round_channels(out, width)
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            inner, key = channels * expansion, f"{prefix}_blocks.{len(layers)}."
            layers.append(
                InvertedResidual(
                    expand=conv(key, "_expand_conv", "_bn0", inner, channels, 1) if expansion > 1 else None,
                    depthwise=conv(key, "_depthwise_conv", "_bn1", inner, 1, kernel),
                    project=conv(key, "_project_conv", "_bn2", out, inner, 1),
                    size=(size, size),
                    stride=step,
                    activation="relu6",
                    residual=step == 1 and channels == out,
                )
            )
            channels, size = out, -(-size // step)
    return layers


def lite_encoder(section: Config, prefix: str, more: tuple[Step, ...] = ()) -> Encoder:
    """The tower under a key prefix: last_hidden_state is the final map, pooler_output its mean, logits the classes."""
    variant = section.choice("variant", "efficientnet-lite0", tuple(VARIANTS))
    width, depth, size = VARIANTS[variant]
    size = section.integer("image_size", size, 32, 1 << 11)
    layers = blocks(width, depth, -(-size // 2), prefix)
    last = layers[-1].project.out_features
    labels = section.integer("num_labels", 1000, 1, 1 << 20)
    classes = Linear(
        ref(f"{prefix}_fc.weight", labels, HEAD_CHANNELS, optional=not more),
        ref(f"{prefix}_fc.bias", labels, optional=not more),
    )
    return Encoder(
        hidden_size=last,
        stem=PatchStem(
            weight=conv(prefix, "_conv_stem", "_bn0", 32, 3, 3),
            bias=None,
            class_token=None,
            position=None,
            size=(size, size),
            stride=2,
            padding="same",
            activation="relu6",
        ),
        layers=tuple(layers),
        steps=(
            Step(
                "last_hidden_state",
                "hidden",
                Project(conv(prefix, "_conv_head", "_bn1", HEAD_CHANNELS, last, 1), "relu6"),
            ),
            Step("pooler_output", "last_hidden_state", Pool("mean")),
            Step("logits", "pooler_output", Project(classes)),
            *more,
        ),
    )


FAMILY = Family(
    model_type="efficientnet_lite",
    processing=Processing(image_processor="CLIPImageProcessor", image_processors={"CLIPImageProcessor": CLIP}),
    towers={"vision": lambda config: lite_encoder(config, "")},
    classes={"EfficientNetLiteModel": ("vision",)},
)
