"""DINOv2 with registers (Darcet et al., 2023): tokens of no picture beside the class token, which have no positions.

Its positions are resized antialiased, where DINOv2's are not.
"""

from __future__ import annotations

from ..config import Config
from ..spec import Encoder
from .dinov2 import tower
from .pictures import BIT
from .registry import Family, Processing, strip_prefixes


def vision(config: Config) -> Encoder:
    return tower(config, 16, config.integer("num_register_tokens", 4, 1, 1 << 10), "bicubic")


FAMILY = Family(
    model_type="dinov2_with_registers",
    processing=Processing(image_processor="BitImageProcessor", image_processors={"BitImageProcessor": BIT}),
    towers={"vision": vision},
    classes={"Dinov2WithRegistersModel": ("vision",)},
    rename=strip_prefixes("dinov2_with_registers."),
    ignored=("embeddings.mask_token", "classifier."),
)
