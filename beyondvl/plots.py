"""Pictures of what a model does, with matplotlib (extra `[plot]`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .processing.loading import load_image

__all__ = ["plot_attention"]


def plot_attention(image: Any, maps: Any, queries: Any = None, columns: int = 4) -> Any:
    """A matplotlib Figure of where queries looked: the picture, and over it each map as a veil that is clear where the
    query looked most.

    Args:
        image: as `load_image` takes it.
        maps: (queries, height, width), one picture's of `model.attend`; or (height, width).
        queries: which of them, in that order; None: all, after the mean of them.
        columns: panels side by side.

    Raises ImportError where matplotlib is missing, ValueError for maps of another shape, or a query there is none of.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("to plot attention install matplotlib: pip install 'beyondvl[plot]'") from error
    array = np.asarray(maps, np.float32)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise ValueError(f"maps: found shape {array.shape}, expected (queries, height, width), of one picture")
    chosen = list(range(len(array))) if queries is None else list(queries)
    if wrong := [q for q in chosen if not 0 <= q < len(array)]:
        raise ValueError(f"queries: found {wrong[0]}, expected some of 0 to {len(array) - 1}")
    picture = np.asarray(load_image(image))
    panels = [(f"query {q}", array[q]) for q in chosen]
    if queries is None and len(array) > 1:
        panels.insert(0, ("mean of all", array.mean(0)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3 * min(columns, len(panels)), 3 * rows), layout="constrained")
    height, width = picture.shape[:2]
    for at, (title, map_) in enumerate(panels):
        axes = figure.add_subplot(rows, min(columns, len(panels)), at + 1)
        axes.imshow(picture)
        veil = 1 - map_ / max(float(map_.max()), 1e-12)
        axes.imshow(
            np.zeros_like(veil), cmap="gray", alpha=0.8 * veil, extent=(0, width, height, 0), interpolation="bilinear"
        )
        axes.set_title(title)
        axes.set_axis_off()
    return figure
