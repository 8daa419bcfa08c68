"""How things move in a clip, by the cells of its frames: what formers read beside what is seen.

A cell is the mean of a part of a frame's map; the scene is the mean over the frames, a departure what a frame's cell is
more than it. Departures are large where something moves; what moves by k cells in t frames makes those of a cell alike
to those t frames later, k cells on.
"""

from __future__ import annotations

import numpy as np

GRID = 3  # cells along a side of what a clip keeps of a frame
LAGS = (1, 2, 4)  # frames between those whose departures are compared


def columns(frames: int, count: int, size: int) -> int:
    """How many numbers `motion` gives of clips of so many frames, cells of each, and numbers of a cell."""
    lags = sum(lag < frames for lag in LAGS) if count == GRID * GRID else 0
    return size + frames * count + lags * (2 * GRID - 1) ** 2


def moving(cells: np.ndarray) -> np.ndarray:
    """Rows (B, (1 + frames) * cells, D) of a clip's cells (B, frames, cells, D): what is there all the time, and how
    each frame departs from it, in units of how far they depart in all: where something moves, they do so more."""
    scene = cells.mean(1, keepdims=True)
    departures = cells - scene
    strength, least = (np.linalg.norm(x, axis=3).mean((1, 2))[:, None, None, None] for x in (departures, scene))
    unit = np.float32(0.5 * cells.shape[3] ** 0.5) / (strength + np.float32(0.05) * least)
    return np.concatenate([scene, departures * unit], 1).reshape(len(cells), -1, cells.shape[3])


def shifts() -> np.ndarray:
    """(cells * cells, (2 GRID - 1)^2): 1 where two cells of a grid are that far apart."""
    y, x = np.divmod(np.arange(GRID * GRID), GRID)
    width = 2 * GRID - 1
    apart = (y[None] - y[:, None] + GRID - 1) * width + x[None] - x[:, None] + GRID - 1
    return np.eye(width * width, dtype=np.float32)[apart.reshape(-1)]


def motion(cells: np.ndarray) -> np.ndarray:
    """How things move in a clip's cells (B, frames, cells, D), in numbers of about 1, (B, columns): the mean of the
    cells that depart most from the scene; how much each departs; and, where they are a grid of GRID x GRID, how alike
    departures are to those some frames later, by how far apart their cells are (Dosovitskiy et al., 2015)."""
    batch, frames, count, size = cells.shape
    departures = cells - cells.mean(1, keepdims=True)
    norms = np.linalg.norm(departures, axis=3).reshape(batch, -1)
    shares = norms / (norms.mean(1, keepdims=True) + np.float32(1e-6))
    weights = np.exp(3 * (shares - shares.max(1, keepdims=True)))
    what = (weights[:, None] / weights.sum(1)[:, None, None] @ cells.reshape(batch, -1, size))[:, 0]
    what -= what.mean(1, keepdims=True)
    parts = [what / (what.std(1, keepdims=True) + np.float32(1e-6)), 2 * (shares - 1)]
    if count == GRID * GRID:
        whole = (norms * norms).sum(1, keepdims=True) / frames + np.float32(1e-6)
        for lag in (lag for lag in LAGS if lag < frames):
            alike = (departures[:, :-lag] @ departures[:, lag:].swapaxes(2, 3)).mean(1).reshape(batch, -1)
            parts.append(4 * (alike @ shifts()) / whole)
    return np.concatenate(parts, 1)
