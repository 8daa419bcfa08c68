"""What models of whole clips share: how frames are taken, and `encode`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..processing.items import clip_of
from ..processing.video import load_video
from .base import TaskModel

__all__ = ["ClipsModel"]


class ClipsModel(TaskModel):
    """A model of clips of `num_frames` pictures."""

    num_frames: int

    def _encode_videos(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        for i in indices:
            video, sampling = clip_of(items, i)
            yield [i], self.get_video_features(self.clip_pixels(video, **sampling))

    def clip_pixels(self, video: Any, **sampling: Any) -> np.ndarray:
        """pixel_values (1, num_frames, 3, H, W) of a clip (see `load_video`), its frames sampled evenly between `start`
        and `end`."""
        if set(sampling) - {"start", "end"}:
            raise ValueError(f"found {', '.join(sampling)}, expected start and end alone: this model takes "
                             f"{self.num_frames} frames of a clip")  # fmt: skip
        frames = load_video(video, num_frames=self.num_frames, **sampling)
        return self.image_processor(list(frames))["pixel_values"][None]
