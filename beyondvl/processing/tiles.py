"""Pictures cut into tiles of one size, and the whole of each after its tiles, as large as one (Idefics3; Laurençon et
al., 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from .. import _C
from ..errors import ImageError
from ..outputs import BatchFeature, from_numpy
from .geometry import edge_field, resized_to_edge, resized_to_tiles
from .image import ImageProcessor, channels_of, check_resized, placed, resize_bytes
from .image_fields import BICUBIC, LANCZOS, NEUTRAL, PATCH_FIELDS
from .items import grouped
from .loading import to_bytes

__all__ = ["TileImageProcessor"]

MOST_TILES = 1024  # of a picture


class TileImageProcessor(ImageProcessor):
    """`processor(images) -> {"pixel_values": (B, n, 3, S, S) float32, "pixel_attention_mask": (B, n, S, S) int64}`: of
    each group of pictures the tiles, n of the largest group, zeros after those of the others; S is max_image_size. A
    picture's longer side becomes that of `size`; with do_image_splitting both then become whole tiles, which come line
    by line, and last the whole picture; without, and where it is one tile, the whole alone.

    Fields as in preprocessor_config.json: do_resize, size {"longest_edge"}, resample, do_image_splitting,
    max_image_size {"longest_edge"}, do_rescale, rescale_factor, do_normalize, image_mean, image_std; see
    ImageProcessor. pixel_values are bit-equal to transformers' PIL processor of pictures in bytes.
    """

    fields: ClassVar[Mapping[str, Any]] = PATCH_FIELDS | {
        "resample": LANCZOS, "size": {"longest_edge": 4 * 364}, "do_image_splitting": True,
        "max_image_size": {"longest_edge": 364},
    }  # fmt: skip
    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_attention_mask")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL | {"do_pad": (None, True)}
    do_center_crop = False
    do_pad = True

    def _size(self, value: Any) -> dict[str, int]:
        return edge_field(value, "size")

    @property
    def side(self) -> int:
        """Height and width of a tile."""
        return self.max_image_size["longest_edge"]

    def __call__(
        self,
        images: Any,
        return_tensors: str | None = "np",
        positions: list[int] | None = None,
        input_data_format: Any = None,
        return_row_col_info: bool = False,
        **settings: Any,
    ) -> BatchFeature:
        """`images`: a picture, a list of those of one text, or a list of such lists; `return_row_col_info` adds "rows"
        and "cols", how many tiles each picture of each group has down and across, 0 where it is whole. The rest as
        ImageProcessor."""
        if settings:
            changed = self._changed(settings)
            return changed(images, return_tensors, positions, input_data_format, return_row_col_info)
        groups = grouped(images)
        batch = [one for group in groups for one in group]
        if not batch:
            raise ValueError("images: the list is empty, expected at least one picture")
        made = self.inputs(batch, positions or range(len(batch)), channels=channels_of(input_data_format))
        ends = np.cumsum([len(group) for group in groups])
        parts = [slice(end - len(group), end) for end, group in zip(ends, groups, strict=True)]
        arrays = in_groups([made["tiles"][part] for part in parts], self.side)
        output = BatchFeature(
            {name: from_numpy(a, return_tensors) if return_tensors else list(a) for name, a in arrays.items()}
        )
        if return_row_col_info:
            for at, name in enumerate(("rows", "cols")):
                output[name] = [made["grids"][part, at].tolist() for part in parts]
        return output

    preprocess = __call__

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        return resized_to_edge(height, width, self.size["longest_edge"]) if self.do_resize else (height, width)

    def _arrays(
        self, each: Callable[[Callable[[int], Any]], list[Any]], batch: list[Any], positions: Any, channels: str | None
    ) -> dict[str, np.ndarray]:
        """`tiles` (B,), arrays (n, 3, S, S) of each picture, and `grids` (B, 2), its tiles down and across."""
        tiles, grids = np.empty(len(batch), object), np.zeros((len(batch), 2), np.int64)
        load = self._loader(batch, positions, channels)

        def work(index: int) -> None:
            image = load(index)
            with placed(positions[index]):
                tiles[index], grids[index] = self._cut(image)

        each(work)
        return {"tiles": tiles, "grids": grids}

    def _cut(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The tiles (n, 3, S, S) of loaded pixels and how many lie down and across."""
        side, (scaled, pixels) = self.side, to_bytes(image[:, :, :3])
        size = self._resized(*pixels.shape[:2])
        final = resized_to_tiles(*size, side) if self.do_image_splitting else (side, side)
        for each in (size, final):
            check_resized(pixels, each, each[0] * each[1])
        if final[0] * final[1] > MOST_TILES * side * side:
            raise ImageError(
                f"{final[1]} x {final[0]} pixels in tiles of {side} x {side} (size, max_image_size), expected "
                f"{MOST_TILES} tiles at most"
            )
        pixels = resize_bytes(np.ascontiguousarray(pixels), *size, self.resample)
        rows, cols = (n // side for n in final)
        if rows * cols == 1:
            rows = cols = 0
        else:
            pixels = resize_bytes(pixels, *final, self.resample)
        out = np.empty((rows * cols + 1, 3, side, side), np.float32)
        table = self._table((np.arange(256) * (1 / 255)).astype(np.float32)) if scaled else self.table
        for index in range(rows * cols):
            place = (index // cols * side, index % cols * side)
            _C.preprocess(out[index], (pixels, *final, BICUBIC, *place), table)
        whole = resize_bytes(pixels, side, side, self.resample)
        _C.preprocess(out[-1], (whole, side, side, BICUBIC, 0, 0), table)
        return out, (rows, cols)


def in_groups(groups: list[Any], side: int) -> dict[str, np.ndarray]:
    """pixel_values and pixel_attention_mask of the tiles of each group."""
    counts = [sum(map(len, group)) for group in groups]
    shape = (len(groups), max(counts))
    pixels, mask = np.zeros((*shape, 3, side, side), np.float32), np.zeros((*shape, side, side), np.int64)
    for row, (group, count) in enumerate(zip(groups, counts, strict=True)):
        if count:
            np.concatenate(list(group), out=pixels[row, :count])
        mask[row, :count] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}
