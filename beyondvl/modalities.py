"""The modalities a model may have: a row for each, from which inputs, outputs, their order and `encode` follow.

A fifth one is a row here, its items in processing/items.py and a way to encode them in encode.py.
"""

from __future__ import annotations

from .spec import Spec

__all__ = ["AUDIO", "IMAGE", "INPUTS", "MODALITIES", "TEXT", "VIDEO", "Modality", "of_tower", "positional"]


class Modality(Spec):
    """What a modality is called: as an item and in outputs ("image"), as a tower ("vision"), and its inputs; `main` of
    them tell that it is there, the rest go with them, some `by_name` alone. `floats`: those that are no whole
    numbers."""

    name: str
    tower: str
    main: tuple[str, ...]
    rest: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    by_name: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.main + self.rest + self.by_name


TEXT = Modality("text", "text", ("input_ids",), ("attention_mask", "token_type_ids"))
IMAGE = Modality(
    "image", "vision", ("pixel_values",), (), ("pixel_values",),
    ("pixel_attention_mask", "spatial_shapes", "image_position_ids")
)  # fmt: skip
VIDEO = Modality(
    "video",
    "video",
    ("pixel_values_videos",),
    (),
    ("pixel_values_videos",),
    ("video_position_ids", "num_frames_per_video"),
)
AUDIO = Modality(
    "audio",
    "audio",
    ("input_features", "input_values"),
    ("is_longer",),
    ("input_features", "input_values"),
    ("feature_attention_mask", "input_features_mask"),
)
MODALITIES = (TEXT, IMAGE, VIDEO, AUDIO)
INPUTS = tuple(name for modality in MODALITIES for name in modality.inputs)
FLOATS = frozenset(name for modality in MODALITIES for name in modality.floats)


def of_tower(tower: str) -> Modality | None:
    """The modality a tower is of; None for a tower of a model's own."""
    return next((modality for modality in MODALITIES if modality.tower == tower), None)


def positional(towers: tuple[str, ...]) -> tuple[str, ...]:
    """The order of inputs that come without a name, as transformers' models have it: the main one of each modality,
    then the rest of all but the text, then the text's."""
    chosen = [modality for modality in MODALITIES if modality.tower in towers]
    others = [name for modality in chosen if modality is not TEXT for name in modality.rest]
    return (*(m.main[0] for m in chosen), *others, *(TEXT.rest if TEXT in chosen else ()))
