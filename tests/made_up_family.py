"""A family that there is none of, as a family's file says it: a text, a picture, a clip and a sound in one space, each
with a way to its inputs that no other family has. tests/test_made_up_family.py puts it among the others."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from beyondvl.config import Config
from beyondvl.families import clip
from beyondvl.families.blocks import under
from beyondvl.families.registry import Family, Processing, ProcessorKind
from beyondvl.families.tokens import TOKENIZERS
from beyondvl.outputs import BatchFeature, from_numpy
from beyondvl.processing.features import FeatureExtractor
from beyondvl.spec import Encoder, replace

SIZE = 16


def seen(prefix: str, field: str, layout) -> Any:
    def encoder(config: Config) -> Encoder:
        def prepare(inputs: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
            return {"pixel_values": np.ascontiguousarray(layout(inputs[field]))}

        return replace(under(clip.vision(config), f"{prefix}."), prepare=prepare)

    return encoder


def spread(features: np.ndarray) -> np.ndarray:
    """(B, SIZE, SIZE) as a grey picture (B, 3, SIZE, SIZE)."""
    return np.repeat(features[:, None], 3, axis=1)


class HumFeatureExtractor(FeatureExtractor):
    """`input_features` (B, SIZE, SIZE): the first samples as they are, line by line."""

    input_name = "input_features"
    defaults: ClassVar[dict[str, Any]] = {"sampling_rate": 8_000}

    def _prepare(self, config: Config) -> None:
        config.integer("sampling_rate", 8_000, 1_000, 768_000)

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: str | None = None
    ) -> BatchFeature:
        """`raw_speech`: one sound or a list."""
        sounds = self.sounds(raw_speech, sampling_rate)
        rows = np.stack([np.resize(sound, SIZE * SIZE).reshape(SIZE, SIZE) for sound in sounds]).astype(np.float32)
        return BatchFeature(input_features=from_numpy(rows, return_tensors))


FAMILY = Family(
    model_type="made-up",
    processing=Processing(
        processor="MadeUpProcessor",
        tokenizer="MadeUpTokenizer",
        image_processor="MadeUpImageProcessor",
        feature_extractor="HumFeatureExtractor",
        kind=ProcessorKind(num_frames=lambda config: 2, clips="pixel_values_videos"),
        tokenizers={"MadeUpTokenizer": TOKENIZERS["CLIPTokenizer"]},
        image_processors={
            "MadeUpImageProcessor": {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3,
                                     "image_std": [0.25] * 3}
        },
        feature_extractors={"HumFeatureExtractor": HumFeatureExtractor},
    ),
    towers={
        "text": clip.text,
        "vision": clip.vision,
        "video": seen("clips", "pixel_values_videos", lambda frames: frames.mean(axis=1)),
        "audio": seen("sounds", "input_features", spread),
    },
    classes={"MadeUpModel": ("text", "vision", "video", "audio")},
    scale="logit_scale",
)  # fmt: skip
