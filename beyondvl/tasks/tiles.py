"""Tiles of pictures as rows of a text."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..models.model import check_neutral
from ..models.tower import prepared
from ..outputs import ModelOutput, from_numpy, kind_of, to_numpy

__all__ = ["TilesMixin"]


class TilesMixin:
    """What models share that read tiles of pictures within a text, as many rows of each as its tower makes."""

    tokens: Any
    tower: Any
    run_tower: Any

    def get_image_features(self, pixel_values: Any, pixel_attention_mask: Any = None, **kwargs: Any) -> ModelOutput:
        """`pooler_output`: a list of the rows (n, hidden_size) of the pictures of each text, as they stand in it."""
        check_neutral(kwargs)
        rows = self._rows_of(pixel_values, pixel_attention_mask)
        return ModelOutput(pooler_output=[from_numpy(each, kind_of(pixel_values)) for each in rows])

    def _rows_of(self, pixel_values: Any, mask: Any = None) -> list[np.ndarray]:
        """Rows of the tiles of each text. Tiles of zeros alone only fill up, as in transformers. ValueError for tiles
        that the mask cuts."""
        pixels = prepared("pixel_values", pixel_values)
        channels, height, width = self.tower("vision").program.info()["image"]
        if pixels.ndim != 5 or pixels.shape[2:] != (channels, height, width):
            raise ValueError(
                f"pixel_values: found shape {pixels.shape}, expected (B, n, {channels}, {height}, {width})"
            )
        there = pixels.any(axis=(2, 3, 4))
        if mask is not None:
            shown = to_numpy(mask, "pixel_attention_mask")
            if shown.shape != (*pixels.shape[:2], height, width):
                found = f"found shape {shown.shape}, expected {(*pixels.shape[:2], height, width)}"
                raise ValueError(f"pixel_attention_mask: {found}")
            if not shown[there].all():
                raise ValueError("pixel_attention_mask: found zeros within a tile, expected ones: tiles are whole here")
        counts = there.sum(1)
        if not counts.any():
            size = self.tower("vision").sizes["features"]
            return [np.zeros((0, size), np.float32) for _ in counts]
        tiles = np.ascontiguousarray(pixels[there])
        rows = self.run_tower("vision", {"pixel_values": tiles}, ["features"])["features"]
        return [part.reshape(-1, rows.shape[2]) for part in np.split(rows, np.cumsum(counts)[:-1])]

    def _check_places(self, ids: np.ndarray, rows: list[np.ndarray]) -> None:
        """ValueError where a text has not as many placeholders as its pictures have rows."""
        if len(rows) != len(ids):
            raise ValueError(
                f"pixel_values: found tiles for {len(rows)} texts, expected {len(ids)}, as many as input_ids"
            )
        token = self.tokens["image_token_id"]
        for at, (count, own) in enumerate(zip((ids == token).sum(1), rows, strict=True)):
            if count != len(own):
                raise ValueError(
                    f"input_ids: text {at} has {count} placeholders (id {token}), expected {len(own)}, one for each "
                    "row of its pictures"
                )
