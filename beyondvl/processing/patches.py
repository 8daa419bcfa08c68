"""Pictures as patches, as many as their proportions make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, ImageError
from .geometry import resized_to_patches, resized_to_squares
from .image import ImageProcessor, placed
from .image_fields import PATCH_FIELDS
from .loading import MAX_PIXELS

__all__ = ["PatchImageProcessor", "SoftTokenImageProcessor"]


class PatchImageProcessor(ImageProcessor):
    """`processor(images) -> {"pixel_values": (B, max_num_patches, patch_size * patch_size * 3) float32,
    "pixel_attention_mask": (B, max_num_patches) int32, "spatial_shapes": (B, 2) int64}` (NaFlex; Tschannen et al.,
    2025): a picture keeps its proportions and becomes as large as that many patches allow, and its patches stand row by
    row, each in the order row, column, channel, then zeros. `spatial_shapes` counts them down and across.

    Fields as in preprocessor_config.json: do_resize, resample, do_rescale, rescale_factor, do_normalize, image_mean,
    image_std, patch_size, max_num_patches; see ImageProcessor.
    """

    fields: ClassVar[Mapping[str, Any]] = PATCH_FIELDS | {"patch_size": 16, "max_num_patches": 256}
    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    do_center_crop = False

    @property
    def _most_patches(self) -> int:
        return self.max_num_patches

    def _in_patches(self, height: int, width: int) -> tuple[int, int]:
        return resized_to_patches(height, width, self.patch_size, self.max_num_patches)

    def _described(self, shapes: np.ndarray) -> dict[str, np.ndarray]:
        """What is said of pictures of `shapes` (B, 2) patches beside their pixels."""
        mask = np.arange(self._most_patches) < shapes.prod(1)[:, None]
        return {"pixel_attention_mask": mask.astype(np.int32), "spatial_shapes": shapes}

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        return self._in_patches(height, width) if self.do_resize else (height, width)

    def _arrays(
        self, each: Callable[[Callable[[int], Any]], list[Any]], batch: list[Any], positions: Any, channels: str | None
    ) -> dict[str, np.ndarray]:
        side, most = self.patch_size, self._most_patches
        if side * side * most > MAX_PIXELS:
            raise ConfigError(
                f"{[*self.fields][-1]}: {most} patches of {side} x {side} pixels, expected {MAX_PIXELS} pixels at most"
            )
        out = np.zeros((len(batch), most, side * side * 3), np.float32)
        shapes = np.zeros((len(batch), 2), np.int64)
        load = self._loader(batch, positions, channels)

        def work(index: int) -> None:
            image = load(index)
            with placed(positions[index]):
                height, width = self._target(image)[2:4]
                if height % side or width % side or height * width > most * side * side:
                    raise ImageError(
                        f"{width} x {height} pixels, expected at most {most} whole patches of {side} x {side}"
                    )
            pixels = np.empty((3, height, width), np.float32)
            self._fill(pixels, image, positions[index])
            rows, cols = shapes[index] = height // side, width // side
            patches = pixels.reshape(3, rows, side, cols, side).transpose(1, 3, 2, 4, 0)
            out[index, : rows * cols] = patches.reshape(rows * cols, -1)

        each(work)
        return {"pixel_values": out} | self._described(shapes)


class SoftTokenImageProcessor(PatchImageProcessor):
    """`processor(images) -> {"pixel_values": (B, N, patch_size * patch_size * 3) float32, "image_position_ids":
    (B, N, 2) int64, "num_soft_tokens_per_image": (B,) int64}` (Gemma 4; Google, 2026), N = max_soft_tokens *
    pooling_kernel_size ** 2: a picture keeps its proportions and becomes as large as that many patches allow, in whole
    squares of so many, of each of which a model makes a row of a text. Positions are columns and rows, then -1.

    Fields as in preprocessor_config.json: as of PatchImageProcessor, max_soft_tokens, pooling_kernel_size.
    """

    fields: ClassVar[Mapping[str, Any]] = PATCH_FIELDS | {
        "patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 280
    }  # fmt: skip
    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values", "image_position_ids", "num_soft_tokens_per_image")

    @property
    def _most_patches(self) -> int:
        return self.max_soft_tokens * self.pooling_kernel_size**2

    def _in_patches(self, height: int, width: int) -> tuple[int, int]:
        return resized_to_squares(height, width, self.patch_size * self.pooling_kernel_size, self.max_soft_tokens)

    def _described(self, shapes: np.ndarray) -> dict[str, np.ndarray]:
        index, (rows, cols) = np.arange(self._most_patches), shapes.T[..., None]
        places = np.stack([index % np.maximum(cols, 1), index // np.maximum(cols, 1)], 2)
        counts = shapes.prod(1) // self.pooling_kernel_size**2
        positions = np.where((index < rows * cols)[..., None], places, -1)
        return {"image_position_ids": positions, "num_soft_tokens_per_image": counts}
